"""Kills runs at random moments, resumes them, and compares the end with an undisturbed run, bit for bit.

    python -m tests.bench.kill_resume --kills 30

Kills take SIGKILL, SIGTERM and SIGINT in turn and aim at compilation, steps, evaluations and saves in turn,
at a random moment of each. Prints one JSON line a kill and a summary.
"""

import argparse
import json
import pathlib
import random
import signal
import subprocess
import tempfile
import threading
import time

from tests.runs import TINY, assert_same_state, command, environment, final_state, run, write_corpus

STEPS, EVAL_EVERY = 60, 20
SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
PHASES = ("compile", "step", "evaluation", "save", "anywhere")


def flags(home: pathlib.Path, workdir: pathlib.Path) -> list[object]:
    """The tiny run, made long enough to be hit in each phase: 60 steps, larger width, 3 evaluations, 6 saves."""
    return [
        "--config", TINY, "--workdir", workdir, f"--config.data.dataset=folder:{home / 'corpus'}",
        f"--config.num_steps={STEPS}", "--config.model.embed_dim=192", "--config.model.mlp_dim=768",
        f"--config.eval.eval_every_steps={EVAL_EVERY}", "--config.checkpoint.checkpoint_every_steps=10",
    ]  # fmt: skip


class Watched:
    """A run whose lines are noted with their times, and which can be hit when something happens."""

    def __init__(self, home: pathlib.Path, workdir: pathlib.Path):
        self.workdir, self.lines = workdir, []
        self.process = subprocess.Popen(
            command("train", *flags(home, workdir)), env=environment(home / "cache"), text=True,
            stderr=subprocess.PIPE, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        for line in self.process.stderr:
            self.lines.append((time.monotonic(), line.rstrip()))

    def wait_for(self, happened) -> bool:
        """Whether it happened before the run ended."""
        while self.process.poll() is None:
            if happened():
                return True
            time.sleep(0.002)
        return False

    def time_of(self, start: str) -> float | None:
        """When a line that starts so came."""
        return next((moment for moment, line in self.lines if line.startswith(start)), None)

    def end(self) -> int:
        """Waits for the end; the exit status."""
        status = self.process.wait()
        self._reader.join()
        return status


def timeline(watched: Watched, started: float) -> dict[str, float]:
    """Seconds of compilation, an evaluation and the whole, from an undisturbed run."""
    compile_start = watched.time_of("folder:") or started
    last_before_eval = watched.time_of(f"step {EVAL_EVERY}/")
    return {
        "compile": watched.time_of("step 1/") - compile_start,
        "evaluation": watched.time_of(f"step {EVAL_EVERY}: held-out") - last_before_eval,
        "whole": time.monotonic() - started,
    }


def hit(watched: Watched, phase: str, how: signal.Signals, times: dict[str, float], rng: random.Random) -> float | None:
    """Sends the signal at a random moment of the phase; returns the delay, None if the run was over before."""
    if phase == "compile":
        ready, delay = (lambda: watched.time_of("folder:")), rng.uniform(0, times["compile"])
    elif phase == "evaluation":
        ready = lambda: watched.time_of(f"step {EVAL_EVERY * rng_step}/")  # noqa: E731
        rng_step, delay = rng.choice((1, 2)), rng.uniform(0, times["evaluation"])
    elif phase == "save":
        seen, nth = set(), rng.randrange(1, 6)

        def ready() -> bool:
            seen.update(p.name for p in (watched.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
            return len(seen) >= nth

        delay = rng.uniform(0, 0.1)
    elif phase == "step":
        step, delay = rng.randrange(2, STEPS), rng.uniform(0, 0.05)
        ready = lambda: watched.time_of(f"step {step}/")  # noqa: E731
    else:
        ready, delay = (lambda: True), rng.uniform(0, times["whole"])
    if not watched.wait_for(ready):
        return None
    time.sleep(delay)
    if watched.process.poll() is not None:
        return None
    watched.process.send_signal(how)
    return delay


def main() -> None:
    """Runs the trial; exits with status 1 if a resumed run ended elsewhere."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        write_corpus(home / "corpus")
        Watched(home, home / "warm").end()  # fills the cache of tokens
        started = time.monotonic()
        undisturbed = Watched(home, home / "undisturbed")
        assert undisturbed.end() == 0, undisturbed.lines
        times = timeline(undisturbed, started)
        expected = final_state(home / "undisturbed", STEPS)
        print(json.dumps({name: round(value, 2) for name, value in times.items()}), flush=True)
        kills = attempts = 0
        while kills < options.kills:
            attempts += 1
            phase, how, workdir = PHASES[kills % len(PHASES)], SIGNALS[kills % 3], home / f"run{attempts}"
            watched = Watched(home, workdir)
            delay = hit(watched, phase, how, times, rng)
            status = watched.end()
            # Only an unfinished run counts: one that was over, or had all done when the signal came, does not.
            if delay is None or status == 0:
                continue
            assert status in {signal.SIGKILL: (-9,), signal.SIGTERM: (-15, 143), signal.SIGINT: (130, -2)}[how], status
            last = watched.lines[-1][1] if watched.lines else ""
            done = run("train", *flags(home, workdir), cache=home / "cache")
            assert done.returncode == 0, done.stderr
            resumed = next((line for line in done.stderr.splitlines() if line.startswith("resumed")), "from the start")
            assert_same_state(final_state(workdir, STEPS), expected)
            kills += 1
            row = dict(kill=kills, phase=phase, signal=how.name, delay=round(delay, 3), status=status)
            print(json.dumps(row | dict(last_line=last, resumed=resumed, equal=True)), flush=True)
    print(f"{kills} kills: every resumed run ended bitwise equal to the undisturbed one")


if __name__ == "__main__":
    main()
