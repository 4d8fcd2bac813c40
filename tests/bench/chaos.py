"""Disturbs runs at every phase, lets them go on, and compares the end with an undisturbed run, bit for bit.

    python -m tests.bench.chaos --trials 500
    python -m tests.bench.chaos --trials 20 --processes 2

A trial disturbs one or two starts of a run, each in one of these ways, at a random moment of one of the PHASES, and
then lets it end:

    kill       SIGKILL
    term       SIGTERM: the run must save the step that it has reached, and say so
    disk       the disk is full from then on, until the run has ended by itself (in a mount namespace: Linux)
    truncate   SIGKILL, and then a file of the newest checkpoint loses its end; only where an older one is there
    flip       ... or one of its bits is another
    stop       SIGSTOP, of several processes: the others must end by themselves, and it is killed

Checked of each trial: final parameters and moments, and every step's loss and rows (their sha256, written down by the
run as they reach the step), are those of the undisturbed run, each step once; a start goes on from the newest sound
checkpoint; nothing hangs. The runs are `gpt4jax.train` in forked processes, which spares each its imports; compiled
programs are kept from run to run. Prints a JSON line a trial, and a summary; exit status 1 if anything failed.
"""

import argparse
import collections
import hashlib
import json
import logging
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback

from tests.runs import TINY, write_corpus

STEPS, EVAL_EVERY, SAVE_EVERY = 24, 8, 5
PHASES = ("start", "restore", "compile", "step", "evaluation", "save", "end")
WAYS = ("kill", "term", "disk", "truncate", "flip")
DEADLINE, BOUND = 240, 60  # seconds for a whole start; for the others to end after one process is lost
DISK = 48  # MiB
UNSEALED = ("_CHECKPOINT_METADATA", "commit_success.txt")  # Orbax writes them last; nothing that is restored is in them


def fork(argv: list[str], home: pathlib.Path, out: pathlib.Path, rows: pathlib.Path, environ: dict[str, str]) -> int:
    """`gpt4jax.train.main(argv)` in a child process that writes to `out`, and the sha256 of its batches to `rows`."""
    pid = os.fork()
    if pid:
        return pid
    status = 70
    try:
        status = _train(argv, home, out, rows, environ)
    finally:
        os._exit(status)  # whatever happens: what lies above is the parent's


def _train(argv: list[str], home: pathlib.Path, out: pathlib.Path, rows: pathlib.Path, environ: dict[str, str]) -> int:
    """The child: trains, and returns the exit status."""
    os.setsid()
    file = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(file, number)
    os.environ.update(environ, GPT4JAX_CACHE=str(home / "cache"))
    import jax

    from gpt4jax import job, train
    from gpt4jax.training import loop

    logging.disable(logging.NOTSET)
    jax.config.update("jax_compilation_cache_dir", str(home / "compiled"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    program, noted = loop.Compiled.__call__, os.open(rows, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def noting(self, state, batch):
        shards = sorted(batch.tokens_bt.addressable_shards, key=lambda shard: str(shard.index))
        digest = hashlib.sha256(b"".join(shard.data.tobytes() for shard in shards)).hexdigest()
        os.write(noted, f"{int(state.step)} {digest}\n".encode())
        return program(self, state, batch)

    loop.Compiled.__call__ = noting
    sys.argv = ["train", *argv]
    try:
        job.main(train.main)
    except SystemExit as end:
        if end.code in (0, 143):  # as an ordinary exit does
            jax.distributed.shutdown()
        return end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    return 70


class Start:
    """One start of a run, of one process or several."""

    def __init__(self, home: pathlib.Path, workdir: pathlib.Path, number: int, processes: int):
        self.workdir, self.began = workdir, time.monotonic()
        self.notes = home / f"{workdir.name}.notes"  # on another disk than the run
        self.notes.mkdir(exist_ok=True)
        self.out = [self.notes / f"out{number}.{p}" for p in range(processes)]
        self.rows = [self.notes / f"rows{number}.{p}" for p in range(processes)]
        argv = [
            "--config", str(TINY), "--workdir", str(workdir), f"--config.data.dataset=folder:{home / 'corpus'}",
            f"--config.num_steps={STEPS}", f"--config.eval.eval_every_steps={EVAL_EVERY}", "--config.eval.num_rows=32",
            f"--config.checkpoint.checkpoint_every_steps={SAVE_EVERY}", "--config.eval.sample_prompt=",
            "--config.mesh.heartbeat_seconds=15",
        ]  # fmt: skip
        own = [{"JAX_NUM_PROCESSES": "1", "JAX_PLATFORMS": "cpu"}]
        if processes > 1:
            argv += ["--config.mesh.fsdp=-1", "--config.mesh.data=1"]
            with socket.socket() as one:
                one.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{one.getsockname()[1]}"
            own = [
                own[0] | {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes),
                          "JAX_PROCESS_ID": str(p)} for p in range(processes)
            ]  # fmt: skip
        self.pids = [fork(argv, home, *each) for each in zip(self.out, self.rows, own, strict=True)]
        self.status: list[int | None] = [None] * processes

    def poll(self) -> bool:
        """Whether all have ended; takes note of those that have."""
        for p, pid in enumerate(self.pids):
            if self.status[p] is None:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    self.status[p] = os.waitstatus_to_exitcode(status)
        return None not in self.status

    @property
    def said(self) -> str:
        """What the first process has said so far."""
        return self.out[0].read_text(errors="replace") if self.out[0].exists() else ""

    def wait_for(self, happened) -> bool:
        """Whether it happened before the start ended (or its deadline)."""
        while not self.poll() and time.monotonic() - self.began < DEADLINE:
            if happened():
                return True
            time.sleep(0.002)
        return False

    def when(self, text: str) -> float:
        """Seconds from the start's beginning until it has said something."""
        self.wait_for(lambda: text in self.said)
        return time.monotonic() - self.began

    def end(self, within: float) -> bool:
        """Whether all ended by themselves within so many seconds; those that did not are killed."""
        until = time.monotonic() + within
        while not self.poll() and time.monotonic() < until:
            time.sleep(0.01)
        hung = not self.poll()
        for p, pid in enumerate(self.pids):
            if self.status[p] is None:
                os.kill(pid, signal.SIGKILL)
                self.status[p] = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        return not hung

    def signal(self, number: signal.Signals, victim: int) -> None:
        """Sends a signal to one process, if it is there."""
        if not self.poll() and self.status[victim] is None:
            os.kill(self.pids[victim], number)


def moment(start: Start, phase: str, rng: random.Random, times: dict[str, float]) -> bool:
    """Waits for a random moment of a phase; False if the start was over before."""
    if phase == "save":
        seen: set[str] = set()
        nth = rng.randrange(1, 5)

        def ready() -> bool:
            seen.update(p.name for p in (start.workdir / "checkpoints").glob("*.orbax-checkpoint-tmp*"))
            return len(seen) >= nth

        delay = rng.uniform(0, 0.15)
    else:
        step = rng.randrange(1, STEPS)
        after = {
            "start": "", "restore": "a device holds", "compile": "a device holds", "step": f"step {step}/",
            "evaluation": f"step {rng.choice((1, 2)) * EVAL_EVERY}/", "end": f"step {STEPS}/",
        }[phase]  # fmt: skip
        ready = lambda: after in start.said  # noqa: E731
        most = {"start": times["start"], "restore": 0.5, "compile": times["compile"], "step": 0.05, "end": 0.2}
        delay = rng.uniform(0, most.get(phase, times["evaluation"]))
    if not start.wait_for(ready):
        return False
    time.sleep(delay)
    return not start.poll()


def newest(workdir: pathlib.Path) -> list[pathlib.Path]:
    """The finished checkpoints, newest first."""
    found = (workdir / "checkpoints").glob("*") if (workdir / "checkpoints").is_dir() else []
    return sorted((p for p in found if p.name.isdecimal()), key=lambda p: -int(p.name))


def resumes_at(workdir: pathlib.Path, harmed: set[int]) -> int:
    """The step at which the next start must go on: that of the newest checkpoint, but for those that were harmed.

    They are known by their folders' inodes, as a later start may write the same step again.
    """
    return next((int(path.name) for path in newest(workdir) if path.stat().st_ino not in harmed), 0)


def harm(folder: pathlib.Path, way: str, rng: random.Random) -> str:
    """Damages one of the files of a checkpoint; returns its name."""
    path = rng.choice(sorted(p for p in folder.rglob("*") if p.is_file() and p.stat().st_size))
    data = bytearray(path.read_bytes())
    if way == "truncate":
        data = data[: rng.randrange(len(data))]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)
    return str(path.relative_to(folder))


def fill(folder: pathlib.Path) -> pathlib.Path:
    """Takes all that is left of the disk; returns the file that has it."""
    filler = folder / "filler"
    size = 2**20
    with filler.open("wb", buffering=0) as file:
        while size:
            try:
                size = size if file.write(b"0" * size) == size else size // 2
            except OSError:
                size //= 2
    return filler


def in_child(make) -> str:
    """What a function gives, as text, in a process of its own: JAX shall not run where runs are forked."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.write(write, str(make()).encode())
        finally:
            os._exit(0)
    os.close(write)
    with os.fdopen(read) as file:
        text = file.read()
    os.waitpid(pid, 0)
    return text


def outcome(workdir: pathlib.Path) -> tuple[str, dict[int, float]]:
    """A digest of the final state, read by Orbax alone, and the loss of each line of metrics.jsonl."""

    def digest() -> str:
        from tests.runs import final_state

        sha = hashlib.sha256()
        for name, array in sorted(final_state(workdir, STEPS).items()):
            sha.update(name.encode() + str(array.dtype).encode() + array.tobytes())
        return sha.hexdigest()

    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    steps = [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line]
    assert len(dict(steps)) == len(steps), "a step has two lines"
    return in_child(digest), dict(steps)


class Bench:
    """The trials, and the undisturbed run that they are compared with."""

    def __init__(self, home: pathlib.Path, disk: pathlib.Path, processes: int):
        self.home, self.disk, self.processes = home, disk, processes
        self.counts: collections.Counter = collections.Counter()
        write_corpus(home / "corpus")
        for name in ("warm", "undisturbed"):  # the first one fills the caches of tokens and programs
            start = Start(home, disk / name, 0, processes)
            marks = ("a device holds", "step 1/", f"step {EVAL_EVERY}/", f"step {EVAL_EVERY}:")
            seen = [start.when(text) for text in marks]
            assert start.end(DEADLINE) and not any(start.status), start.said
        self.times = {"start": seen[0], "compile": seen[1] - seen[0], "evaluation": seen[3] - seen[2]}
        self.rows = [self._rows_of(path) for path in start.rows]
        self.state, self.losses = outcome(start.workdir)
        assert [sorted(rows) for rows in self.rows] == [list(range(STEPS))] * processes
        assert sorted(self.losses) == list(range(1, STEPS + 1))

    @staticmethod
    def _rows_of(path: pathlib.Path) -> dict[int, str]:
        lines = [line.split() for line in path.read_text().splitlines()] if path.exists() else []
        return {int(step): digest for step, digest in lines}

    def trial(self, number: int, rng: random.Random) -> dict:
        """One trial; what was done, and what was wrong, if anything."""
        workdir = self.disk / f"run{number}"
        done: list[dict] = []
        wrong: list[str] = []
        self.harmed: set[int] = set()
        wanted = rng.choice((1, 1, 2))
        while len(done) < wanted:
            index = len(done)
            ways = (*WAYS, "stop") if self.processes > 1 else WAYS
            way = ways[(number + index) % len(ways)]
            phase = rng.choice(PHASES if index else [p for p in PHASES if p != "restore"])
            note = self._disturb(workdir, index, way, phase, rng, wrong)
            if note["hit"] or index:
                done.append(note)
            else:  # it was over before: once more
                shutil.rmtree(workdir)
                shutil.rmtree(self.home / f"{workdir.name}.notes")
        starts = len(done)
        first = resumes_at(workdir, self.harmed)
        last = Start(self.home, workdir, starts, self.processes)
        if not last.end(DEADLINE):
            wrong.append("hang: the last start did not end")
        elif any(last.status):
            wrong.append(f"the last start ended with {last.status}: {last.said[-600:]}")
        else:
            state, losses = outcome(workdir)
            if state != self.state:
                wrong.append("the final state differs")
            if losses != self.losses:
                wrong.append("the losses differ")
            self._compare_rows(last, first, wrong)
        shutil.rmtree(workdir)
        shutil.rmtree(last.notes)
        return {"trial": number, "disturbed": done, "wrong": wrong}

    def _disturb(self, workdir, index, way, phase, rng, wrong) -> dict:
        first = resumes_at(workdir, self.harmed)
        start = Start(self.home, workdir, index, self.processes)
        victim = rng.randrange(self.processes)
        hit = moment(start, phase, rng, self.times)
        note = dict(way=way, phase=phase, hit=hit)
        before = start.said
        filler = None
        if hit and way == "disk":
            filler = fill(self.disk)
        elif hit:
            start.signal({"term": signal.SIGTERM, "stop": signal.SIGSTOP}.get(way, signal.SIGKILL), victim)
        self.counts[f"{way} in {phase}" if hit else "over before"] += 1
        lost = way in ("kill", "truncate", "flip", "stop") and self.processes > 1
        waited = time.monotonic()
        if way == "stop" and hit:  # all others must end; then it is killed, as the launcher does
            others = [p for p in range(self.processes) if p != victim]
            while any(start.status[p] is None for p in others) and time.monotonic() - waited < BOUND:
                start.poll()
                time.sleep(0.01)
            if any(start.status[p] is None for p in others):
                wrong.append("hang: a stopped process kept the others")
            start.signal(signal.SIGKILL, victim)
        if not start.end(BOUND if lost and hit else DEADLINE):
            wrong.append(f"hang: {way} in {phase} did not end")
        if lost and hit and 2 in start.status:
            wrong.append(
                f"a lost process ended others with status 2, which a launcher takes for final: {start.said[-600:]}"
            )
        note["seconds"] = round(time.monotonic() - waited, 1)
        note["status"] = start.status
        if filler is not None:
            filler.unlink()
            if not set(start.status) <= {0, 2} and self.processes == 1:
                wrong.append(f"a full disk ended with {start.status}: {start.said[-600:]}")
        if way == "term" and hit:
            self._check_saved(start, before, wrong)
        if way in ("truncate", "flip") and hit and len(newest(workdir)) > 1:
            note["file"] = harm(newest(workdir)[0], way, rng)
            if pathlib.Path(note["file"]).name not in UNSEALED:
                self.harmed.add(newest(workdir)[0].stat().st_ino)
            self.counts["checkpoints harmed"] += 1
        self._compare_rows(start, first, wrong)
        return note

    def _check_saved(self, start: Start, before: str, wrong: list[str]) -> None:
        """A run that had begun its steps must have saved the one that it reached, and said so."""
        said = start.said
        saved = [line for line in said.splitlines() if "SIGTERM: saved step" in line]
        in_loop = "step 1/" in before or ("resumed" in before and "activations" in before)
        if saved:
            step = int(saved[0].split("saved step ")[1].split()[0])
            reached = max(map(int, re.findall(r"^step (\d+)/", said, re.MULTILINE)), default=0)
            there = [int(p.name) for p in newest(start.workdir)]
            if step not in there or step < reached or set(start.status) != {143}:
                wrong.append(f"SIGTERM: said {saved[0]!r}, has {there}, reached {reached}, ended {start.status}")
            self.counts["SIGTERM saved"] += 1
        elif in_loop and f"step {STEPS}:" not in said:
            wrong.append(f"SIGTERM in the loop was not saved: {start.status} {said[-600:]}")

    def _compare_rows(self, start: Start, first: int, wrong: list[str]) -> None:
        """Its batches must be those of an undisturbed run, one after another from the step `first` on."""
        for path, expected in zip(start.rows, self.rows, strict=True):
            found = self._rows_of(path)
            steps = sorted(found)
            if steps and steps != list(range(first, steps[-1] + 1)):
                wrong.append(f"steps {steps}, not from {first} on")
            if any(found[step] != expected[step] for step in steps):
                wrong.append("rows differ")
            self.counts["batches compared"] += len(steps)


def on_a_disk_of_its_own() -> bool:
    """Starts this program again in a namespace where it may mount a small disk; False if that is not allowed."""
    if os.environ.get("CHAOS_DISK") is None:
        inside = ["unshare", "--user", "--map-root-user", "--mount", "--propagation", "private"]
        if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
            return False
        os.environ["CHAOS_DISK"] = "1"
        os.execvp("unshare", [*inside, *sys.orig_argv])
    return True


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=1)
    flags = parser.parse_args()
    own_disk = on_a_disk_of_its_own()
    logging.disable(logging.CRITICAL)  # Orbax's, where it reads what other devices wrote
    from gpt4jax import train  # noqa: F401 # and all that it needs, before anything forks
    from gpt4jax.scaling import forecast  # noqa: F401
    from gpt4jax.training import init_from, loop, objective, report  # noqa: F401

    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        disk = home / "disk"
        disk.mkdir()
        if own_disk:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "none", disk], check=True)
        else:
            global WAYS
            WAYS = tuple(way for way in WAYS if way != "disk")
            print("no trial with a full disk: mounting one is not allowed here", flush=True)
        bench = Bench(home, disk, flags.processes)
        print(json.dumps({name: round(value, 2) for name, value in bench.times.items()}), flush=True)
        for number in range(flags.trials):
            found = bench.trial(number, random.Random(f"{flags.seed} {number}"))
            failed += bool(found["wrong"])
            print(json.dumps(found), flush=True)
        for name, count in sorted(bench.counts.items()):
            print(f"{count:>7,} {name}")
        print(f"{flags.trials} trials, {failed} failed")
        if own_disk:
            subprocess.run(["umount", disk], check=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
