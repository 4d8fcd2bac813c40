"""What a run says while it trains: metrics.jsonl, TensorBoard events, and a progress bar or plain lines."""

import contextlib
import json
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from typing import TextIO

import jax
from tqdm import tqdm

from gpt4jax import files


@contextlib.contextmanager
def _hidden(*names: str) -> Iterator[None]:
    """Modules that an import in here finds not installed, unless this process has them already."""
    absent = [name for name in names if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))  # type: ignore[arg-type]
    try:
        yield
    finally:
        for name in absent:
            del sys.modules[name]


with _hidden("torch", "google.cloud.storage"):  # tensorboardX imports them if it can: 3 s of each start, for nothing
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event, SessionLog
    from tensorboardX.summary import scalar


class MetricWriter:
    """Appends scalars to metrics.jsonl (one object a line: "step" and slash-named floats) and TensorBoard events."""

    def __init__(self, workdir: files.Path, first_step: int):
        self._file = files.Appender(workdir / "metrics.jsonl")
        # Not tensorboardX's SummaryWriter: its thread dies on a full disk, and the run then waits for it forever.
        self._outbox = files.Outbox(workdir)
        self._events = EventsWriter(str(self._outbox.folder / "events"))
        # TensorBoard drops the points that an earlier start of the run drew after this step.
        restart = SessionLog(status=SessionLog.START)
        self._events.write_event(Event(wall_time=time.time(), step=first_step + 1, session_log=restart))

    def write(self, step: int, scalars: Mapping[str, float]) -> None:
        """One line, on a disk when this returns; in an object store after `flush`, or half a minute later."""
        self._file.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._events.write_event(Event(wall_time=time.time(), step=step, summary=scalar(name, value)))
        self._events.flush()

    def flush(self) -> None:
        """Returns when all lines are where they are kept, as they must be before a checkpoint of their step is."""
        self._file.flush()
        self._outbox.send()

    def close(self) -> None:
        """Closes both files, whatever one of them meets."""
        with contextlib.ExitStack() as stack:
            stack.callback(self._file.close)
            stack.callback(self._outbox.close)
            stack.callback(self._events.close)  # the first


def read(workdir: files.Path) -> list[dict[str, float]]:
    """The lines of metrics.jsonl; a last line that a kill cut off is left out."""
    lines = (files.text(workdir / "metrics.jsonl") or "").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def rewind(workdir: files.Path, step: int) -> list[dict[str, float]]:
    """Drops the lines after `step`, which the resumed run will write again; returns those that stay."""
    kept = [line for line in read(workdir) if line["step"] <= step]
    path = workdir / "metrics.jsonl"
    if files.text(path) is not None:
        files.replace(path, "".join(json.dumps(line) + "\n" for line in kept))
    return kept


class Silent:
    """Takes what a process has to say that is not the first of its run."""

    def write(self, step: int, scalars: Mapping[str, float]) -> None: ...

    def flush(self) -> None: ...

    def advance(self, step: int) -> None: ...

    def report(self, step: int, facts: str) -> None: ...

    def say(self, line: str) -> None: ...


class Progress:
    """A bar on a terminal; without one, a line a report."""

    def __init__(self, num_steps: int, first_step: int, stream: TextIO | None = None):
        self._stream = stream or sys.stderr
        self._num_steps, self._first, self._start = num_steps, first_step, time.monotonic()
        terminal = self._stream.isatty()
        self._bar = tqdm(total=num_steps, initial=first_step, unit="step", file=self._stream) if terminal else None

    def advance(self, step: int) -> None:
        """Moves the bar to `step`."""
        if self._bar is not None:
            self._bar.update(step - self._bar.n)

    def report(self, step: int, facts: str) -> None:
        """Shows the newest figures, such as "loss 3.21 · 5,200 tokens/s"."""
        if self._bar is not None:
            self._bar.set_postfix_str(facts)
            return
        elapsed = time.monotonic() - self._start
        left = elapsed / max(1, step - self._first) * (self._num_steps - step)
        self.say(f"step {step}/{self._num_steps} · {facts} · {duration(left)} left")

    def say(self, line: str) -> None:
        """A line of its own, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=self._stream)
        else:
            print(line, file=self._stream, flush=True)

    def close(self) -> None:
        """Leaves the bar as it stands."""
        if self._bar is not None:
            self._bar.close()


def duration(seconds: float) -> str:
    """Seconds as "1h 02m", "3m 04s" or "5s"."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}h {minute:02d}m" if hours else f"{minute}m {second:02d}s" if minute else f"{second}s"


def peak_memory_bytes() -> tuple[str, int]:
    """The most memory used so far: ("device", the fullest local device's) where it is known, else ("process", RSS)."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    peaks = [s["peak_bytes_in_use"] for s in stats if s and "peak_bytes_in_use" in s]
    if peaks and jax.default_backend() != "cpu":
        return "device", max(peaks)
    unit = 1 if sys.platform == "darwin" else 1024  # macOS counts bytes, Linux KiB
    return "process", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
