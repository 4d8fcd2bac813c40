"""Training runs side by side: a process for each accelerator, or for each share of a CPU's cores."""

import contextlib
import math
import multiprocessing
import os
import pathlib
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, NamedTuple

from gpt4jax import config as configuration
from gpt4jax import job
from gpt4jax.errors import UserError
from gpt4jax.scaling.forecast import Result, provenance
from gpt4jax.scaling.ladder import Run
from gpt4jax.signals import INTERRUPTED, TERMINATED, Terminated
from gpt4jax.training import checkpoint, metrics

LOG, CODE = "log.txt", "code.txt"  # beside a run's folder: its words, and what code and versions each start had
FAILED = "failed.txt"  # in it: why it came to no loss
MAY_CHANGE = ("checkpoint", "mesh", "data.cache_dir", "data.prefetch")  # what a run's result does not depend on
_VISIBLE = {"gpu": "CUDA_VISIBLE_DEVICES", "tpu": "TPU_VISIBLE_CHIPS"}


Train = Callable[[Any, pathlib.Path], int]


class Place(NamedTuple):
    """Where a worker runs: environment variables to set, and the cores it may use (empty: all)."""

    environment: dict[str, str]
    cores: tuple[int, ...]


def places(workers: int, platform: str, devices: int) -> list[Place]:
    """One place for each worker; 0 workers: as many as there are accelerators, or two that share a CPU's cores.

    Raises:
        UserError: more workers than devices or cores.
    """
    if platform in _VISIBLE:
        workers = workers or devices
        if workers > devices:
            raise UserError(f"ladder.workers is {workers}, and there are {devices} devices of kind {platform}")
        name = _VISIBLE[platform]
        seen = os.environ[name].split(",") if os.environ.get(name) else [str(i) for i in range(devices)]
        alone = {"TPU_CHIPS_PER_PROCESS_BOUNDS": "1,1,1", "TPU_PROCESS_BOUNDS": "1,1,1"} if platform == "tpu" else {}
        return [Place({name: seen[i], **alone}, ()) for i in range(workers)]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    workers = workers or min(2, len(cores))
    if workers > len(cores):
        raise UserError(f"ladder.workers is {workers}, and there are {len(cores)} cores")
    return [Place({}, tuple(cores[i::workers])) for i in range(workers)]


def places_of_targets(seeds: int, platform: str) -> list[Place]:
    """Where the seeds of a target run: each with all devices, one after the other.

    On a CPU several run side by side: its cores do more apart than together. `ladder.workers` has no part in it: a run
    that is resumed has as many cores as before.
    """
    return places(0, platform, 1) if platform == "cpu" and seeds > 1 else [Place({}, ())]


def result(run: Run, folder: pathlib.Path) -> Result | None:
    """What a run in its folder came to; None if it has not ended.

    Raises:
        UserError: the folder holds a run of another config.
    """
    saved = folder / run.name / "config.json"
    old = configuration.from_json(saved) if saved.is_file() else None
    if old is not None and (other := configuration.differences(old, run.config.to_dict(), MAY_CHANGE)):
        raise UserError(f"{folder / run.name} is a run of another config: {'; '.join(other)}")
    failed = folder / run.name / FAILED
    if failed.is_file():
        return Result(run, math.nan, failed.read_text().strip())
    lines = [line for line in metrics.read(folder / run.name) if "eval/heldout/loss" in line]
    last = run.config.num_steps
    if not lines or lines[-1]["step"] != last or last not in checkpoint.saved_steps(folder / run.name):
        return None
    first, loss = lines[0]["eval/heldout/loss"], lines[-1]["eval/heldout/loss"]
    if len(lines) > 1 and loss > first:
        return Result(run, math.nan, f"its loss rose from {first:.4f} to {loss:.4f}")
    return Result(run, loss)


def train_all(
    runs: Sequence[Run], folder: pathlib.Path, where: Sequence[Place], train: Train, say: Callable[[str], None]
) -> list[Result]:
    """Trains the runs that have not ended, the dearest first; a run that diverges is a result without a loss.

    `train(config, workdir)` is the job, a function of a module (`gpt4jax.train.train`) or a partial of one: each worker
    imports it.

    Raises:
        UserError: what is wrong with the config or the data, or a worker that died.
        KeyboardInterrupt: asked to stop; every run has saved what it can resume from.
    """
    results = {run.name: result(run, folder) for run in runs}
    left = sorted((run for run in runs if results[run.name] is None), key=lambda run: -run.compute)
    if left:
        with _Workers(where, len(left)) as workers:
            for number, (run, status) in enumerate(workers.train(left, folder, train), 1):
                if status in (INTERRUPTED, TERMINATED):
                    raise Terminated if workers.asked == signal.SIGTERM else KeyboardInterrupt
                results[run.name] = found = result(run, folder)
                if found is None:
                    raise UserError(f"{run.name}: {status} (its words are in {folder / run.name}.{LOG})")
                shown = f"{found.loss:.4f} nats/token" if found.ended else found.reason
                say(f"{number}/{len(left)} {run.name}: {shown}")
    return [found for run in runs if (found := results[run.name]) is not None]


class _Workers:
    """Processes that train runs. SIGTERM and Ctrl-C stop training at its next step, and nothing more is begun.

    On leaving, for whatever reason, all of them have saved and ended. `asked` is the signal that came, if one did.
    """

    def __init__(self, where: Sequence[Place], most: int):
        spawn = multiprocessing.get_context("spawn")  # a fork of a process that has a JAX would hang
        self._stop, queue = spawn.Event(), spawn.Queue()
        for place in where:
            queue.put(place)
        self.asked = 0
        self._others = set(multiprocessing.active_children())  # a notebook's own, say
        # Runs of one shape share the programs of their steps: compiling takes longer than training a small run.
        self._compiled = tempfile.TemporaryDirectory(prefix="gpt4jax-compiled-", ignore_cleanup_errors=True)
        settings = queue, self._stop, self._compiled.name
        self._pool = ProcessPoolExecutor(min(len(where), most), spawn, _settle, settings)

    def train(self, runs: Sequence[Run], folder: pathlib.Path, train: Train) -> Iterator[tuple[Run, int | str]]:
        """Each run with the status it ended with, as they end."""
        code = provenance()
        submit = self._pool.submit
        futures = {submit(_train, train, run.config.to_dict(), folder / run.name, code): run for run in runs}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BrokenProcessPool as error:
            raise UserError(f"a worker was killed (out of memory?); its run's last words are in {folder}") from error

    def __enter__(self) -> "_Workers":
        self._before = {number: signal.signal(number, self._signalled) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None:
            self._end()
        self._pool.shutdown(cancel_futures=True)
        self._compiled.cleanup()
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _signalled(self, number: int, *_: object) -> None:
        self.asked = number
        self._end()

    def _end(self) -> None:
        self._stop.set()
        for child in set(multiprocessing.active_children()) - self._others:
            child.terminate()


def other_code(runs: Sequence[Run], folder: pathlib.Path, expected: str) -> list[str]:
    """Which runs were trained, in part or whole, by something else than this provenance, or do not say by what."""
    found = []
    for run in runs:
        path = folder / f"{run.name}.{CODE}"
        if path.is_file() and set(path.read_text().splitlines()) != {expected}:
            found.append(f"{run.name} was trained with other code or versions")
        elif not path.is_file() and result(run, folder) is not None:
            found.append(f"{run.name} does not say by what code it was trained")
    return found


def machine() -> tuple[str, int]:
    """The platform that JAX finds here and its number of devices, asked in a process of its own that then ends.

    A process that has looked at a GPU holds its memory.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(_machine).result()


def _machine() -> tuple[str, int]:
    import jax

    return jax.default_backend(), jax.local_device_count()


_stopped: list[Any] = []  # in a worker: the event that says that no run shall begin


def stopping() -> bool:
    """Whether this process is a worker that has been asked to stop."""
    return bool(_stopped) and _stopped[0].is_set()


def _settle(queue, stop, compiled: str) -> None:
    """Takes a place, before this worker's JAX looks for devices; keeps compiled programs in the folder `compiled`."""
    for number in (signal.SIGTERM, signal.SIGINT):  # between runs: a worker that died with the queue would block all
        signal.signal(number, signal.SIG_IGN)
    job.quiet()
    _stopped.append(stop)
    place = queue.get()
    os.environ.update(place.environment, JAX_NUM_PROCESSES="1")  # a run of its own, on whatever cluster this is
    import jax

    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # else the user has one
        jax.config.update("jax_compilation_cache_dir", compiled)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)
    if place.cores and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, place.cores)


def _train(train: Train, fields: dict, workdir: pathlib.Path, code: str) -> int | str:
    """Runs one training with its words in a file; the exit status, or what was wrong."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    try:
        return TERMINATED if stopping() else _run(train, fields, workdir, code)
    except KeyboardInterrupt:  # before the first step or after the last; between them the run takes signals, and saves
        return TERMINATED
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)


def _run(train: Train, fields: dict, workdir: pathlib.Path, code: str) -> int | str:
    config = configuration.from_dict(fields)
    workdir.mkdir(parents=True, exist_ok=True)
    with (workdir.parent / f"{workdir.name}.{CODE}").open("a") as digests:
        digests.write(f"{code}\n")
    with contextlib.ExitStack() as stack:
        log = stack.enter_context((workdir.parent / f"{workdir.name}.{LOG}").open("a"))
        stack.enter_context(contextlib.redirect_stdout(log))
        stack.enter_context(contextlib.redirect_stderr(log))
        try:
            return train(config, workdir)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            if "not finite" not in str(error):
                return str(error)
            (workdir / FAILED).write_text(f"diverged: {error}\n")
            return 0
