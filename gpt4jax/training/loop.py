"""The loop of steps: evaluations, saves, a trace, and what stops a run."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax import files
from gpt4jax.data import loader
from gpt4jax.parallel import partition
from gpt4jax.training import corruption, evaluation, goodput


class Watch(NamedTuple):
    """What keeps watch over a run: over its time (`goodput`), and over what its devices compute (`corruption`)."""

    clock: goodput.Clock
    journal: goodput.Journal | None  # of the first process
    check: corruption.Check | None = None


class Compiled:
    """A jitted step: the first one compiles it, and says what that found out."""

    def __init__(self, step, clock: goodput.Clock, say: Callable[[str], None]):
        self._step, self._clock, self._say = step, clock, say
        self._compiled: jax.stages.Compiled | None = None

    def __call__(self, state, *arguments):
        """The step."""
        if self._compiled is None:
            with self._clock("compile"):
                self._compiled = self._step.lower(state, *arguments).compile()
            memory = self._compiled.memory_analysis()
            if memory is not None:
                self._say(f"activations and gradients: {memory.temp_size_in_bytes / 2**20:,.1f} MiB a device")
        return self._compiled(state, *arguments)


class Loop:
    """The steps of a run with its evaluations and saves, and what stops it."""

    def __init__(
        self, config, mesh, rows, batch_of, step, frozen, evaluation_of, checkpoints, log, writer, progress,
        watch: Watch, from_foreign: bool,
    ):  # fmt: skip
        self.config, self.mesh, self.rows, self.batch_of = config, mesh, rows, batch_of
        self.step, self.frozen, self.evaluation_of = step, frozen, evaluation_of
        self.checkpoints, self.log, self.writer, self.progress = checkpoints, log, writer, progress
        self.clock, self.journal, self.check = watch
        self.from_foreign = from_foreign
        self.finished = False
        self.evaluation: dict[str, float] = {}  # the newest

    def run(self, state, evaluated, stop, profile_dir):
        """Trains from `state` to the last step, or until asked to stop; the returned state is saved.

        `evaluated` has the `evaluations` of earlier starts, which are not done again.
        """
        config, first_step = self.config, int(state.step)
        self.clock.switch("step")
        done = {line["step"]: line for line in evaluated}
        batches = loader.train_batches(
            self.rows, seed=config.seed, batch_size=config.batch_size, first_step=first_step,
            num_steps=config.num_steps, sharding=partition.batch_sharding(self.mesh), prefetch=config.data.prefetch,
        )  # fmt: skip
        saved = first_step if self.checkpoints.restored else None
        self.evaluation = done.get(first_step, {})
        tracer = Tracer(profile_dir, first_step, self.progress.say)
        for step in range(first_step, config.num_steps + 1):
            # Step `step` is done; a resumed run may have been stopped just here.
            last = step == config.num_steps
            foreign = step == 0 and self.from_foreign  # how good are they before any step of ours?
            if (foreign or _due(step, config.eval.eval_every_steps, last)) and step not in done:
                self.evaluate(state.params, step, stop)
            stopping = stop.poll()  # asked once: what is saved and what ends the run must be the same step
            if (_due(step, config.checkpoint.checkpoint_every_steps, last) or stopping) and step != saved:
                self.save(state)
            if last or stopping:
                break
            waiting = time.monotonic()
            with self.clock("data_wait"):
                batch = next(batches)
            waited = time.monotonic() - waiting
            if self.check is not None and step % config.mesh.verify_every_steps == 0:
                self.verify(self.check, state, self.batch_of(batch))
            tracer.before(step)
            state, scalars = self.step(state, self.batch_of(batch), *self.frozen)
            tracer.after(step, scalars)
            self.log.push(step + 1, scalars, waited)
            self.checkpoints.check()  # rather now than at the next save, hours of training later
            if self.journal is not None:
                self.journal.line(step + 1, now=False)
        tracer.close()
        self.log.flush(end=True)
        self.finished = step == config.num_steps and (stop.received is None or bool(self.evaluation))
        return state

    def verify(self, check, state, batch):
        """Compares copies of the state, and the step that follows with itself."""
        self.log.flush()
        with self.log.paused():
            check.copies(state)
            check.step(state, batch)

    def save(self, state):
        """Starts to write a checkpoint, unless the parameters are not finite.

        The loss of a step is that of the parameters before it: a finite one says nothing of what is saved.
        """
        self.log.flush()
        with self.log.paused(), self.clock("save"):
            if not _all_finite(state.params):
                self.log.not_finite(int(state.step), "parameters that are not finite")
            if self.check is not None:
                self.check.copies(state)
            self.writer.flush()
            self.checkpoints.save(state)
        if self.journal is not None:
            self.journal.line(int(state.step))
            self.journal.flush()

    def evaluate(self, params, step, stop):
        """One pass over what is held out; given up if asked to stop, to be done on resuming."""
        self.log.flush()
        self.evaluation = {}
        with self.log.paused(), self.clock("evaluation"):
            found = self.evaluation_of(params, stop)
        if found is None:
            return
        for name, value in found.items():
            if not math.isfinite(value):
                self.log.not_finite(step, f"{evaluation.word(name)} {value}")
        self.evaluation = found
        if not found:  # nothing is held out
            return
        self.writer.write(step, found)
        self.progress.say(f"step {step}: {evaluation.words(found)}")


def evaluations(lines: Sequence[Mapping[str, float]]) -> list[Mapping[str, float]]:
    """Those of the lines of metrics.jsonl that are of evaluations."""
    return [line for line in lines if any(name.startswith("eval/") for name in line)]


@jax.jit
def _all_finite(params) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step > 0 and step % every == 0)


class Tracer:
    """Traces steps 5 to 9 after the first, past compilation, into a folder (None: does nothing)."""

    def __init__(self, folder: files.Path | None, first_step: int, say: Callable[[str], None]):
        self._outbox = None if folder is None else files.Outbox(folder)
        self._start, self._last, self._say = first_step + 5, first_step + 9, say
        self._running = False

    def before(self, step: int) -> None:
        """Starts the trace if `step` is its first."""
        if self._outbox is not None and step == self._start:
            jax.profiler.start_trace(str(self._outbox.folder))
            self._running = True

    def after(self, step: int, scalars: Any) -> None:
        """Ends it after its last, once that has run."""
        if step == self._last and self._running:
            jax.block_until_ready(scalars)
            self.close()

    def close(self) -> None:
        """Ends a trace that is running, and says where it is, or that there was none."""
        if self._outbox is None:
            return
        if self._running:
            jax.profiler.stop_trace()
            self._running = False
            self._say(f"a trace of steps from {self._start} on is in the workdir's profile folder")
        else:
            self._say("no trace: the run ended before its sixth step")
        self._outbox.close()
        self._outbox = None
