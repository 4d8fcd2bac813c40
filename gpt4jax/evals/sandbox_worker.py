"""The process from which sandboxed programs are forked: `python -I -S sandbox_worker.py SOCKET SCRATCH LIMITS`.

Driven by `evals.sandbox` over a Unix socket. It limits itself first, imports what programs use, and then forks a child
for each program, which limits itself further, for good, before it runs a line of it. Standard library only.

A message is a JSON object with one file, the child's channel. The child writes and reads lines there:
`serve` runs a source and answers calls of one of its functions; `test` runs a source that has `check(candidate)`, whose
candidate is a function at the other end of a second channel; `run` runs a source with standard streams.
"""

import contextlib
import json
import os
import resource
import select
import shutil
import signal
import socket
import struct
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import sandbox_kernel as kernel
import sandbox_values as values

sys.path.pop(0)

# Modules that are imported once, before files are out of reach: forked children have them at no cost.
_WARM = (
    "abc array ast base64 bisect builtins calendar cmath collections collections.abc copy csv dataclasses datetime "
    "decimal difflib enum fractions functools hashlib heapq inspect io itertools json math numbers operator pprint "
    "queue random re statistics string struct textwrap time traceback types typing unicodedata uuid zlib"
)


def readable() -> list[str]:
    """The standard library without installed packages, and the C libraries that its modules load."""
    library = os.path.dirname(os.__file__)
    own = [os.path.join(library, name) for name in os.listdir(library)]
    own = [path for path in own if os.path.basename(path) not in ("site-packages", "dist-packages", "test")]
    shared = ["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo"]
    return [path for path in own + shared if os.path.exists(path)]


def limit(limits: dict) -> None:
    """The kernel's limits for a program, which it can't raise."""
    for name, most in {
        "AS": limits["used"] + limits["memory_mb"] * 2**20, "CPU": limits["cpu_seconds"], "STACK": 64 * 2**20,
        "FSIZE": limits["file_mb"] * 2**20, "CORE": 0, "NOFILE": 64, "NPROC": 0, "MEMLOCK": 0, "MSGQUEUE": 0,
    }.items():  # fmt: skip
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def main() -> None:
    """Forks a child for each message until the other end closes."""
    control = socket.socket(fileno=int(sys.argv[1]))
    scratch, limits = sys.argv[2], json.loads(sys.argv[3])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the parent
    for name in _WARM.split():
        __import__(name)
    try:
        private = kernel.own_namespaces(scratch, limits["scratch_mb"])
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.chdir(scratch)
        with open("/proc/self/statm") as file:  # what is there before a program asks for anything
            limits["used"] = int(file.read().split()[0]) * resource.getpagesize()
        kernel.restrict_files(readable(), [scratch] if private else [])
    except (kernel.UnavailableError, OSError) as error:
        control.sendall(json.dumps({"error": str(error)}).encode() + b"\n")
        return
    control.sendall(json.dumps({"ready": True, "scratch": private}).encode() + b"\n")
    while True:
        data, files, _, _ = socket.recv_fds(control, 2**16, 4)
        if not data:
            return
        job = json.loads(receive(control, data))
        fork(control, job, files, nowhere, limits)
        for name in os.listdir(scratch) if private else ():
            path = os.path.join(scratch, name)
            shutil.rmtree(path, ignore_errors=True) if os.path.isdir(path) else os.unlink(path)


def receive(control: socket.socket, data: bytes) -> bytes:
    """A whole message: its length, and as many bytes."""
    (size,) = struct.unpack("=I", data[:4])
    parts, missing = [data[4:]], size - len(data) + 4
    while missing > 0:
        more = control.recv(missing)
        if not more:
            raise SystemExit
        parts.append(more)
        missing -= len(more)
    return b"".join(parts)


def fork(control: socket.socket, job: dict, files: list[int], nowhere: int, limits: dict) -> None:
    """Runs a job in a child until it ends, or a byte comes that says to kill it, and tells how it ended.

    The other end sends one byte a job, at the latest once it has heard: so none is left over for the next.
    """
    child = os.fork()
    if not child:
        status = 1
        try:
            status = in_child(control, job, files, nowhere, limits)
        finally:
            os._exit(status)
    for file in files:
        os.close(file)
    process = os.pidfd_open(child)
    ready, _, _ = select.select([process, control.fileno()], [], [])
    if process not in ready:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    os.close(process)
    said = {"status": os.waitstatus_to_exitcode(status)}
    control.sendall(json.dumps(said).encode() + b"\n")
    if not control.recv(1):
        raise SystemExit


def in_child(control: socket.socket, job: dict, files: list[int], nowhere: int, limits: dict) -> int:
    """Becomes the program."""
    control.close()
    kernel.die_with_parent()
    streams = files[1:4] if job["kind"] == "run" else [nowhere] * 3
    for number, file in enumerate(streams):
        os.dup2(file, number)
    channels = [os.dup2(file, 10 + number) for number, file in enumerate(files)] if job["kind"] != "run" else []
    os.closerange(3, 10)
    os.closerange(10 + len(channels), 256)
    limit(limits)
    kernel.restrict_calls()
    sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode, closefd=False) for n, mode in enumerate("rww"))
    del sys.modules["sandbox_kernel"]
    if job["kind"] == "run":
        return run(job)
    return serve(job, *channels) if job["kind"] == "serve" else test(job, *channels)


def run(job: dict) -> int:
    """A source as a program; its exit status, and a traceback on stderr."""
    import traceback

    try:
        exec(compile(job["source"], "<program>", "exec"), {"__name__": "__main__"})
        status = 0
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(BaseException):
            stream.flush()
    return status & 255


def serve(job: dict, channel: int) -> int:
    """Runs a source, then answers each line of arguments with a line of what its function gives."""
    lines = values.Lines(channel)
    namespace: dict = {"__name__": "__candidate__"}
    exec(compile(job["source"], "<program>", "exec"), namespace)
    function = namespace[job["entry_point"]]
    while (line := lines.read()) is not None:
        arguments, named = values.decode(line)
        try:
            answer = values.encode(function(*arguments, **named))
        except Exception as error:
            answer = values.encode_error(error)
        lines.write(answer)
    return 0


def test(job: dict, verdict: int, channel: int) -> int:
    """Runs `check(candidate)` of a source to its end, and only then says that all is well.

    Nothing of the candidate's is here: its answers come as text, and become values of plain types.
    """
    lines, calls = values.Lines(channel), 0

    def candidate(*arguments, **named):
        nonlocal calls
        calls += 1
        lines.write(values.encode((list(arguments), named)))
        answer = lines.read()
        if answer is None:
            raise values.GoneError
        return values.decode(answer)

    namespace: dict = {"__name__": "__test__"}
    try:
        exec(compile(job["source"], "<test>", "exec"), namespace)
        namespace[job["entry_point"]] = candidate  # some tests call it by its name as well
        namespace["check"](candidate)
        said = "passed" if calls else "the test never called the function"
    except values.GoneError:
        said = "the program ended before the test did"
    except BaseException as error:
        said = f"failed: {type(error).__name__}: {error}"[:500]
    os.write(verdict, json.dumps(said).encode() + b"\n")
    return 0


if __name__ == "__main__":
    main()
