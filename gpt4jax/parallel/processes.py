"""Many processes as one run: how they find each other, agree, wait for the first, and end when one is lost.

All of them run the same program; what only one may do (write a file, say), the first does. The functions here that all
processes must call say so. With one process each of them does the plain thing.
"""

import contextlib
import ctypes
import dataclasses
import glob
import importlib.util
import json
import os
import re
import signal
import socket
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt4jax import files
from gpt4jax.errors import MishapError, UserError

_OURS = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")  # as `parallel.launch` sets them
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
T = TypeVar("T")
_LONGEST_WAIT = 24 * 3600  # seconds that the others wait while the first prepares data; its death ends them sooner


@dataclasses.dataclass
class _State:
    joined: bool = False
    notice: Any = None  # what JAX does at SIGTERM
    waits: int = 0  # so far: each has a name of its own


_state = _State()


def joined() -> bool:
    """Whether this is one process of several."""
    return _state.joined


def first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return not joined() or jax.process_index() == 0


def share() -> tuple[int, int]:
    """(process, how many there are): of what is shared out, every n-th thing is its own."""
    return (jax.process_index(), jax.process_count()) if joined() else (0, 1)


def join(options: Any, folder: files.Path, say: Callable[[str], None], environ: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes of this run, if the environment says that there are any.

    They are those of `gpt4jax.parallel.launch` (or whoever sets JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID), of a SLURM step, of a Kubernetes job, or of the hosts of a TPU slice or of several;
    JAX_NUM_PROCESSES=1 says that there are none. Must come before anything asks JAX for a device.

    `options` is the config group `mesh`: `join_seconds` to wait for all of them, `heartbeat_seconds` after which a
    process that gives no sign is dead, and all others end. `folder`, which all of them see, gets a file from each that
    is here, so that those which are not can be named.

    Raises:
        UserError: variables that contradict each other.
        MishapError: the others can't be reached.
    """
    where = _place(environ)
    if where is None:
        return
    process, of = where
    roll = RollCall(folder, process, of)
    timer = threading.Timer(options.join_seconds, lambda: leave(1, lambda: roll.missing(options.join_seconds)))
    timer.daemon = True
    timer.start()
    own: dict[str, Any] = {} if process is None else {"num_processes": of, "process_id": process}
    slurm = all(name in environ for name in _SLURM) and "JAX_NUM_PROCESSES" not in environ
    try:
        jax.distributed.initialize(
            **({} if slurm else own), initialization_timeout=int(options.join_seconds) + 60,
            heartbeat_timeout_seconds=int(options.heartbeat_seconds),
        )  # fmt: skip
    except (ValueError, RuntimeError) as error:
        if process is None and not _named(environ) and isinstance(error, ValueError):
            return  # chips of a host that belongs to no cluster
        kind = MishapError if isinstance(error, RuntimeError) else UserError  # another one was lost, say
        raise kind(
            f"the environment says that this is one of several processes, but it cannot join them: {error}; "
            "JAX_NUM_PROCESSES=1 if it is alone (on Kubernetes JAX needs its extra: pip install 'jax[k8s]')"
        ) from error
    finally:
        timer.cancel()
        roll.close()
    _state.joined = jax.process_count() > 1
    if joined():  # JAX would only take note of it, and nobody asks before the first step
        _state.notice = _at_signal(signal.SIGTERM)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if first() and joined():
        say(f"{jax.process_count()} processes with {jax.local_device_count()} devices each")


def _place(environ: Mapping[str, str]) -> tuple[int | None, int | None] | None:
    """(process, how many there are) as far as the environment says it; None: this process is alone."""
    given = [name for name in _OURS if name in environ]
    if environ.get("JAX_NUM_PROCESSES") == "1":
        return None
    if "JAX_NUM_PROCESSES" in given or "JAX_PROCESS_ID" in given:
        if len(given) < len(_OURS):
            lacking = ", ".join(sorted(set(_OURS) - set(given)))
            raise UserError(f"{', '.join(given)} without {lacking}: one of several processes needs all three")
        process, of = (_whole(environ, name) for name in ("JAX_PROCESS_ID", "JAX_NUM_PROCESSES"))
        if not 0 <= process < of:
            raise UserError(f"JAX_PROCESS_ID {process} is none of 0 to {of - 1} (JAX_NUM_PROCESSES {of})")
        if not re.fullmatch(r".+:\d+", environ["JAX_COORDINATOR_ADDRESS"]):
            raise UserError(f"JAX_COORDINATOR_ADDRESS is {environ['JAX_COORDINATOR_ADDRESS']!r}; it must be HOST:PORT")
        return process, of
    if all(name in environ for name in _SLURM) and _whole(environ, "SLURM_NTASKS") > 1:
        return _whole(environ, "SLURM_PROCID"), _whole(environ, "SLURM_NTASKS")
    if _named(environ):
        return None, None  # JAX asks the platform for the rest
    if given:
        raise UserError("JAX_COORDINATOR_ADDRESS without JAX_NUM_PROCESSES and JAX_PROCESS_ID: it needs all three")
    chips = glob.glob("/dev/accel[0-9]*") + glob.glob("/dev/vfio/[0-9]*")
    return (None, None) if chips and importlib.util.find_spec("libtpu") is not None else None


def _named(environ: Mapping[str, str]) -> bool:
    """Whether a platform says that this is one of several, but for which and of how many."""
    in_job = "KUBERNETES_SERVICE_HOST" in environ and "JOB_COMPLETION_INDEX" in environ
    return in_job or any(name in environ for name in ("MEGASCALE_COORDINATOR_ADDRESS", "TPU_WORKER_HOSTNAMES"))


def _whole(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except ValueError as error:
        raise UserError(f"{name} is {environ[name]!r}; it must be a whole number") from error


class RollCall:
    """A file from each process that waits for the others, in a folder that all of them see."""

    FOLDER = "joining"

    def __init__(self, folder: files.Path, process: int | None, of: int | None):
        self._folder, self._process, self._of = folder / self.FOLDER, process, of
        self._own = self._folder / (socket.gethostname() if process is None else str(process))
        files.replace(self._own, socket.gethostname())

    def missing(self, seconds: float) -> str:
        """Who is not here, in words. A file much older than this process's own is of an earlier start."""
        since = files.modified(self._own) - seconds
        there = (path for path in files.below(self._folder) if path.suffix != ".part")
        here = sorted(path.name for path in there if files.modified(path) >= since)
        start = f"not all processes joined within mesh.join_seconds = {seconds:g} s"
        if self._process is None or self._of is None:
            return f"{start}; here are {', '.join(here)}"
        lacking = [str(number) for number in range(self._of) if str(number) not in here]
        if not lacking:
            return f"{start}, though all {self._of} have started: do they reach JAX_COORDINATOR_ADDRESS?"
        return f"{start}: of {self._of} there {'is' if len(lacking) == 1 else 'are'} missing {', '.join(lacking)}"

    def close(self) -> None:
        """Takes this process's file away."""
        self._own.unlink(missing_ok=True)


def leave(status: int, words: Callable[[], str] = lambda: "") -> NoReturn:
    """Ends this process at once, without waiting for the others as an ordinary exit would; `words` say why."""
    try:
        os.write(2, f"error: {words()}\n".encode())
    finally:  # whatever the words meet: nobody who reads them, a folder that is gone
        os._exit(status)


def wait(seconds: float = _LONGEST_WAIT) -> None:
    """Waits until all processes are here, which all must call; no device takes part."""
    if joined():
        import orbax.checkpoint as ocp  # whose name for JAX's own barrier is public

        _state.waits += 1
        ocp.multihost.get_barrier_sync_fn()(key=f"gpt4jax-{_state.waits}", timeout_ms=int(seconds * 1000))


def of_first(make: Callable[[], Any]) -> Any:
    """What `make` gives in the first process, as JSON has it, for all; all must call this.

    Raises:
        UserError: in all processes, if it did in the first.
    """
    if not joined():
        return make()
    found: dict[str, Any] = {}
    if first():
        try:
            found = {"value": make()}
        except UserError as error:
            found = {"error": str(error)}
        except OSError as error:
            found = {"error": f"{error}; nothing that was saved is lost"}
    wait()  # however long it takes: a collective, in which devices wait, has a time limit
    found = json.loads(_broadcast(json.dumps(found).encode()))
    if "error" in found:
        raise UserError(found["error"])
    return found["value"]


def first_then_others(make: Callable[[], T]) -> T:
    """What `make` gives, made in the first process before the others begin; all must call this.

    So what the first leaves in a folder that all see, the others find there.
    """
    found: list[T] = []
    of_first(lambda: found.append(make()))
    return found[0] if found else make()


def _broadcast(data: bytes) -> bytes:
    """The first process's bytes."""
    length = int(multihost_utils.broadcast_one_to_all(np.int32(len(data))))
    padded = np.zeros(1 << max(8, (length - 1).bit_length()), np.uint8)  # few sizes, so few programs
    if first():
        padded[:length] = np.frombuffer(data, np.uint8)
    return bytes(np.asarray(multihost_utils.broadcast_one_to_all(padded))[:length].astype(np.uint8))


def of_all(value: Any) -> list[Any]:
    """The value of every process, as JSON has it, in their order; all must call this."""
    if not joined():
        return [value]
    wait()  # as in `of_first`
    data = json.dumps(value).encode()
    lengths = np.ravel(multihost_utils.process_allgather(np.int32(len(data))))
    padded = np.zeros(1 << max(8, int(max(lengths) - 1).bit_length()), np.uint8)
    padded[: len(data)] = np.frombuffer(data, np.uint8)
    rows = np.asarray(multihost_utils.process_allgather(padded)).reshape(len(lengths), -1).astype(np.uint8)
    return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def check_same(facts: Mapping[str, Any]) -> None:
    """Checks that all processes run the same thing; all must call this.

    Raises:
        UserError: which process differs from the first, in what.
    """
    each = of_all(facts)
    for process, other in enumerate(each):
        differ = [key for key in each[0].keys() | other.keys() if each[0].get(key) != other.get(key)]
        if differ:
            some = "; ".join(f"{key} {other.get(key)!r}, there {each[0].get(key)!r}" for key in sorted(differ)[:5])
            raise UserError(f"process {process} does not run what process 0 runs: here {some}")


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """In here SIGTERM to one is a notice for all, for which `stop_together` asks; elsewhere it ends that one."""
    if not joined():
        yield
        return
    _at_signal(signal.SIGTERM, _state.notice)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _at_signal(number: int, action: Any = None) -> Any:
    """What is done at a signal, before it is what `action` says, if any: Python knows no handlers but its own."""
    before = ctypes.create_string_buffer(1024)  # a struct sigaction, and room
    if ctypes.CDLL(None, use_errno=True).sigaction(int(number), action, before):
        raise OSError(ctypes.get_errno(), "sigaction")
    return before


def stop_together(poll: int) -> bool:
    """Whether all processes stop now, because one of them was told to; all must ask as often, with growing numbers."""
    return multihost_utils.reached_preemption_sync_point(poll)


def see_the_same(folder: files.Path) -> bool:
    """Whether all processes see one and the same folder; all must call this."""
    name = of_first(lambda: f"{uuid.uuid4().hex}.part")
    path = folder / RollCall.FOLDER / name  # there it is in nobody's way if one of them is lost just now
    if first():
        files.replace(path, "")
    wait()
    seen = of_all(path.exists())
    if first():
        path.unlink()
    return all(seen)


class Watchdog:
    """Calls `on_stall` if nothing happens for too long, so that a run that hangs does not wait forever.

    A peer that is dead is found by its missing heartbeats; this finds one that lives and does nothing.
    """

    def __init__(self, seconds: float, on_stall: Callable[[], None]):
        self._seconds, self._on_stall = seconds, on_stall
        self._beaten, self._over = threading.Event(), False
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """Something has happened."""
        self._beaten.set()

    def close(self) -> None:
        """Nothing needs to happen any more."""
        self._over = True
        self._beaten.set()

    def _watch(self) -> None:
        while not self._over:
            self._beaten.clear()
            if not self._beaten.wait(self._seconds) and not self._over:
                self._on_stall()
                return
