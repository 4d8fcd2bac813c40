"""Arithmetic in words: as many problems as wanted, each with a chain of thought and a verifier.

For trials of self-improvement and of tools, which need questions whose answers nobody told the model and can still be
checked. A problem is a function of (seed, index); which split it belongs to, of the sum that it asks for, so that no
sum is in two splits, in whatever words.
"""

import dataclasses
import hashlib
import re
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from gpt4jax.evals.generation_tasks import number

SPLITS = {"demonstrations": 20, "questions": 60, "held_out": 20}  # of 100 values of a hash
_NAMES = ("Ann", "Ben", "Cleo", "Dan", "Eva", "Finn", "Gus", "Hana", "Ida", "Jon", "Kim", "Leo", "Mia", "Ned", "Ola")
_THINGS = ("figs", "pens", "cups", "eggs", "nuts", "hats", "keys", "maps", "rods", "gems", "caps", "bags")
_WORDS = {
    "+": ("gets {}", "finds {}", "buys {}"),
    "-": ("loses {}", "sells {}", "eats {}"),
    "*": ("then has {} times as many",),
    "/": ("keeps one in {}",),
}
_FACTOR = 9  # the largest number to multiply with, or to divide by
_EQUATION = re.compile(r"(-?\d+)([-+*/])(\d+)=(-?\d+)")


@dataclasses.dataclass(frozen=True)
class Difficulty:
    """What problems are like.

    Attributes:
        fewest, most: steps of a problem.
        largest: of the numbers that are added and taken away; no result is above ten times that.
        operators: of "+-*/", each as often as any other where it gives a whole number that is not negative.
        words: a story; False: the bare sum.

    Raises:
        ValueError: no such steps, numbers or operators.
    """

    fewest: int = 2
    most: int = 3
    largest: int = 99
    operators: str = "+-"
    words: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.fewest <= self.most:
            raise ValueError(f"problems of {self.fewest} to {self.most} steps: at least one, and no fewer at most")
        if self.largest < _FACTOR:
            raise ValueError(f"the largest number is {self.largest}; it must be at least {_FACTOR}")
        if not self.operators or set(self.operators) - set(_WORDS):
            raise ValueError(f"operators are {self.operators!r}; they must be some of {''.join(_WORDS)!r}")


class Problem(NamedTuple):
    """A question, and how it is answered: from `start` step by step, each an operator and a number."""

    question: str
    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def results(self) -> tuple[int, ...]:
        """After each step."""
        value, out = self.start, []
        for operator, operand in self.steps:
            value = _apply(value, operator, operand)
            out.append(value)
        return tuple(out)

    @property
    def answer(self) -> int:
        """The last result."""
        return self.results[-1]

    @property
    def expression(self) -> str:
        """The sum in one line, with the parentheses that it needs."""
        return _expression(self.start, self.steps)

    @property
    def path(self) -> str:
        """The chain of thought: one equation a step, and the answer."""
        before = (self.start, *self.results)
        lines = [f"{a}{op}{b}={c}." for a, (op, b), c in zip(before, self.steps, self.results, strict=False)]
        return " ".join([*lines, f"The answer is {self.answer}."])


class Verdict(NamedTuple):
    """Whether a text gives the right answer; and whether it says equations, and all that it says are true."""

    answer: bool
    equations: bool


def problem(seed: int, index: int, difficulty: Difficulty) -> Problem:
    """The problem of that number.

    Raises:
        ValueError: operators that lead nowhere, such as "/" alone.
    """
    rng = np.random.default_rng([seed, index])
    for _ in range(1000):
        start, count = (
            int(rng.integers(2, difficulty.largest + 1)),
            rng.integers(difficulty.fewest, difficulty.most + 1),
        )
        steps = _steps(rng, difficulty, start, int(count))
        if steps is not None:
            break
    else:
        raise ValueError(f"with the operators {difficulty.operators!r} there are no {difficulty.fewest} steps")
    if not difficulty.words:
        return Problem(f"What is {_expression(start, steps)}?", start, steps)
    name, thing = (str(rng.choice(words)) for words in (_NAMES, _THINGS))
    told = [str(rng.choice(_WORDS[operator])).format(operand) for operator, operand in steps]
    return Problem(f"{', '.join([f'{name} has {start} {thing}', *told])}. How many now?", start, steps)


def rearranged(one: Problem, rng: np.random.Generator) -> Problem:
    """The same question, answered in a random order of its numbers: another chain of thought with the same answer.

    Of all orders without a negative result each is as likely.

    Raises:
        ValueError: it multiplies or divides, where the order matters.
    """
    terms = [("+", one.start), *one.steps]
    if any(operator not in "+-" for operator, _ in terms):
        raise ValueError(f"{one.expression} can't be done in another order: only + and - can")
    while True:  # the order of the question is one of those that will do
        (operator, start), *steps = (terms[i] for i in rng.permutation(len(terms)))
        other = Problem(one.question, start, tuple(steps))
        if operator == "+" and min(other.results) >= 0:
            return other


def split(one: Problem) -> str:
    """Which of SPLITS a problem belongs to."""
    bucket = int.from_bytes(hashlib.sha256(one.expression.encode()).digest(), "big") % 100
    for name, share in SPLITS.items():
        if bucket < share:
            return name
        bucket -= share
    raise AssertionError("the shares of SPLITS add up to 100")


def problems(seed: int, name: str, count: int, difficulty: Difficulty) -> list[Problem]:
    """The first `count` problems of a split, no sum twice.

    Raises:
        ValueError: no such split, or problems so easy that there are not as many.
    """
    if name not in SPLITS:
        raise ValueError(f"there is no split {name!r}; there are {', '.join(SPLITS)}")
    found: list[Problem] = []
    for one in _distinct(seed, 100 * (count + 1), difficulty):
        if len(found) == count:
            return found
        if split(one) == name:
            found.append(one)
    raise ValueError(f"there are only {len(found)} different problems of {difficulty} in {name}, not {count}")


def verify(one: Problem, text: str) -> Verdict:
    """What is right in an answer; "The answer is N." must be said, and the first one counts."""
    said = [(int(a), op, int(b), int(c)) for a, op, b, c in _EQUATION.findall(text)]
    true = [_is_true(*equation) for equation in said]
    return Verdict(number(text) == str(one.answer), bool(true) and all(true))


def _distinct(seed: int, tries: int, difficulty: Difficulty) -> Iterator[Problem]:
    seen: set[str] = set()
    for index in range(tries):
        one = problem(seed, index, difficulty)
        if one.expression not in seen:
            seen.add(one.expression)
            yield one


def _steps(rng: np.random.Generator, difficulty: Difficulty, value: int, count: int):
    """So many steps from a value on; None: they have led where none of the operators can go on."""
    steps: list[tuple[str, int]] = []
    for _ in range(count):
        operands = {operator: _operands(operator, value, difficulty.largest) for operator in difficulty.operators}
        possible = [operator for operator, some in operands.items() if len(some)]
        if not possible:
            return None
        operator = str(rng.choice(possible))
        steps.append((operator, int(rng.choice(operands[operator]))))
        value = _apply(value, *steps[-1])
    return tuple(steps)


def _operands(operator: str, value: int, largest: int) -> np.ndarray:
    """The numbers with which a step gives a whole number from 0 to ten times the largest."""
    if operator == "+":
        return np.arange(1, min(largest, 10 * largest - value) + 1)
    if operator == "-":
        return np.arange(1, min(largest, value) + 1)
    factors = np.arange(2, _FACTOR + 1)
    return factors[factors * value <= 10 * largest] if operator == "*" else factors[value % factors == 0]


def _apply(value: int, operator: str, operand: int) -> int:
    if operator == "/":
        return value // operand
    return {"+": value + operand, "-": value - operand, "*": value * operand}[operator]


def _is_true(a: int, operator: str, b: int, c: int) -> bool:
    return b != 0 and c * b == a if operator == "/" else _apply(a, operator, b) == c


def _expression(start: int, steps: tuple[tuple[str, int], ...]) -> str:
    text, is_sum = str(start), False
    for operator, operand in steps:
        tight = operator in "*/"
        text = f"({text}){operator}{operand}" if tight and is_sum else f"{text}{operator}{operand}"
        is_sum = not tight
    return text
