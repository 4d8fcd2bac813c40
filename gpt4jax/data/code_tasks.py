"""Small code tasks with unit tests, for models of 10^4 to 10^7 parameters: HumanEval's part at our scale.

A task describes a chain of steps, each with the name of its result, and wants the function:

    # a: double, b: add 7 if below 9, return: negate
    def f(x):
        a = x * 2
        b = a + 7 if a < 9 else a
        return -b

The family is ours (the GPT-4 report has none at this scale). A task's level is its number of steps, 1 to 6. Steps work
on whole numbers, strings and lists, and may lead from one to the other. A step is right if its phrase was found, its
operation is known and its constants are copied, so a pass rate is about a product over steps: it falls with the level
and rises gradually with compute, as operations are drawn as 1 / rank^1.5 and the rare ones are learnt late. (Different
problems of level 1 run through the common operations soon, so they are hardly easier than those of level 2.) Constants
and chains are drawn, so there is little to memorise; names are fixed, since drawn ones and more even operations left
the smallest models at 0.

Training texts and problems are disjoint by construction: a hash of the solution's expressions says which side a program
is on, and a description has one solution only.
"""

import bisect
import dataclasses
import hashlib
import itertools
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from gpt4jax.data.restricted_python import MAX_SOURCE, RefusedError, Value, call, parse, same

LEVELS = 6
MAX_BYTES = 200  # of a training text, and of a problem's prompt and solution; longer programs are drawn again
HELD_OUT_PERCENT = 10  # of programs: for problems
NUM_TESTS = 8  # of a problem, and a few more that tell it from its neighbours
_SPARE = 200  # arguments to find those among
_PATIENCE = 1000  # draws without a new problem after which a level has no more

# What is done to each type of value, the commonest first: phrase, expression, and the type it gives if that is another.
# {v} is the name of the value so far; {n}, {k}, {m} numbers 2 to 9, {c}, {d} letters, {w} one or two letters.
_OPERATIONS: dict[str, tuple[tuple[str, ...], ...]] = {
    "int": (
        ("add {n}", "{v} + {n}"),
        ("subtract {n}", "{v} - {n}"),
        ("multiply by {m}", "{v} * {m}"),
        ("double", "{v} * 2"),
        ("negate", "-{v}"),
        ("cap at {n}", "min({v}, {n})"),
        ("at least {n}", "max({v}, {n})"),
        ("remainder by {m}", "{v} % {m}"),
        ("divide by {m}", "{v} // {m}"),
        ("add {n} if below {k}", "{v} + {n} if {v} < {k} else {v}"),
        ("absolute value", "abs({v})"),
        ("square", "{v} * {v}"),
        ("subtract from {n}", "{n} - {v}"),
        ("distance to {n}", "abs({v} - {n})"),
        ("double if even", "{v} * 2 if {v} % 2 == 0 else {v}"),
        ("triple", "{v} * 3"),
        ("round down to {m}s", "{v} // {m} * {m}"),
        ("negate if above {n}", "-{v} if {v} > {n} else {v}"),
        ("zero if below {n}", "0 if {v} < {n} else {v}"),
        ("last digit", "abs({v}) % 10"),
        ("as text", "str({v})", "str"),
        ("is above {n}", "{v} > {n}", "bool"),
        ("is even", "{v} % 2 == 0", "bool"),
        ("is a multiple of {m}", "{v} % {m} == 0", "bool"),
    ),
    "str": (
        ("append {w}", '{v} + "{w}"'),
        ("upper case", "{v}.upper()"),
        ("reverse", "{v}[::-1]"),
        ("first {m}", "{v}[:{m}]"),
        ("length", "len({v})", "int"),
        ("prepend {w}", '"{w}" + {v}'),
        ("drop first {m}", "{v}[{m}:]"),
        ("repeat {m} times", "{v} * {m}"),
        ("replace {c} by {d}", '{v}.replace("{c}", "{d}")'),
        ("last {m}", "{v}[-{m}:]"),
        ("count {c}", '{v}.count("{c}")', "int"),
        ("capitalize", "{v}.capitalize()"),
        ("lower case", "{v}.lower()"),
        ("every second letter", "{v}[::2]"),
        ("find {c}", '{v}.find("{c}")', "int"),
        ("sort letters", '"".join(sorted({v}))'),
        ("swap case", "{v}.swapcase()"),
        ("starts with {c}", '{v}.startswith("{c}")', "bool"),
        ("contains {c}", '"{c}" in {v}', "bool"),
    ),
    "list": (
        ("sum", "sum({v})", "int"),
        ("sort", "sorted({v})"),
        ("append {n}", "{v} + [{n}]"),
        ("reverse", "{v}[::-1]"),
        ("largest", "max({v})", "int"),
        ("first {m}", "{v}[:{m}]"),
        ("add {n} to each", "[i + {n} for i in {v}]"),
        ("smallest", "min({v})", "int"),
        ("double each", "[i * 2 for i in {v}]"),
        ("keep above {n}", "[i for i in {v} if i > {n}]"),
        ("length", "len({v})", "int"),
        ("drop first {m}", "{v}[{m}:]"),
        ("last item", "{v}[-1]", "int"),
        ("keep even", "[i for i in {v} if i % 2 == 0]"),
        ("prepend {n}", "[{n}] + {v}"),
        ("sort downwards", "sorted({v})[::-1]"),
        ("square each", "[i * i for i in {v}]"),
        ("count {n}", "{v}.count({n})", "int"),
        ("spread", "max({v}) - min({v})", "int"),
        ("contains {n}", "{n} in {v}", "bool"),
    ),
}
_TYPES = ("int", "int", "str", "list")  # of arguments: half are numbers
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_INDENT = "    "
_NAMES = "xabcde"  # of the argument and of each step's result but the last; i is an item, f the function

Step = tuple[str, str]  # phrase, and expression with {v} for the argument


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


def documents(seed: int, count: int, levels: int = LEVELS) -> Iterator[str]:
    """Training texts, one task each: a prompt and its solution, at most MAX_BYTES bytes of ASCII.

    Levels 1 to `levels` are equally frequent. A text may come again, as often as chance has it.

    Raises:
        ValueError: levels outside 1 to LEVELS.
    """
    _check_levels(levels)
    rng = np.random.default_rng([seed, 0])
    for _ in range(count):
        _, steps = _draw(rng, _below(rng, levels) + 1, held_out=False)
        yield "".join(_render(steps))


def problems(seed: int, per_level: int, levels: int = LEVELS) -> tuple[Problem, ...]:
    """`per_level` different held-out problems of each level, the easiest level first.

    In each, every step matters (without it, some test fails) and the tests don't all expect the same.

    Raises:
        ValueError: levels outside 1 to LEVELS, or more problems than a level has.
    """
    _check_levels(levels)
    rng = np.random.default_rng([seed, 1])
    found: list[Problem] = []
    for level in range(1, levels + 1):
        programs: set[tuple[Step, ...]] = set()
        draws = 0
        while len(programs) < per_level:
            takes, steps = _draw(rng, level, held_out=True)
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


def _check_levels(levels: int) -> None:
    if not 1 <= levels <= LEVELS:
        raise ValueError(f"levels is {levels}; it must be from 1 to {LEVELS}")


def _below(rng: np.random.Generator, n: int) -> int:
    return int(rng.random() * n)  # a good deal faster than rng.integers for one number


def _cumulative(takes: str, last: bool) -> list[float]:
    """Cumulative probabilities of the operations on a type, as 1 / rank^1.5. What gives a bool can only come last."""
    weights = [
        1 / (rank + 1) ** 1.5 if last or "bool" not in row[2:] else 0.0 for rank, row in enumerate(_OPERATIONS[takes])
    ]
    return (np.cumsum(weights) / np.sum(weights)).tolist()


_CUMULATIVE = {(takes, last): _cumulative(takes, last) for takes in _OPERATIONS for last in (False, True)}


def _draw(rng: np.random.Generator, level: int, held_out: bool) -> tuple[str, tuple[Step, ...]]:
    """The argument's type and the steps of a program that is held out, or not, and not too long."""
    while True:
        takes = now = _TYPES[_below(rng, len(_TYPES))]
        steps = []
        for left in reversed(range(level)):
            phrase, expression, *gives = _OPERATIONS[now][bisect.bisect(_CUMULATIVE[now, left == 0], rng.random())]
            letters = [_LETTERS[_below(rng, 26)] for _ in range(4)]
            constants = dict(
                n=_below(rng, 8) + 2, k=_below(rng, 8) + 2, m=_below(rng, 8) + 2,
                c=letters[0], d=letters[1], w="".join(letters[2 : 3 + _below(rng, 2)]),
            )  # fmt: skip
            steps.append((phrase.format(**constants), expression.format(v="{v}", **constants)))
            now = gives[0] if gives else now
        if _held_out(steps) == held_out and sum(map(len, _render(steps))) <= MAX_BYTES:
            return takes, tuple(steps)


def _held_out(steps: Sequence[Step]) -> bool:
    digest = hashlib.sha256("\n".join(expression for _, expression in steps).encode()).digest()
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
        return _below(rng, 41) - 20

    def letter() -> str:
        drawn = letters if letters and rng.random() < 0.3 else _LETTERS
        one = drawn[_below(rng, len(drawn))]
        return one.upper() if rng.random() < 0.3 else one

    if takes == "int":
        return number()
    one: Callable[[], Value] = number if takes == "list" else letter
    items = [one() for _ in range(10 + _below(rng, 8))]  # longer than most programs drop
    return items if takes == "list" else "".join(map(str, items))


def _values(steps: Sequence[Step], arguments: Sequence[Value]) -> list[Value] | None:
    """What the program gives for each argument; None if it fails on one. No steps: the arguments themselves."""
    try:
        function = parse("".join(_render(steps or [("", "{v}")])))
        return [call(function, argument) for argument in arguments]
    except RefusedError:
        return None
