"""A run: its state restored or begun, and the loop over its steps, with all that keeps watch over them."""

import contextlib
import faulthandler
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from gpt4jax import files, job, signals
from gpt4jax.parallel import processes
from gpt4jax.training import checkpoint, corruption, goodput, metrics, report
from gpt4jax.training.log import TrainLog
from gpt4jax.training.loop import Compiled, Loop, Watch, evaluations


class Program(NamedTuple):
    """What a run consists of.

    Attributes:
        rows, batch_of: of training, as `Objective` has them.
        step: from (state, batch, *frozen) to the next state and scalars; a jitted function is compiled at its first
            step, any other is called as it is.
        measure: from (parameters, stop) to what an evaluation finds.
        abstract: the state's shapes, with shardings.
        begin: makes the state before the first step.
        frozen: what the step needs and does not change.
        flops_per_token, peak_flops: of a step's tokens, and of a device; None: utilisation is not told.
        check: of what devices compute.
        from_foreign: the run starts from weights of others: how good they are is measured before the first step.
    """

    rows: Any
    batch_of: Callable[[Any], Any]
    step: Callable
    measure: Callable
    abstract: Any
    begin: Callable[[], Any]
    frozen: tuple[Any, ...] = ()
    flops_per_token: float = 0.0
    peak_flops: float | None = None
    check: corruption.Check | None = None
    from_foreign: bool = False


class Ended(NamedTuple):
    """How a run ended: its state, what its loop and log know, and the exit status if a signal stopped it."""

    state: Any
    loop: Loop
    log: TrainLog
    stopped: int | None


def run(config, mesh: Mesh, workdir: files.Path, program: Program, clock: goodput.Clock, *, profile=False) -> Ended:
    """Takes a run from where its newest checkpoint is (or its beginning) to its last step; all is saved at the end.

    Raises:
        UserError: a damaged workdir, a state that is not finite, a save that fails.
    """
    say = job.say if processes.first() else job.silent
    say(report.held(program.abstract))
    with contextlib.ExitStack() as stack:  # whatever happens, a save that has begun is finished
        # --- State: restored in the order that checkpoint.py writes down, or begun.
        checkpoints = stack.enter_context(contextlib.closing(checkpoint.Checkpoints(workdir, config.checkpoint.keep)))
        with clock("restore"):
            state = checkpoints.restore(program.abstract, say)
        if state is None:
            state = program.begin()
        first_step = int(state.step)
        if first_step:
            say(f"resumed at step {first_step}")
        evaluated = processes.of_first(lambda: evaluations(metrics.rewind(workdir, first_step)))

        # --- Steps.
        writer: metrics.MetricWriter | metrics.Silent = metrics.Silent()
        progress: metrics.Progress | metrics.Silent = metrics.Silent()
        journal = None
        if processes.first():
            writer = stack.enter_context(contextlib.closing(metrics.MetricWriter(workdir, first_step)))
            progress = stack.enter_context(contextlib.closing(metrics.Progress(config.num_steps, first_step)))
            journal = stack.enter_context(contextlib.closing(goodput.Journal(clock, workdir, first_step)))
        log = TrainLog(
            writer, progress, every=config.eval.log_every_steps, flops_per_token=program.flops_per_token,
            peak_flops=program.peak_flops, last_saved=checkpoints.last_saved,
        )  # fmt: skip
        step = program.step
        if hasattr(step, "lower"):
            step = Compiled(step, clock, progress.say)
        loop = Loop(
            config, mesh, program.rows, program.batch_of, step, program.frozen, program.measure, checkpoints, log,
            writer, progress, Watch(clock, journal, program.check), program.from_foreign,
        )  # fmt: skip
        dog = stack.enter_context(contextlib.closing(processes.Watchdog(config.mesh.stall_seconds, _stalled)))
        together = processes.stop_together if processes.joined() else None
        requests = signals.StopRequest(together=together, on_poll=dog.beat)
        with jax.set_mesh(mesh), processes.notices(), requests as stop:
            state = loop.run(state, evaluated, stop, workdir / "profile" if profile and processes.first() else None)
            with clock("save"):
                checkpoints.wait()
        clock.switch("step")
        if journal is not None:
            journal.line(int(state.step))
    if stop.received is None or loop.finished:
        return Ended(state, loop, log, None)
    say(f"{stop.received.name}: saved step {int(state.step)} of {config.num_steps}; the same command resumes")
    processes.wait()
    return Ended(state, loop, log, signals.INTERRUPTED if stop.received.name == "SIGINT" else signals.TERMINATED)


def _stalled() -> None:
    """Ends a run in which nothing happens any more."""

    def words() -> str:
        faulthandler.dump_traceback(all_threads=True)
        return "no step and no batch of an evaluation for mesh.stall_seconds; where each thread stands is above"

    processes.leave(job.FAILED, words)
