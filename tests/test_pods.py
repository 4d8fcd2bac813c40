"""Runs of several processes, through the launcher and by hand: the same as one process, and none of them hangs."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from gpt4jax.training import goodput, metrics
from tests.runs import ROOT, TINY, command, environment, final_state, run, write_corpus

STEPS = 16


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("pods")
    write_corpus(home / "corpus")
    return home


def flags(home, workdir, *overrides):
    return [
        "--config", TINY, "--workdir", workdir, f"--config.data.dataset=folder:{home / 'corpus'}",
        "--config.batch_size=8", "--config.mesh.fsdp=2", f"--config.num_steps={STEPS}", "--config.eval.num_rows=16",
        "--config.mesh.heartbeat_seconds=6", "--config.mesh.join_seconds=60", *overrides,
    ]  # fmt: skip


def launched(home, workdir, *overrides, launcher=(), before=()):
    """A cluster of two processes with two devices each; the command `before` is given theirs."""
    job = [*before, *command("train", *flags(home, workdir, *overrides))]
    return subprocess.Popen(
        command("parallel.launch", "--processes", 2, "--devices", 2, "--grace", 4, *launcher, "--", *job),
        env=environment(home / "cache"), cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(home):
    done = run("train", *flags(home, home / "alone"), cache=home / "cache", devices=4)
    assert done.returncode == 0, done.stderr
    return done, home / "alone"


def lines(workdir, key):
    return {line["step"]: line[key] for line in metrics.read(workdir) if key in line}


def assert_same_run(workdir, other, keys=("train/loss", "eval/heldout/loss")):
    """Losses and evaluations within 1e-5, each step once."""
    for key in keys:
        ours, theirs = lines(workdir, key), lines(other, key)
        assert ours.keys() == theirs.keys() and max(abs(ours[step] - theirs[step]) for step in ours) < 1e-5
    assert sorted(lines(workdir, "train/loss")) == list(range(1, STEPS + 1))


def process_of(launcher, number):
    """The process id of one of a launcher's processes."""
    children = subprocess.run(["pgrep", "-P", str(launcher.pid)], capture_output=True, text=True).stdout.split()
    for child in children:
        environ = pathlib.Path(f"/proc/{child}/environ").read_text().split("\0")
        if f"JAX_PROCESS_ID={number}" in environ:
            return int(child)
    raise AssertionError(f"no process {number} among {children}")


def hit(launcher, number, how, at):
    """Sends a signal to one of the processes when a line says so; returns what was said until then."""
    said = ""
    for line in launcher.stderr:
        said += line
        if at in line:
            os.kill(process_of(launcher, number), how)
            return said
    raise AssertionError(said)


def test_two_processes_do_what_one_does(home, alone):
    workdir = home / "two"
    cluster = launched(home, workdir, "--config.mesh.verify_every_steps=5")  # finds nothing, and changes nothing
    out, said = cluster.communicate(timeout=300)
    assert cluster.returncode == 0, said
    assert "[0] 2 processes with 2 devices each" in said and "[1] step" not in said
    assert_same_run(workdir, alone[1])
    ours, theirs = final_state(workdir, STEPS), final_state(alone[1], STEPS)
    assert ours.keys() == theirs.keys()
    assert max(np.max(np.abs(a.astype(np.float64) - theirs[name])) for name, a in ours.items()) < 1e-3
    text = re.sub(r"^\[\d\] ", "", out, flags=re.MULTILINE)
    sample = text[text.index("--- a sample") : text.index("---\n", 20)]
    assert sample in alone[0].stdout  # decoded from parameters that both hold in part
    assert json.loads((workdir / "data.json").read_text()) == json.loads((alone[1] / "data.json").read_text())


@pytest.mark.skipif(sys.platform != "linux", reason="looks for its processes in /proc")
def test_a_notice_to_one_saves_on_all_and_another_cluster_goes_on(home, alone):
    """Two processes, of which the second is told to stop; then one process with four, on another mesh."""
    workdir = home / "told"
    # JAX takes a second or two to tell all, in which these steps would all be done: so evaluations lie between them.
    cluster = launched(home, workdir, "--config.eval.eval_every_steps=1", "--config.eval.num_rows=0")
    said = hit(cluster, 1, signal.SIGTERM, "step 1/")
    rest = cluster.communicate(timeout=120)[1]
    assert cluster.returncode == 143, said + rest
    saved = int(re.search(r"\[0\] SIGTERM: saved step (\d+) of 16; the same command resumes", rest)[1])
    one = run(
        "train", *flags(home, workdir), "--config.mesh.data=4", "--config.mesh.fsdp=1",
        cache=home / "cache", devices=4,
    )  # fmt: skip
    assert one.returncode == 0 and f"resumed at step {saved}\n" in one.stderr, one.stderr
    assert_same_run(workdir, alone[1], keys=["train/loss"])
    account = goodput.account(goodput.read(workdir))
    assert account.starts == 2 and account.seconds["lost"] == 0
    assert sum(account.seconds.values()) == pytest.approx(account.wall, rel=1e-2)


@pytest.mark.skipif(sys.platform != "linux", reason="looks for its processes in /proc")
def test_a_process_that_is_told_to_stop_before_the_first_step_ends_at_once_and_so_do_the_others(home, alone):
    cluster = launched(home, home / "early", launcher=("--grace", 40, "--restarts", 1))
    said = hit(cluster, 1, signal.SIGTERM, "2 processes with 2 devices")
    since = time.monotonic()
    rest = cluster.communicate(timeout=120)[1]
    assert cluster.returncode == 143 and "[0] step" not in rest and "saved step" not in rest, said + rest
    assert time.monotonic() - since < 35  # the heartbeat's 6 seconds and what JAX takes to see it, not the grace


def test_a_save_that_fails_on_one_ends_all(home, alone):
    """The second may write files of 16 KiB only, as on a disk that is full: the first waits for it, and never seals."""
    full = ["bash", "-c", 'if [ "$JAX_PROCESS_ID" = 1 ]; then ulimit -f 16; fi; exec "$0" "$@"']
    cluster = launched(home, home / "full", "--config.eval.eval_every_steps=0", before=full)
    said = cluster.communicate(timeout=60)[1]
    assert cluster.returncode == 2, said
    assert "[1] error: a checkpoint could not be written to" in said and "there is no earlier one" in said


@pytest.mark.skipif(sys.platform != "linux", reason="looks for its processes in /proc")
def test_a_lost_process_ends_all_and_the_launcher_starts_again(home, alone):
    """One that is stopped: it is not even dead. (`tests.bench.chaos --processes 2` kills, too.)"""
    workdir = home / "lost"
    cluster = launched(home, workdir, launcher=("--restarts", 1))
    said = hit(cluster, 1, signal.SIGSTOP, "step 9/")
    since = time.monotonic()
    for line in cluster.stderr:
        said += line
        if "a process ended with status" in line:
            break
    assert time.monotonic() - since < 60, said
    rest = cluster.communicate(timeout=300)[1]
    assert cluster.returncode == 0, said + rest
    assert "start 2 of at most 2" in said and "[0] resumed at step 6" in rest
    assert_same_run(workdir, alone[1])
    account = goodput.account(goodput.read(workdir))
    assert account.starts == 2 and account.seconds["lost"] + account.seconds["down"] > 0


def by_hand(home, workdir, number, of, *overrides, port):
    own = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(of), "JAX_PROCESS_ID": str(number)}
    return subprocess.Popen(
        command("train", *flags(home, workdir, *overrides)), env=environment(home / "cache", 2) | own, cwd=ROOT,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_process_that_never_joins_is_named(home, unused_tcp_port):
    process = by_hand(home, home / "waiting", 0, 3, "--config.mesh.join_seconds=5", port=unused_tcp_port)
    since = time.monotonic()
    _, said = process.communicate(timeout=90)
    assert process.returncode == 1 and time.monotonic() - since < 60
    assert "not all processes joined within mesh.join_seconds = 5 s: of 3 there are missing 1, 2" in said


def test_processes_with_other_configs_are_refused(home, unused_tcp_port):
    workdir = home / "other"
    both = [
        by_hand(home, workdir, number, 2, f"--config.optimizer.learning_rate={rate}", port=unused_tcp_port)
        for number, rate in enumerate((0.001, 0.002))
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert any("process 1 does not run what process 0 runs: here optimizer.learning_rate 0.002, there 0.001" in each
               for each in said)  # fmt: skip
    assert all(process.returncode != 0 for process in both) and not (workdir / "config.json").exists()


@pytest.fixture
def unused_tcp_port():
    import socket

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]
