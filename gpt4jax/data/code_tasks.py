"""Small code tasks with unit tests, for models of 10^4 to 10^7 parameters: HumanEval's part at our scale.

A task describes a chain of steps, each with the name of its result, and wants the function:

    # a: double, b: add 7 if below 9, return: negate
    def f(x):
        a = x * 2
        b = a + 7 if a < 9 else a
        return -b

or, of a library that only the training texts show,

    # a: davupe, return: rugofa
    def f(x):
        a = [i for i in x if i > 2]
        return min(a)

Both families (`gpt4jax.data.operations`: DESCRIBED, NAMED) are ours; the GPT-4 report has none at this scale. A task's
level is its number of steps. Steps work on whole numbers, strings and lists, and may lead from one to the other. A pass
rate is about a product over steps, and rises with compute as rare operations are learnt late. (Different problems of
level 1 run through the common operations soon: described ones are hardly easier than those of level 2, named ones
harder.) A described step is
right if its phrase was found, its operation is known and its constants are copied: constants and chains are drawn, so
there is little to memorise, but decoders begin to copy all at once. Of a named step there is only the meaning to know.
Results' names are fixed, since drawn ones left the smallest models at 0.

Training texts and problems are disjoint by construction: a hash says which side a program is on, of the solution's
expressions or, where several phrases mean the same, of the phrases. A description has one solution only.
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gpt4jax.data.operations import DESCRIBED, LETTERS, Operations, Step, below
from gpt4jax.data.restricted_python import MAX_SOURCE, RefusedError, Value, call, parse, same

MAX_BYTES = 200  # of a training text, and of a problem's prompt and solution; longer programs are drawn again
HELD_OUT_PERCENT = 10  # of programs: for problems
NUM_TESTS = 8  # of a problem, and a few more that tell it from its neighbours
_SPARE = 200  # arguments to find those among
_PATIENCE = 1000  # draws without a new problem after which a level has no more

_TYPES = ("int", "int", "str", "list")  # of arguments: half are numbers
_INDENT = "    "
_NAMES = "xabcde"  # of the argument and of each step's result but the last; i is an item, f the function


@dataclasses.dataclass(frozen=True)
class Problem:
    """A task to solve.

    Attributes:
        name: distinct among the problems of one call.
        level: its number of steps.
        prompt: the description, the line with `def` and the next one's indentation, to be continued. (The end of a
            line would be no place to stop: tokenizers join it with the indentation behind it.)
        tests: pairs of an argument and the value that the function must give.
        solution: one right continuation.
    """

    name: str
    level: int
    prompt: str
    tests: tuple[tuple[Value, Value], ...]
    solution: str


def documents(seed: int, count: int, levels: int | None = None, operations: Operations = DESCRIBED) -> Iterator[str]:
    """Training texts, one task each: a prompt and its solution, at most MAX_BYTES bytes of ASCII.

    Levels 1 to `levels` (None: all) are equally frequent. A text may come again, as often as chance has it.

    Raises:
        ValueError: more levels than the operations have.
    """
    levels = _levels(levels, operations)
    rng = np.random.default_rng([seed, 0])
    for _ in range(count):
        _, steps = _draw(rng, below(rng, levels) + 1, held_out=False, operations=operations)
        yield "".join(_render(steps))


def problems(
    seed: int, per_level: int, levels: int | None = None, operations: Operations = DESCRIBED
) -> tuple[Problem, ...]:
    """`per_level` different held-out problems of each level up to `levels` (None: all), the lowest level first.

    In each, every step matters (without it, some test fails) and the tests don't all expect the same.

    Raises:
        ValueError: more levels than the operations have, or more problems than a level has.
    """
    levels = _levels(levels, operations)
    rng = np.random.default_rng([seed, 1])
    found: list[Problem] = []
    for level in range(1, levels + 1):
        programs: set[tuple[Step, ...]] = set()
        draws = 0
        while len(programs) < per_level:
            takes, steps = _draw(rng, level, held_out=True, operations=operations)
            tests = None if steps in programs else _tests(rng, takes, steps)
            draws = draws + 1 if tests is None else 0
            if draws == _PATIENCE:
                raise ValueError(
                    f"level {level} gave {len(programs)} different problems, not {per_level}; ask for fewer"
                )
            if tests is not None:
                prompt, solution = _render(steps)
                found.append(Problem(f"level{level}/{len(programs)}", level, prompt, tests, solution))
                programs.add(steps)
    return tuple(found)


def passes(problem: Problem, completion: str) -> bool:
    """Whether the prompt and `completion`, up to its first line that is blank or not indented, pass every test.

    Nothing is executed: an interpreter of a small part of Python walks the syntax tree, with limits on steps, sizes
    and depth. Whatever else a completion may hold, it fails. Values must be equal and of the same type.
    """
    head, _, begun = problem.prompt.rpartition("\n")
    lines = f"{begun}{completion}".split("\n")
    body = "\n".join(itertools.takewhile(lambda line: line[:1] in (" ", "\t") and line.strip(), lines))
    if len(body) > MAX_SOURCE:
        return False
    try:
        function = parse(f"{head}\n{body}\n")
        return all(same(call(function, value), expected) for value, expected in problem.tests)
    except RefusedError:
        return False


def _levels(levels: int | None, operations: Operations) -> int:
    if levels is None:
        return operations.levels
    if not 1 <= levels <= operations.levels:
        raise ValueError(f"levels is {levels}; it must be from 1 to {operations.levels}")
    return levels


def _draw(rng: np.random.Generator, level: int, held_out: bool, operations: Operations) -> tuple[str, tuple[Step, ...]]:
    """The argument's type and the steps of a program that is held out, or not, and not too long."""
    while True:
        takes = now = _TYPES[below(rng, len(_TYPES))]
        steps = []
        for left in reversed(range(level)):
            step, now = operations.draw(rng, now, last=left == 0)
            steps.append(step)
        told_by = [phrase if operations.synonyms else expression for phrase, expression in steps]
        if _held_out(told_by) == held_out and sum(map(len, _render(steps))) <= MAX_BYTES:
            return takes, tuple(steps)


def _held_out(steps: Sequence[str]) -> bool:
    digest = hashlib.sha256("\n".join(steps).encode()).digest()
    return int.from_bytes(digest[:8], "big") % 100 < HELD_OUT_PERCENT


def _render(steps: Sequence[Step]) -> tuple[str, str]:
    """The prompt and the solution."""
    results = [*_NAMES[1 : len(steps)], "return"]
    description = ", ".join(f"{result}: {phrase}" for result, (phrase, _) in zip(results, steps, strict=True))
    expressions = [expression.format(v=name) for name, (_, expression) in zip(_NAMES, steps, strict=False)]
    body = [f"{name} = {expression}\n" for name, expression in zip(_NAMES[1:], expressions[:-1], strict=False)]
    return f"# {description}\ndef f({_NAMES[0]}):\n{_INDENT}", _INDENT.join([*body, f"return {expressions[-1]}\n"])


def _tests(rng: np.random.Generator, takes: str, steps: tuple[Step, ...]) -> tuple[tuple[Value, Value], ...] | None:
    """Arguments and values; None if a step fails on them, a step makes no difference, or nothing does.

    To NUM_TESTS arguments comes one for each program with one number changed by 1 that would pass them: the first of
    some more that shows the difference, if any does.
    """
    letters = "".join(re.findall(r'"(\w+)"', " ".join(expression for _, expression in steps)))
    arguments = [_argument(rng, takes, letters) for _ in range(NUM_TESTS + _SPARE)]
    values = _values(steps, arguments)
    if values is None:
        return None
    chosen = list(range(NUM_TESTS))
    for other in _neighbours(steps):
        if _passing(other, arguments, values, chosen):
            chosen += [i for i in range(NUM_TESTS, len(arguments)) if not _passing(other, arguments, values, [i])][:1]
    if all(same(values[i], values[0]) for i in chosen):
        return None
    if any(_passing(steps[:i] + steps[i + 1 :], arguments, values, chosen) for i in range(len(steps))):
        return None
    return tuple((arguments[i], values[i]) for i in chosen)


def _neighbours(steps: tuple[Step, ...]) -> Iterator[tuple[Step, ...]]:
    """The programs that differ in one number by 1."""
    for at, (phrase, expression) in enumerate(steps):
        for found in re.finditer(r"\d+", expression):
            for number in (int(found[0]) - 1, int(found[0]) + 1):
                changed = f"{expression[: found.start()]}{number}{expression[found.end() :]}"
                yield (*steps[:at], (phrase, changed), *steps[at + 1 :])


def _passing(steps: Sequence[Step], arguments: Sequence[Value], values: Sequence[Value], chosen: Sequence[int]) -> bool:
    """Whether a program gives these values for the chosen arguments."""
    others = _values(steps, [arguments[i] for i in chosen])
    return others is not None and all(same(values[i], other) for i, other in zip(chosen, others, strict=True))


def _argument(rng: np.random.Generator, takes: str, letters: str) -> Value:
    """A number near the constants, a list of such, or a string with the program's own letters here and there."""

    def number() -> int:
        return below(rng, 41) - 20

    def letter() -> str:
        drawn = letters if letters and rng.random() < 0.3 else LETTERS
        one = drawn[below(rng, len(drawn))]
        return one.upper() if rng.random() < 0.3 else one

    if takes == "int":
        return number()
    one: Callable[[], Value] = number if takes == "list" else letter
    items = [one() for _ in range(10 + below(rng, 8))]  # longer than most programs drop
    return items if takes == "list" else "".join(map(str, items))


def _values(steps: Sequence[Step], arguments: Sequence[Value]) -> list[Value] | None:
    """What the program gives for each argument; None if it fails on one. No steps: the arguments themselves."""
    try:
        function = parse("".join(_render(steps or [("", "{v}")])))
        return [call(function, argument) for argument in arguments]
    except RefusedError:
        return None
