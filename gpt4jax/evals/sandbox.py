"""Runs Python that a model wrote where it can do no harm, and tests it so that it can't pretend.

`python -m gpt4jax.evals.sandbox` says what holds on this machine.

A program runs in a process of its own, forked from a limited one (`sandbox_worker`). It has

- no contents of files but those of Python's standard library and the system's (/lib, /usr/lib), to read, and a scratch
  folder in memory that is emptied after it (Landlock; without user namespaces there is no scratch folder either); that
  other files exist, and how large they are, it can see;
- no system calls but those that computing takes (seccomp): no process, no program to execute, no socket of any
  family, no signal to anybody, nobody else's memory, no mount;
- limits of memory, processor time, wall-clock time, size of files, open files and output; and it ends with its parent.

A solution is tested by another such process: the test calls it over a channel, by value, in plain types. So it never
shares an interpreter with what judges it, and an answer is right only if it is the right value.

It takes Linux 5.13 or newer with Landlock and seccomp, on x86-64. Where a guarantee does not hold, `Sandbox` refuses to
start. What it does not protect from is a hole in the kernel's own code, or in the processor.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import select
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from gpt4jax.errors import UserError

START_SECONDS = 30.0
_WORKER = pathlib.Path(__file__).with_name("sandbox_worker.py")


@dataclasses.dataclass(frozen=True)
class Limits:
    """Of one program. `output` is in bytes, of standard output and error together."""

    seconds: float = 3.0
    cpu_seconds: int = 4
    memory_mb: int = 256
    scratch_mb: int = 16
    file_mb: int = 8
    output: int = 2**20


class Execution(NamedTuple):
    """How a program ended: `status` is its exit status, or -N for signal N; `stopped` says which limit ended it."""

    stdout: str
    stderr: str
    status: int
    stopped: str
    seconds: float


class Verdict(NamedTuple):
    """Whether a solution passed every test, and if not, why."""

    passed: bool
    reason: str
    seconds: float


class Problem(NamedTuple):
    """A function to write: `test` has `check(candidate)` and may use what `prompt` defines, as HumanEval has it."""

    prompt: str
    entry_point: str
    test: str


class _Worker:
    """One process that forks programs, one at a time."""

    def __init__(self, limits: Limits, scratch: str):
        ours, theirs = socket.socketpair()
        said = json.dumps(dataclasses.asdict(limits))
        # Of the environment, which may hold secrets, nothing.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(_WORKER), str(theirs.fileno()), scratch, said],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={},
            pass_fds=[theirs.fileno()],
        )  # fmt: skip
        theirs.close()
        self._socket = ours
        ours.settimeout(START_SECONDS)
        self._held = b""
        try:
            hello = self._hear()
        except (OSError, ValueError) as error:
            self._process.kill()
            _, words = self._process.communicate()
            last = (words.decode(errors="replace").strip().splitlines() or ["it says nothing"])[-1]
            raise UserError(f"the sandbox did not start: {last}") from error
        if "error" in hello:
            self.close()
            raise UserError(
                f"model-written code can't be isolated on this machine, so it is not run: {hello['error']}. It takes "
                "Linux 5.13 or newer with Landlock and seccomp on x86-64 (python -m gpt4jax.evals.sandbox says more)"
            )
        self.scratch = bool(hello["scratch"])

    def start(self, job: dict[str, Any], files: Sequence[int]) -> None:
        """Begins a job with its channels."""
        data = json.dumps(job).encode()
        message = struct.pack("=I", len(data)) + data
        sent = socket.send_fds(self._socket, [message], list(files))
        self._socket.sendall(message[sent:])

    def end(self, kill: bool) -> dict[str, Any]:
        """Waits for the job, killed or not, and says how it ended."""
        if kill:
            self._socket.sendall(b"k")
        said = self._hear()
        if not kill:
            self._socket.sendall(b".")
        return said

    def fileno(self) -> int:
        """Readable once the job has ended."""
        return self._socket.fileno()

    def _hear(self) -> dict[str, Any]:
        while b"\n" not in self._held:
            more = self._socket.recv(65536)
            if not more:
                raise OSError("the sandbox's process has ended")
            self._held += more
        line, _, self._held = self._held.partition(b"\n")
        return json.loads(line)

    def close(self) -> None:
        """Ends the process and what it runs."""
        self._socket.close()
        self._process.kill()
        self._process.wait()
        if self._process.stderr:
            self._process.stderr.close()


class Sandbox:
    """Runs and tests programs, each in a process of its own; several threads may share one.

    Args:
        limits: of each program.
        workers: programs at once.

    Raises:
        UserError: this machine can't isolate a program.
    """

    def __init__(self, limits: Limits = Limits(), workers: int = 2):  # immutable
        self.limits, self.workers = limits, workers
        self._folder = tempfile.TemporaryDirectory(prefix="gpt4jax-sandbox-")
        self._lock = threading.Lock()
        self._free: list[tuple[_Worker, _Worker]] = []
        self._numbers = iter(range(10**9))
        try:
            self._free.append(self._pair())
            self.guarantees = self._self_test()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Sandbox":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends all processes; the scratch folders go with them."""
        for worker in (worker for pair in self._free for worker in pair):
            worker.close()
        self._free = []
        self._folder.cleanup()

    def run(self, source: str, stdin: str = "") -> Execution:
        """Runs a program to its end, or to a limit's."""
        with self._lease() as (worker, _):
            return _run(worker, source, stdin, self.limits)

    def check(self, problem: Problem, completion: str) -> Verdict:
        """Whether the prompt with a completion passes the problem's tests, all of them, in time."""
        started = time.monotonic()
        try:
            with self._lease() as (solver, tester):
                return _check(solver, tester, problem, completion, self.limits.seconds)
        except (OSError, ValueError) as error:  # the next one gets new processes
            return Verdict(False, f"the sandbox's own process ended: {error}", time.monotonic() - started)

    def check_many(self, pairs: Iterable[tuple[Problem, str]]) -> list[Verdict]:
        """The verdicts of many, in their order."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(lambda pair: self.check(*pair), pairs))

    @contextlib.contextmanager
    def _lease(self):
        """Two workers; if what they ran broke them they are not used again."""
        with self._lock:
            pair = self._free.pop() if self._free else None
        pair = pair or self._pair()
        try:
            yield pair
        except BaseException:
            for worker in pair:
                worker.close()
            raise
        with self._lock:
            self._free.append(pair)

    def _pair(self) -> tuple[_Worker, _Worker]:
        made: list[_Worker] = []
        for _ in range(2):
            folder = pathlib.Path(self._folder.name) / str(next(self._numbers))
            folder.mkdir(mode=0o700)
            made.append(_Worker(self.limits, str(folder)))
        return made[0], made[1]

    def _self_test(self) -> dict[str, str]:
        """What a program may not do, tried: each must be refused.

        Raises:
            UserError: one was not.
        """
        found = self.run(_ATTEMPTS)
        try:
            outcomes = json.loads(found.stdout)
        except ValueError as error:
            raise UserError(f"the sandbox's self-test did not end: {found.stopped or found.stderr[-500:]}") from error
        held = {name: said for name, said in outcomes.items() if said.startswith("refused")}
        if broken := sorted(outcomes.keys() - held.keys()):
            raise UserError(f"this machine's sandbox leaks, so no model-written code is run: {', '.join(broken)}")
        return held


def _run(worker: _Worker, source: str, stdin: str, limits: Limits) -> Execution:
    started = time.monotonic()
    (in_read, in_write), (out_read, out_write), (err_read, err_write) = os.pipe(), os.pipe(), os.pipe()
    unused, other = socket.socketpair()
    files = [other.fileno(), in_read, out_write, err_write]
    worker.start({"kind": "run", "source": source}, files)
    for file in (in_read, out_write, err_write):
        os.close(file)
    unused.close()
    other.close()
    waiting, found, stopped = stdin.encode(), {out_read: b"", err_read: b""}, ""
    os.set_blocking(in_write, False)
    reading, writing = [out_read, err_read], [in_write] if waiting else []
    if not waiting:
        os.close(in_write)
    while reading and not stopped:
        left = started + limits.seconds - time.monotonic()
        readable, writable, _ = select.select(reading, writing, [], max(left, 0))
        if not readable and not writable:
            stopped = f"took more than {limits.seconds} s"
        for file in readable:
            more = os.read(file, 65536)
            found[file] += more
            if not more:
                reading.remove(file)
        for file in writable:
            with contextlib.suppress(BrokenPipeError):
                waiting = waiting[os.write(file, waiting) :]
            if not waiting:
                writing.remove(file)
                os.close(file)
        if sum(map(len, found.values())) > limits.output:
            stopped = f"wrote more than {limits.output} bytes"
    # A program that has closed its streams goes on all the same.
    left = max(started + limits.seconds - time.monotonic(), 0)
    if not stopped and not select.select([worker], [], [], left)[0]:
        stopped = f"took more than {limits.seconds} s"
    said = worker.end(kill=bool(stopped))
    for file in (out_read, err_read, *writing):
        os.close(file)
    stdout, stderr = (found[file][: limits.output].decode(errors="replace") for file in (out_read, err_read))
    stopped = stopped or _signal(said["status"])
    return Execution(stdout, stderr, said["status"], stopped, time.monotonic() - started)


def _signal(status: int) -> str:
    return "" if status >= 0 else f"was ended by signal {-status}"


def _check(solver: _Worker, tester: _Worker, problem: Problem, completion: str, seconds: float) -> Verdict:
    """The solution answers calls in one process; the test makes them in another, and only that one is believed."""
    started = time.monotonic()
    one, other = socket.socketpair()
    read, write = os.pipe()
    source = problem.prompt + completion
    solver.start({"kind": "serve", "source": source, "entry_point": problem.entry_point}, [other.fileno()])
    # The prompt alone defines what tests may use beside the function; its own function has a docstring for a body.
    test = {"kind": "test", "source": f"{problem.prompt}\n\n{problem.test}", "entry_point": problem.entry_point}
    tester.start(test, [write, one.fileno()])
    one.close()
    other.close()
    os.close(write)
    said, late = b"", False
    while not said.endswith(b"\n") and not late:
        readable, _, _ = select.select([read], [], [], max(started + seconds - time.monotonic(), 0))
        late = not readable
        more = os.read(read, 4096) if readable else b""
        said += more
        if readable and not more:
            break
    os.close(read)
    ended = [worker.end(kill=True) for worker in (solver, tester)]
    took = time.monotonic() - started
    if late:
        return Verdict(False, f"took more than {seconds} s", took)
    reason = (
        json.loads(said) if said.endswith(b"\n") else f"the test's process {_signal(ended[1]['status']) or 'ended'}"
    )
    return Verdict(reason == "passed", reason, took)


_ATTEMPTS = """
import ctypes, errno, fcntl, json, os, signal, socket, threading
def refused(do):
    try:
        return f"not refused: {do()!r}"
    except MemoryError:
        return "refused: MemoryError"
    except (OSError, RuntimeError) as error:
        return f"refused: {error}"
def call(*arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    result = libc.syscall(*arguments)
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result
def thread():
    threading.Thread(target=int).start()
print(json.dumps({
    "opening a network socket": refused(lambda: socket.socket(socket.AF_INET)),
    "opening a local socket": refused(lambda: socket.socket(socket.AF_UNIX)),
    "reading /etc/passwd": refused(lambda: open("/etc/passwd")),
    "reading /proc of the parent": refused(lambda: open(f"/proc/{os.getppid()}/environ")),
    "listing /": refused(lambda: os.listdir("/")),
    "writing to /tmp": refused(lambda: open("/tmp/gpt4jax-sandbox-leak", "w")),
    "writing to /dev/shm": refused(lambda: open("/dev/shm/gpt4jax-sandbox-leak", "w")),
    "a new process": refused(os.fork),
    "a new thread": refused(thread),
    "executing a program": refused(lambda: os.execv("/bin/true", ["true"])),
    "a signal to the parent": refused(lambda: os.kill(os.getppid(), 0)),
    "a signal to itself": refused(lambda: os.kill(os.getpid(), signal.SIGSTOP)),
    "a signal to the parent by way of a pipe": refused(lambda: fcntl.fcntl(0, fcntl.F_SETOWN, os.getppid())),
    "a signal of one's choice": refused(lambda: fcntl.fcntl(0, 10, signal.SIGKILL)),
    "tracing the parent": refused(lambda: call(101, 16, os.getppid(), 0, 0)),
    "reading the parent's memory": refused(lambda: call(310, os.getppid(), 0, 0, 0, 0, 0)),
    "a new namespace": refused(lambda: call(272, 0x10000000)),
    "a mount": refused(lambda: call(165, b"none", b"/", b"tmpfs", 0, 0)),
    "another file system interface": refused(lambda: call(425, 8, 0)),
    "more memory than its own": refused(lambda: len(bytearray(2**33))),
}))
"""


def main() -> int:
    """Says what holds on this machine; 0 if a program can be isolated."""
    try:
        with Sandbox(workers=1) as sandbox:
            for name, said in sandbox.guarantees.items():
                print(f"{name}: {said}")
            private = sandbox._free[0][0].scratch
            print("a scratch folder in memory" if private else "no scratch folder: user namespaces are not permitted")
    except UserError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
