"""Which process of how many this is, by the environment; who is missing; a watchdog; a launcher's bad input."""

import os
import threading
import time
import types

import pytest

from gpt4jax.errors import UserError
from gpt4jax.parallel import launch, processes

SLURM = {
    "SLURM_JOB_ID": "7", "SLURM_STEP_NODELIST": "n[1-2]", "SLURM_NTASKS": "4", "SLURM_PROCID": "2", "SLURM_LOCALID": "0"
}  # fmt: skip
OURS = {"JAX_COORDINATOR_ADDRESS": "host:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        (OURS, (3, 4)),
        (OURS | SLURM, (3, 4)),
        (SLURM, (2, 4)),
        (SLURM | {"SLURM_NTASKS": "1"}, None),
        (SLURM | {"JAX_NUM_PROCESSES": "1"}, None),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, (None, None)),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, (None, None)),
        ({"KUBERNETES_SERVICE_HOST": "h", "JOB_COMPLETION_INDEX": "1"}, (None, None)),
        ({"KUBERNETES_SERVICE_HOST": "h"}, None),
    ],
)
def test_the_environment_says_which_process_this_is(environ, expected, monkeypatch):
    monkeypatch.setattr(processes.glob, "glob", lambda pattern: [])
    assert processes._place(environ) == expected


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID 4 is none of 0 to 3"),
        ({"JAX_PROCESS_ID": "first"}, "JAX_PROCESS_ID is 'first'; it must be a whole number"),
        ({"JAX_COORDINATOR_ADDRESS": None}, "without JAX_COORDINATOR_ADDRESS"),
    ],
)
def test_variables_that_contradict_each_other_are_refused(change, words):
    environ = {name: value for name, value in (OURS | change).items() if value is not None}
    with pytest.raises(UserError, match=words):
        processes._place(environ)


def test_a_roll_call_names_who_is_missing_and_forgets_an_earlier_start(tmp_path):
    rolls = {number: processes.RollCall(tmp_path, number, 4) for number in (0, 1, 3)}
    assert "of 4 there is missing 2" in rolls[0].missing(30)
    old = time.time() - 1000
    os.utime(tmp_path / "joining" / "1", (old, old))
    assert "of 4 there are missing 1, 2" in rolls[0].missing(30)
    processes.RollCall(tmp_path, 1, 4)
    processes.RollCall(tmp_path, 2, 4)
    assert "all 4 have started" in rolls[0].missing(30)
    rolls[3].close()
    assert "missing 3" in rolls[0].missing(30)
    assert "here are" in processes.RollCall(tmp_path / "tpu", None, None).missing(30)


def test_one_process_alone_does_the_plain_thing(tmp_path):
    assert processes.first() and not processes.joined() and processes.share() == (0, 1)
    assert processes.of_first(lambda: {1: 2}) == {1: 2} and processes.of_all("x") == ["x"]
    assert processes.first_then_others(lambda: 3) == 3 and processes.see_the_same(tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]
    processes.wait()
    processes.check_same({"a": 1})


def test_others_that_run_something_else_are_named(monkeypatch):
    each = [{"a": 1, "b": 2}, {"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}]
    monkeypatch.setattr(processes, "of_all", lambda value: each)
    with pytest.raises(
        UserError, match="process 2 does not run what process 0 runs: here b 3, there 2; c 4, there None"
    ):
        processes.check_same({})


def test_a_watchdog_barks_when_nothing_happens_and_only_then():
    barked = threading.Event()
    dog = processes.Watchdog(0.4, barked.set)
    for _ in range(10):
        time.sleep(0.1)
        dog.beat()
    assert not barked.is_set()
    assert barked.wait(5)
    quiet = threading.Event()
    processes.Watchdog(0.1, quiet.set).close()
    processes.Watchdog(0, quiet.set)
    assert not quiet.wait(0.5)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["--processes", "0", "--", "x"], "--processes is 0; it must be at least 1"),
        (["--processes", "2", "--"], "which command"),
        (["--processes", "2", "--restarts", "-1", "--", "x"], "--restarts is -1"),
    ],
)
def test_a_launcher_refuses_in_words(argv, words):
    with pytest.raises(UserError, match=words):
        launch.main(argv)


def test_a_launcher_says_who_speaks_and_starts_again_with_a_bound(tmp_path, capfdbinary, monkeypatch):
    monkeypatch.setattr(launch.signal, "signal", lambda number, handler: None)  # pytest's own stay
    program = (
        "import os, pathlib, sys\n"
        f"runs = pathlib.Path({str(tmp_path)!r}) / os.environ['JAX_PROCESS_ID']\n"
        "count = len(runs.read_text()) if runs.exists() else 0\n"
        "runs.write_text('x' * (count + 1))\n"
        "print('start', count, 'of', os.environ['JAX_NUM_PROCESSES'], os.environ['JAX_NUM_CPU_DEVICES'])\n"
        "sys.exit(3 if count < 2 and os.environ['JAX_PROCESS_ID'] == '1' else 0)\n"
    )
    argv = ["--processes", "2", "--devices", "5", "--", "python", "-c", program]
    assert launch.main(["--restarts", "1", *argv]) == 3
    assert launch.main(argv) == 0
    out, err = capfdbinary.readouterr()
    assert sorted(out.decode().split("\n")) == sorted(
        ["", *(f"[{p}] start {count} of 2 5" for p in range(2) for count in range(3))]
    )
    assert err.decode().count("a process ended with status 3") == 2


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_launcher_kills_what_does_not_end_with_the_others(stopped, monkeypatch, capfd):
    monkeypatch.setattr(launch.signal, "signal", lambda number, handler: None)
    program = (
        "import os, signal, sys\n"
        f"if os.environ['JAX_PROCESS_ID'] == '{stopped}': os.kill(os.getpid(), signal.SIGSTOP)\n"
        "sys.exit(4)\n"
    )
    since = time.monotonic()
    assert launch.main(["--processes", "2", "--grace", "0.5", "--", "python", "-c", program]) == 4
    assert time.monotonic() - since < 20 and "did not end within 0.5 s: killed" in capfd.readouterr().err


def test_stop_requests_of_several_processes_come_from_their_agreement():
    from gpt4jax.signals import StopRequest

    asked = []
    stop = StopRequest(together=lambda poll: asked.append(poll) or poll == 3, on_poll=types.SimpleNamespace)
    assert [stop.poll() for _ in range(5)] == [False, False, True, True, True]
    assert asked == [1, 2, 3] and stop.received.name == "SIGTERM"
