"""The steps of code tasks: operations that a prompt describes, and a library of named ones that has to be known.

A described step says all that is to be done ("add 7 if below 9"), so a decoder must find the phrase, know what it means
and copy its constants. A named step is a call into a library that only the training texts show: "kabegu" means `x * 5`,
and no prompt says so. There are many names, drawn by Zipf's law, and few likely meanings. So what a decoder does not
know yet it still guesses now and then, its pass rate on a chain is about a product over names, and more are known as
compute grows: no skill comes all at once, as copying does.
"""

import bisect
import dataclasses
import functools
import re
from collections.abc import Mapping, Sequence

import numpy as np

# What is done to each type of value, the commonest first: phrase, expression, and the type it gives if that is another.
# {v} is the name of the value so far; {n}, {k}, {m} numbers 2 to 9, {c}, {d} letters, {w} one or two letters.
_TABLE: dict[str, tuple[tuple[str, ...], ...]] = {
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
_LETTERS = "abcdefghijklmnopqrstuvwxyz"
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_NAMES_PER_TYPE = 1024
_LIBRARY_SEED = 0

Step = tuple[str, str]  # phrase, and expression with {v} for the argument
Row = tuple[str, ...]  # phrase, expression, and the type that it gives if that is another


@dataclasses.dataclass(frozen=True)
class Operations:
    """What steps may do to each type of value, and how often.

    Attributes:
        rows: of each type, the commonest first.
        exponent: the row of rank r is drawn as 1 / r to this power.
        levels: steps of the longest chain.
    """

    rows: Mapping[str, Sequence[Row]]
    exponent: float
    levels: int

    @functools.cached_property
    def _cumulative(self) -> dict[tuple[str, bool], list[float]]:
        return {
            (takes, last): _cumulative(rows, self.exponent, last)
            for takes, rows in self.rows.items()
            for last in (False, True)
        }

    def draw(self, rng: np.random.Generator, takes: str, last: bool) -> tuple[Step, str]:
        """A step on a value of this type, and the type it gives. What gives a bool comes `last` only."""
        at = bisect.bisect(self._cumulative[takes, last], rng.random())
        phrase, expression, *gives = self.rows[takes][at]
        constants = _constants(rng)
        step = phrase.format(**constants), expression.format(v="{v}", **constants)
        return step, gives[0] if gives else takes


def below(rng: np.random.Generator, n: int) -> int:
    """A number from 0 to n - 1: a good deal faster than rng.integers for one number."""
    return int(rng.random() * n)


def _cumulative(rows: Sequence[Row], exponent: float, last: bool) -> list[float]:
    weights = [1 / (rank + 1) ** exponent if last or "bool" not in row[2:] else 0.0 for rank, row in enumerate(rows)]
    return (np.cumsum(weights) / np.sum(weights)).tolist()


def _constants(rng: np.random.Generator) -> dict[str, object]:
    letters = [_LETTERS[below(rng, 26)] for _ in range(4)]
    return dict(
        n=below(rng, 8) + 2, k=below(rng, 8) + 2, m=below(rng, 8) + 2,
        c=letters[0], d=letters[1], w="".join(letters[2 : 3 + below(rng, 2)]),
    )  # fmt: skip


def _library(described: Operations) -> dict[str, list[Row]]:
    """Names in place of phrases. Each means a described operation with constants; more than one may mean the same.

    Operations with letters are left out: of so many nobody guesses one.
    """
    rng = np.random.default_rng(_LIBRARY_SEED)
    guessed = {
        takes: [row for row in rows if not re.search("{[cdw]}", row[0])] for takes, rows in described.rows.items()
    }
    meanings = Operations(guessed, described.exponent, 1)
    names: dict[str, None] = {}
    while len(names) < len(guessed) * _NAMES_PER_TYPE:
        names["".join(_SYLLABLES[below(rng, len(_SYLLABLES))] for _ in range(3))] = None
    fresh = iter(names)
    library: dict[str, list[Row]] = {takes: [] for takes in guessed}
    for takes, rows in library.items():
        for _ in range(_NAMES_PER_TYPE):
            (_, expression), gives = meanings.draw(rng, takes, last=True)
            rows.append((next(fresh), expression, *([gives] if gives != takes else [])))
    return library


DESCRIBED = Operations(_TABLE, exponent=1.5, levels=6)
NAMED = Operations(_library(DESCRIBED), exponent=1.5, levels=3)
