"""Starts a command as many processes on this machine, each with CPU devices of its own: a small cluster, for trying.

    python -m gpt4jax.parallel.launch --processes 4 --devices 2 -- python -m gpt4jax.train --config ... --workdir DIR

The processes find each other through JAX's distributed runtime, as the hosts of a pod do. Each line of their output has
the number of its process before it. If one fails, the others have `--grace` seconds to end, and all start again, up to
`--restarts` times, unless what was asked for is wrong (status 2). SIGTERM and Ctrl-C go to all; the second one kills.
The exit status is 0, or that of a process that failed.
"""

import argparse
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import BinaryIO

from gpt4jax import job
from gpt4jax.errors import UserError
from gpt4jax.signals import INTERRUPTED, TERMINATED

_FINAL = (2, INTERRUPTED, TERMINATED, -signal.SIGTERM, -signal.SIGINT)  # wrong, or asked to: nothing to start again


def main(argv: Sequence[str]) -> int:
    """Reads the flags and runs the command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.parallel.launch", description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, required=True, help="how many")
    parser.add_argument("--devices", type=int, default=1, help="virtual CPU devices of each (default 1)")
    parser.add_argument("--restarts", type=int, default=0, help="how often to start again after a failure (default 0)")
    parser.add_argument("--grace", type=float, default=60, help="seconds that the others have to end after a failure")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command of each process")
    flags = parser.parse_args(argv)
    command = flags.command[1:] if flags.command[:1] == ["--"] else flags.command
    for name, least in (("processes", 1), ("devices", 1), ("restarts", 0), ("grace", 0)):
        if getattr(flags, name) < least:
            raise UserError(f"--{name} is {getattr(flags, name)}; it must be at least {least}")
    if not command:
        raise UserError("which command? It comes after --, as in: -- python -m gpt4jax.train --config ...")
    if command[0] in ("python", "python3"):
        command[0] = sys.executable  # the one that has what is needed
    stop: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: stop.append(number))
    status = 0
    for start in range(flags.restarts + 1):
        status = Cluster(command, flags.processes, flags.devices).run(flags.grace, stop)
        if status == 0 or stop or status in _FINAL:
            break
        again = f"; start {start + 2} of at most {flags.restarts + 1}" if start < flags.restarts else ""
        job.say(f"a process ended with status {status}{again}")
    return 128 - status if status < 0 else status


class Cluster:
    """The processes of one start."""

    def __init__(self, command: Sequence[str], processes: int, devices: int):
        address = f"127.0.0.1:{_free_port()}"
        own = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": str(processes), "JAX_PLATFORMS": "cpu"}
        own |= {"JAX_NUM_CPU_DEVICES": str(devices), "PYTHONUNBUFFERED": "1"}
        self._processes = []
        for number in range(processes):
            try:
                process = subprocess.Popen(
                    command, env=os.environ | own | {"JAX_PROCESS_ID": str(number)}, stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                    start_new_session=True,  # Ctrl-C comes to the launcher alone
                )  # fmt: skip
            except FileNotFoundError as error:
                raise UserError(f"there is no command {command[0]}") from error
            self._processes.append(process)
        self._readers = [
            threading.Thread(target=_pass_on, args=(source, target, f"[{number}] ".encode()), daemon=True)
            for number, process in enumerate(self._processes)
            for source, target in ((process.stdout, sys.stdout.buffer), (process.stderr, sys.stderr.buffer))
        ]
        for reader in self._readers:
            reader.start()

    def run(self, grace: float, stop: list[int]) -> int:
        """Waits for the end of all; `stop` gets the signals that are to be passed on. Returns the status."""
        told = 0  # how many of the signals were passed on
        failed: int | None = None
        until = float("inf")
        while None in [process.poll() for process in self._processes]:  # asks all: not up to the first that runs
            if len(stop) > told:  # the first: as a platform takes machines back; the second: at once
                self._send(signal.SIGTERM if told == 0 else signal.SIGKILL)
                told, until = told + 1, min(until, time.monotonic() + grace)
            bad = [process.returncode for process in self._processes if process.returncode]
            if bad and failed is None:
                failed, until = bad[0], min(until, time.monotonic() + grace)
            if time.monotonic() > until:
                job.say(f"the processes that are left did not end within {grace:g} s: killed")
                self._send(signal.SIGKILL)
                until = float("inf")
            time.sleep(0.05)
        for reader in self._readers:
            reader.join(timeout=5)
        bad = [process.returncode for process in self._processes if process.returncode]
        return failed if failed is not None else bad[0] if bad else 0

    def _send(self, number: signal.Signals) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(number)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def _pass_on(source: BinaryIO, target: BinaryIO, prefix: bytes) -> None:
    """Line by line, so that lines of different processes don't mix."""
    for line in source:
        with contextlib.suppress(OSError):  # of a reader that has gone: the process must not wait for one
            target.write(prefix + (line if line.endswith(b"\n") else line + b"\n"))
            target.flush()


if __name__ == "__main__":
    job.main(main)
