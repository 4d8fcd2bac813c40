"""Kills runs of all stages of alignment at random moments, lets them go on, and compares the end bit for bit.

    python -m tests.bench.align_chaos --trials 20

A trial starts the job and kills it (SIGKILL) a random time after a random stage has begun, once or twice, then lets it
end. Final parameters, moments and exports of every stage, and the losses of every step, must be those of a run that
nobody disturbed. Prints a line a trial; exit status 1 if anything differs.
"""

import argparse
import logging
import pathlib
import random
import subprocess
import sys
import tempfile
import time

from safetensors.numpy import load_file

from gpt4jax.training import metrics
from tests.runs import ROOT, command, environment, final_state

CONFIG = ROOT / "tests" / "configs" / "align_tiny.py"
STAGES = {"sft": 8, "reward": 8, "ppo": 6, "dpo": 8}
DEADLINE = 300  # seconds, of a start


def start(workdir: pathlib.Path, environ: dict[str, str]) -> subprocess.Popen:
    """Starts the job; what it says goes to a file beside its folder."""
    steps = [f"--config.{stage}.num_steps={steps}" for stage, steps in STAGES.items()]
    with workdir.with_suffix(".log").open("a") as log:
        flags = ["--config", CONFIG, "--workdir", workdir, *steps]
        return subprocess.Popen(command("align", *flags), cwd=ROOT, env=environ, stdout=log, stderr=log)


def left(workdir: pathlib.Path) -> dict[str, bytes | float]:
    """All that a finished job leaves which must be the same."""
    found: dict[str, bytes | float] = {}
    for stage, steps in STAGES.items():
        found |= {f"{stage} {name}": array.tobytes() for name, array in final_state(workdir / stage, steps).items()}
        export = load_file(workdir / stage / "export" / "model.safetensors")
        found |= {f"{stage} export {name}": array.tobytes() for name, array in export.items()}
        losses = {line["step"]: line["train/loss"] for line in metrics.read(workdir / stage) if "train/loss" in line}
        found |= {f"{stage} loss {step}": loss for step, loss in losses.items()}
    return found


def trial(workdir: pathlib.Path, environ: dict[str, str], rng: random.Random) -> list[str]:
    """A job that is killed once or twice and then ends; what was done to it."""
    done = []
    for _ in range(rng.choice((1, 2))):
        stage, delay = rng.choice(list(STAGES)), rng.uniform(0, 8)
        process, until = start(workdir, environ), time.monotonic() + DEADLINE
        while not (workdir / stage).is_dir() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            done.append(f"{stage} +{delay:.1f} s")
    if start(workdir, environ).wait(DEADLINE):
        raise RuntimeError(f"the job does not end well: {workdir.with_suffix('.log').read_text()[-2000:]}")
    return done


def main() -> int:
    """Runs the trials and says what came of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    logging.disable(logging.WARNING)  # Orbax misses a file that only newer ones write
    rng, failed, kills = random.Random(flags.seed), 0, 0
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        environ = environment(home / "cache") | {
            "JAX_COMPILATION_CACHE_DIR": str(home / "compiled"), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }  # fmt: skip
        if start(home / "undisturbed", environ).wait():
            raise RuntimeError((home / "undisturbed.log").read_text())
        wanted = left(home / "undisturbed")
        for number in range(flags.trials):
            workdir = home / f"trial{number}"
            done = trial(workdir, environ, rng)
            found = left(workdir)
            wrong = [name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name)]
            kills, failed = kills + len(done), failed + bool(wrong)
            print(f"trial {number}: killed at {', '.join(done) or 'no time'}: {wrong[:3] or 'the same'}", flush=True)
    print(f"{flags.trials} trials, {kills} kills, {len(wanted)} arrays and losses each: {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
