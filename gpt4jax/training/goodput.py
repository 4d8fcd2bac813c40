"""Where the wall time of a run goes, over all its starts: `goodput.jsonl` beside the run.

    python -m gpt4jax.training.goodput DIR

At every moment of a start exactly one bucket runs, so that they add up to its wall time:

    start_up      from the job's first line to its first step, but for what has a bucket of its own: data, devices
    compile       programs, whenever they are compiled
    restore       reading a checkpoint
    data_wait     waiting for the rows of a step
    step          steps, and what a run does between them
    evaluation    on what is held out
    save          what a checkpoint blocks; writing goes on beside the steps

From these lines `account` finds two more: `lost`, what later starts had to do again, and `down`, from a start's last
line to the next start. (What a killed start did after its last line is in `down`: a second, or 0.5% of its time; half a
minute in an object store, which is written to no oftener.)
"""

import argparse
import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from gpt4jax import files, job
from gpt4jax.errors import UserError

FILE = "goodput.jsonl"
BUCKETS = ("start_up", "compile", "restore", "data_wait", "step", "evaluation", "save")
_COMPILED = "/jax/core/compile/backend_compile_duration"


class Clock:
    """The buckets of one start; `began` is when it began, by `now`."""

    def __init__(self, began: float, now: Callable[[], float] = time.monotonic):
        self._now, self._bucket, self._since = now, BUCKETS[0], began
        self.seconds = dict.fromkeys(BUCKETS, 0.0)
        self._listening = True
        jax.monitoring.register_event_duration_secs_listener(self._compiled)

    def switch(self, bucket: str) -> str:
        """Lets another bucket run from now on; returns the one that ran."""
        now, old = self._now(), self._bucket
        self.seconds[old] += now - self._since
        self._bucket, self._since = bucket, now
        return old

    @contextlib.contextmanager
    def __call__(self, bucket: str) -> Iterator[None]:
        """Lets a bucket run inside the `with`, and then the one that ran before."""
        old = self.switch(bucket)
        try:
            yield
        finally:
            self.switch(old)

    def read(self) -> dict[str, float]:
        """Seconds of each bucket up to now."""
        self.switch(self._bucket)
        return dict(self.seconds)

    def close(self) -> None:
        """Compilations are not this clock's any more."""
        self._listening = False

    def _compiled(self, event: str, duration_secs: float, **_: Any) -> None:
        # A program is compiled in the midst of something else, whose bucket has counted that time, or is about to.
        if self._listening and event == _COMPILED and self._bucket != "compile":
            self.seconds["compile"] += duration_secs
            self.seconds[self._bucket] -= duration_secs


class Journal:
    """Writes what a clock reads, a line at a time: {"start": ..., "step": ..., "time": ..., "seconds": {BUCKET: ...}}.

    `start` is the time at which the start began, `time` that of the line, both in seconds since 1970.
    """

    def __init__(self, clock: Clock, workdir: files.Path, first_step: int, wall: Callable[[], float] = time.time):
        self._clock, self._wall = clock, wall
        self._file = files.Appender(workdir / FILE)
        self._start = wall() - sum(clock.read().values())
        self._written = 0.0
        self._file.write("\n")  # a kill may have cut the last line of an earlier start
        self.line(first_step)

    def line(self, step: int, *, now: bool = True) -> None:
        """Writes a line after `step` steps; if not `now`, only if the last one is old: by a second, or 0.5% of all."""
        seconds = self._clock.read()
        total = sum(seconds.values())
        if now or total - self._written >= max(1.0, total / 200):
            self._written = total
            rounded = {bucket: round(value, 4) for bucket, value in seconds.items()}
            fields = {"start": round(self._start, 3), "step": step, "time": round(self._wall(), 3), "seconds": rounded}
            self._file.write(json.dumps(fields) + "\n")

    def flush(self) -> None:
        """Returns when all lines are where they are kept."""
        self._file.flush()

    def close(self) -> None:
        """Closes the file; the clock counts no compilation any more."""
        try:
            self._file.close()
        finally:
            self._clock.close()


class Account(NamedTuple):
    """Seconds by bucket, `lost` and `down` among them; the wall time from the first start to the last line; starts."""

    seconds: dict[str, float]
    wall: float
    starts: int


class _Stretch(NamedTuple):
    step: int  # at its end
    seconds: dict[str, float]


def account(lines: Iterable[Mapping[str, Any]]) -> Account:
    """What all starts of a run have spent; a start is known by its `start`, and its first line says where it resumed.

    What comes after the step at which a later start resumed is lost, whatever it was spent on.
    """
    starts: dict[float, list[Mapping[str, Any]]] = {}
    for line in lines:
        starts.setdefault(line["start"], []).append(line)
    kept: list[_Stretch] = []
    lost = down = 0.0
    end = 0.0
    for number, (start, own) in enumerate(sorted(starts.items())):
        down += max(0.0, start - end) if number else 0.0
        again = [stretch for stretch in kept if stretch.step > own[0]["step"]]
        lost += sum(sum(stretch.seconds.values()) for stretch in again)
        kept = [stretch for stretch in kept if stretch.step <= own[0]["step"]]
        before: Mapping[str, float] = dict.fromkeys(BUCKETS, 0.0)
        for line in own:
            kept.append(_Stretch(line["step"], {b: line["seconds"][b] - before[b] for b in BUCKETS}))
            before = line["seconds"]
        end = own[-1]["time"]
    seconds = {bucket: sum(stretch.seconds[bucket] for stretch in kept) for bucket in BUCKETS}
    wall = end - min(starts) if starts else 0.0
    return Account(seconds | {"lost": lost, "down": down}, wall, len(starts))


def words(found: Account) -> str:
    """An account for a person."""
    out = [f"{found.starts} start{'s' * (found.starts != 1)}, {found.wall:,.1f} s from the first to the last line"]
    out += [f"{name:<11}{value:>12,.1f} s {value / found.wall:>8.2%}" for name, value in found.seconds.items()]
    total = sum(found.seconds.values())
    out.append(f"{'together':<11}{total:>12,.1f} s {total / found.wall:>8.2%}")
    return "\n".join(out)


def read(folder: files.Path) -> list[dict[str, Any]]:
    """The lines of a run; what a kill cut off is left out.

    Raises:
        UserError: there are none.
    """
    path = folder / FILE
    text = files.text(path)
    if text is None:
        raise UserError(f"{folder} has no {FILE}: no run of gpt4jax.train has begun there")
    found = []
    for line in text.split("\n"):
        with contextlib.suppress(ValueError):  # nothing, or a line that a kill cut off
            fields = json.loads(line)
            if isinstance(fields, dict) and {"start", "step", "time", "seconds"} <= fields.keys():
                found.append(fields)
    if not found:
        raise UserError(f"{path} holds no line yet")
    return found


def main(argv: Sequence[str]) -> int:
    """Prints the account of a run."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.training.goodput", description=__doc__.partition("\n")[0])
    parser.add_argument("workdir", type=files.user_path, help="of a run of gpt4jax.train")
    flags = parser.parse_args(argv)
    print(words(account(read(flags.workdir))))
    return 0


if __name__ == "__main__":
    job.main(main)
