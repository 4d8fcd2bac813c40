"""The loop of steps: evaluations, saves, a trace, and what stops a run."""

import pathlib
import time
from collections.abc import Callable

import jax

from gpt4jax.data import loader
from gpt4jax.parallel import partition
from gpt4jax.training.step import Batch, bits_per_byte


class Loop:
    """The steps of a run with its evaluations and saves, and what stops it."""

    def __init__(self, config, mesh, data, train_step, eval_step, checkpoints, log, writer, progress):
        self.config, self.mesh, self.data = config, mesh, data
        self.train_step, self.eval_step = train_step, eval_step
        self.checkpoints, self.log, self.writer, self.progress = checkpoints, log, writer, progress
        self.finished = False
        self.evaluation: dict[str, float] = {}  # the newest

    def run(self, state, history, stop, profile_dir):
        """Trains from `state` to the last step, or until asked to stop; the returned state is saved."""
        config, first_step = self.config, int(state.step)
        batches = loader.train_batches(
            self.data.rows["train"], seed=config.seed, batch_size=config.batch_size, first_step=first_step,
            num_steps=config.num_steps, sharding=partition.batch_sharding(self.mesh), prefetch=config.data.prefetch,
        )  # fmt: skip
        saved = self.checkpoints.latest()
        evaluated = {line["step"]: line for line in history if "eval/heldout/loss" in line}
        self.evaluation = evaluated.get(first_step, {})
        tracer = Tracer(profile_dir, first_step, self.progress.say)
        for step in range(first_step, config.num_steps + 1):
            # Step `step` is done; a resumed run may have been stopped just here.
            last = step == config.num_steps
            if _due(step, config.eval.eval_every_steps, last) and step not in evaluated:
                self.evaluate(state.params, step, stop)
            due = _due(step, config.checkpoint.checkpoint_every_steps, last) or stop.received is not None
            if due and step != saved:
                self.save(state)
            if last or stop.received is not None:
                break
            waiting = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - waiting
            tracer.before(step)
            state, scalars = self.train_step(state, Batch(**{f"{name}_bt": array for name, array in batch.items()}))
            tracer.after(step, scalars)
            self.log.push(step + 1, scalars, waited)
        self.log.flush()
        self.finished = step == config.num_steps and (stop.received is None or bool(self.evaluation))
        return state

    def save(self, state):
        """Starts to write a checkpoint, of a state whose loss is known to be finite."""
        self.log.flush()
        with self.log.paused():
            self.checkpoints.save(state)

    def evaluate(self, params, step, stop):
        """One pass over the held-out rows; given up if asked to stop, to be done on resuming."""
        self.log.flush()
        batches = loader.eval_batches(
            self.data.rows["eval"], batch_size=self.config.eval.batch_size or self.config.batch_size,
            sharding=partition.batch_sharding(self.mesh), prefetch=self.config.data.prefetch,
        )  # fmt: skip
        totals = []
        with self.log.paused():
            for batch in batches:
                if stop.received is not None:
                    return
                totals.append(self.eval_step(params, Batch(**{f"{name}_bt": a for name, a in batch.items()})))
                if len(totals) > 1:  # keeps the devices one batch ahead, and a stop close
                    jax.block_until_ready(totals[-2])
            nll, tokens, num_bytes = (sum(map(float, sums)) for sums in zip(*totals, strict=True))
        self.evaluation = {
            "eval/heldout/loss": nll / tokens,
            "eval/heldout/bits_per_byte": bits_per_byte(nll, num_bytes),
        }
        self.writer.write(step, self.evaluation)
        shown = self.evaluation
        self.progress.say(
            f"step {step}: held-out {shown['eval/heldout/loss']:.4f} nats/token, "
            f"{shown['eval/heldout/bits_per_byte']:.4f} bits/byte"
        )


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step > 0 and step % every == 0)


class Tracer:
    """Traces steps 5 to 9 after the first, past compilation, into a folder (None: does nothing)."""

    def __init__(self, folder: pathlib.Path | None, first_step: int, say: Callable[[str], None]):
        self._folder, self._start, self._last, self._say = folder, first_step + 5, first_step + 9, say

    def before(self, step: int) -> None:
        """Starts the trace if `step` is its first."""
        if self._folder is not None and step == self._start:
            jax.profiler.start_trace(str(self._folder))

    def after(self, step: int, scalars) -> None:
        """Ends it after its last, once that has run."""
        if self._folder is not None and step == self._last:
            jax.block_until_ready(scalars)
            jax.profiler.stop_trace()
            self._say(f"a trace of steps {self._start} to {self._last} is in {self._folder}")
