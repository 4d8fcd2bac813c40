"""From a step's scalars to the run's figures: finiteness, throughput, utilisation."""

import math
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import NoReturn

import jax

from gpt4jax import files
from gpt4jax.errors import UserError
from gpt4jax.model.flops import mfu
from gpt4jax.training.metrics import MetricWriter, Progress, Silent
from gpt4jax.training.step import bits_per_byte


class TrainLog:
    """Fetches a step's scalars once the next step is dispatched, so that the devices never wait for us.

    Throughput counts the time of steps only: compilation, evaluation and the start of a save are left out.
    """

    def __init__(
        self,
        writer: MetricWriter | Silent,
        progress: Progress | Silent,
        *,
        every: int,
        flops_per_token: float,
        peak_flops: float | None,
        last_saved: Callable[[], files.Path | None],
    ):
        self._writer, self._progress, self._every = writer, progress, every
        self._flops, self._peak = flops_per_token, peak_flops
        self._last_saved = last_saved
        self._pending: tuple[int, Mapping[str, jax.Array | float]] | None = None
        self._last_finite: int | None = None
        self._unwritten: tuple[int, dict[str, float]] | None = None  # the newest step, if it has no line yet
        self._waited = self._tokens = self._bytes = self._nll = 0.0
        self._window_start: float | None = None  # set when the first step, with its compilation, is over
        self.total_tokens, self.total_seconds = 0.0, 0.0

    def push(self, step: int, scalars: Mapping[str, jax.Array | float], waited: float) -> None:
        """Takes the scalars of a step just dispatched, and fetches those of the step before; numbers at once."""
        pending, self._pending = self._pending, (step, scalars)
        self._waited += waited
        self._fetch(pending)
        if not any(isinstance(value, jax.Array) for value in scalars.values()):  # the step is over: so is its time
            self.flush()

    def flush(self, *, end: bool = False) -> None:
        """Fetches what is pending: before a save or an evaluation, and at the end, which always writes a line."""
        pending, self._pending = self._pending, None
        self._fetch(pending)
        if end and self._unwritten is not None:
            self._write(*self._unwritten)

    @contextmanager
    def paused(self):
        """Time in here is no step's time."""
        start = time.monotonic()
        yield
        if self._window_start is not None:
            self._window_start += time.monotonic() - start

    def _fetch(self, pending: tuple[int, Mapping[str, jax.Array | float]] | None) -> None:
        if pending is None:
            return
        step, scalars = pending[0], {name: float(value) for name, value in jax.device_get(pending[1]).items()}
        if not (math.isfinite(scalars["loss"]) and math.isfinite(scalars["grad_norm"])):
            self.not_finite(step, f"loss {scalars['loss']}, gradient norm {scalars['grad_norm']}")
        self._last_finite = step
        self._tokens += scalars["tokens"]
        self._bytes += scalars["bytes"]
        self._nll += scalars["loss"] * scalars["targets"]
        self._progress.advance(step)
        self._unwritten = step, scalars
        if self._window_start is None or (self._every and step % self._every == 0):
            self._write(step, scalars)

    def _write(self, step: int, scalars: dict[str, float]) -> None:
        """A line about the steps since the last one; the first has no speed, for compilation was in its time."""
        now = time.monotonic()
        out = {
            "train/loss": scalars["loss"],
            # A contrastive loss is of pairs, which have no bytes.
            **({"train/bits_per_byte": bits_per_byte(self._nll, self._bytes)} if self._bytes else {}),
            "learning/grad_norm": scalars["grad_norm"],
            "learning/learning_rate": scalars["learning_rate"],
            **{name: value for name, value in scalars.items() if "/" in name},
        }
        facts = f"loss {scalars['loss']:.4f}"
        if self._window_start is not None:
            seconds = now - self._window_start
            rate = self._tokens / seconds
            self.total_tokens += self._tokens
            self.total_seconds += seconds
            out["perf/tokens_per_second"] = rate
            out["perf/data_wait_fraction"] = self._waited / seconds
            facts += f" · {rate:,.0f} tokens/s"
            if self._peak is not None:
                out["perf/mfu"] = mfu(rate, self._flops, jax.device_count(), self._peak)
                facts += f" · MFU {out['perf/mfu']:.1%}"
        self._writer.write(step, out)
        self._progress.report(step, facts)
        self._window_start, self._unwritten = now, None
        self._waited = self._tokens = self._bytes = self._nll = 0.0

    def not_finite(self, step: int, what: str) -> NoReturn:
        """Stops the run.

        Raises:
            UserError: the steps between which it happened, and the last good checkpoint.
        """
        since = "the start of this run" if self._last_finite is None else f"step {self._last_finite}"
        saved = self._last_saved()
        good = "nothing was saved yet" if saved is None else f"the last good checkpoint is {saved}"
        raise UserError(f"not finite at step {step} ({what}); the loss was finite up to {since}; {good}")
