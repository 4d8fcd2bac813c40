"""The sandbox from outside; all attacks are run by `python -m tests.bench.sandbox attacks`."""

import sys

import pytest

from gpt4jax.errors import UserError
from gpt4jax.evals import sandbox
from gpt4jax.evals.sandbox import Limits, Problem, Sandbox
from tests.evals import attacks

SAMPLE = (
    "tcp", "udp", "local socket", "write a file", "overwrite", "symbolic link out", "read a secret file",
    "environment", "fork that stays", "shell", "kill the forker", "stop itself", "memory", "output flood",
    "close every file", "io_uring", "fake: exit 0", "fake: raise StopIteration", "fake: an int equal to everything",
    "fake: walk the frames", "fake: say passed on every file", "fake: answer before it is asked",
    "fake: poke an integer", "fake: a lazy object",
)  # fmt: skip


@pytest.fixture(scope="module")
def box():
    with Sandbox(Limits(seconds=2.0, cpu_seconds=1), workers=2) as made:
        yield made


def test_a_sample_of_attacks_achieves_nothing():
    assert dict(attacks.attempts(list(SAMPLE))) == {name: [] for name in SAMPLE}
    assert len(attacks.ATTACKS) + len(attacks.FAKES) >= 100


def test_the_observer_sees_what_happens_without_a_sandbox():
    names = ("tcp", "write a file", "read a secret file", "environment", "udp")
    assert all(achieved for _, achieved in attacks.unprotected(names))


def test_a_program_computes_reads_and_writes_its_streams_and_its_scratch_folder(box):
    found = box.run(
        "import math, sys\nopen('f', 'w').write('kept')\nprint(input(), math.pi, open('f').read())\n"
        "print('late', file=sys.stderr)\nsys.exit(3)", "hello\n",
    )  # fmt: skip
    assert (found.stdout, found.stderr, found.status) == ("hello 3.141592653589793 kept\n", "late\n", 3)
    assert "No such file" in box.run("open('f')").stderr  # the next program finds it empty


@pytest.mark.parametrize(
    ("source", "stopped"),
    [
        ("while True: pass", "took more than 2.0 s|signal 9|signal 24"),
        ("import time; time.sleep(9)", "took more than 2.0 s"),
        ("import os, time; os.closerange(0, 3); time.sleep(9)", "took more than 2.0 s"),
        ("while True: print('x' * 4096)", "wrote more than 1048576 bytes"),
    ],
)
def test_limits_say_which_they_are(box, source, stopped):
    import re

    found = box.run(source)
    assert re.search(stopped, found.stopped) and found.seconds < 4 and len(found.stdout) <= 2**20


def test_values_of_all_plain_types_pass_through_and_keep_their_types(box):
    prompt = 'def same(x):\n    """The same."""\n'
    values = "1, -2**70, 1.5, True, None, 'ä\\ud800', b'x', (1, [2]), {1, 2}, frozenset([3]), {'a': (1,)}, {2: []}, 2j"
    test = f"def check(candidate):\n    for x in ({values}, range(3)):\n        y = candidate(x)\n"
    test += "        assert y == x and type(y) is type(x)\n"
    test += "    assert same(5) == 5 and repr(candidate(float('nan'))) == 'nan'\n"
    assert box.check(Problem(prompt, "same", test), "    return x\n").passed


def test_errors_arrive_as_the_built_in_ones(box):
    prompt = 'def f(x):\n    """Fails."""\n'
    test = "def check(candidate):\n    try:\n        candidate(0)\n    except ValueError:\n        return\n"
    test += "    assert False\n"
    own = "    class Mine(ValueError):\n        pass\n    raise Mine\n"
    assert box.check(Problem(prompt, "f", test), own).passed
    assert not box.check(Problem(prompt, "f", test), "    raise KeyError\n").passed


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("    return x\n", "failed: AssertionError"),
        ("    return (x\n", "ended before the test did"),
        ("    while True: pass\n", "took more than 2.0 s|ended before"),
        ("    return print\n", "ended before the test did"),
    ],
)
def test_why_a_solution_fails_is_said(box, completion, reason):
    import re

    problem, _ = attacks.problem(0)
    verdict = box.check(Problem(problem.prompt.replace("(n)", "(x)"), problem.entry_point, problem.test), completion)
    assert not verdict.passed and re.search(reason, verdict.reason)


def test_a_test_that_never_calls_the_function_is_not_passed(box):
    empty = Problem('def f():\n    """Nothing."""\n', "f", "def check(candidate):\n    pass\n")
    assert box.check(empty, "    return 1\n").reason == "the test never called the function"


def test_a_worker_that_was_killed_fails_one_solution_and_no_more():
    problem, solution = attacks.problem(3)
    with Sandbox(Limits(seconds=2.0, cpu_seconds=1), workers=1) as own:
        own._free[0][0]._process.kill()
        own._free[0][0]._process.wait()
        verdict = own.check(problem, solution)
        assert not verdict.passed and "the sandbox's own process ended" in verdict.reason
        assert own.check(problem, solution).passed


def test_many_at_once_come_in_their_order(box):
    asked = [attacks.problem(i) for i in range(12)]
    wrong = [(problem, "    return n\n") for problem, _ in asked]
    verdicts = box.check_many([pair for both in zip(asked, wrong, strict=True) for pair in both])
    assert [verdict.passed for verdict in verdicts] == [True, False] * 12


def test_where_nothing_can_be_isolated_nothing_is_run(monkeypatch, tmp_path):
    """A worker whose kernel has no Landlock, and one whose filter lets a socket through."""
    source = sandbox._WORKER
    for name, before, after, message in (
        ("sandbox_kernel.py", "_LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444,", "_LANDLOCK_ADD, _LANDLOCK_RESTRICT = 999,",
         "can't be isolated .*Landlock .* failed: Function not implemented"),
        ("sandbox_kernel.py", '"read": 0,', '"read": 0, "socket": 41,', "leaks.*: opening a local socket"),
    ):  # fmt: skip
        for file in source.parent.glob("sandbox_*.py"):
            (tmp_path / file.name).write_text(file.read_text())
        changed = (tmp_path / name).read_text()
        assert before in changed
        (tmp_path / name).write_text(changed.replace(before, after))
        monkeypatch.setattr(sandbox, "_WORKER", tmp_path / source.name)
        with pytest.raises(UserError, match=message):
            Sandbox(workers=1)


def test_the_command_says_what_holds(capsys):
    assert sandbox.main() == 0
    assert "opening a network socket: refused" in capsys.readouterr().out and sys.platform == "linux"
