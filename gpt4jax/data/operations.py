"""The steps of code tasks: operations that a prompt describes, and a library of named ones that has to be known.

A described step says all that is to be done ("add 7 if below 9"), so a decoder must find the phrase, know what it means
and copy its constants. A named step is a call into a library that only the training texts show: "davupe" means
`[i for i in x if i > 2]`, and no prompt says so. There are many names, drawn by Zipf's law, for few meanings, and a
meaning has as many names as any other. So a name that a decoder does not know yet is guessed now and then, and more are
known as compute grows: no skill comes all at once, as copying does.
"""

import bisect
import dataclasses
import functools
import itertools
import string
from collections.abc import Mapping, Sequence

import numpy as np

LETTERS = string.ascii_lowercase

Step = tuple[str, str]  # phrase, and expression with {v} for the argument
Row = tuple[str, ...]  # phrase, expression, and the type that it gives if that is another

# What is done to each type of value, the commonest first: phrase, expression, and the type it gives if that is another.
# {v} is the name of the value so far; {n}, {k}, {m} numbers 2 to 9, {c}, {d} letters, {w} one or two letters.
_TABLE: dict[str, tuple[Row, ...]] = {
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
_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]
_NAMES_PER_TYPE = 1024
_MEANINGS_PER_TYPE = 32
_LIBRARY_SEED = 0


@dataclasses.dataclass(frozen=True)
class Operations:
    """What steps may do to each type of value, and how often.

    Attributes:
        rows: of each type, the commonest first.
        exponent: the row of rank r, from 1, is drawn as 1 / r to this power (Zipf's law).
        levels: steps of the longest chain.
        synonyms: whether several phrases mean the same, so that it is phrases that are held out and not programs.
    """

    rows: Mapping[str, Sequence[Row]]
    exponent: float
    levels: int
    synonyms: bool

    @functools.cached_property
    def _cumulative(self) -> dict[tuple[str, bool], list[float]]:
        """Of each type, in the middle of a chain and at its end: the chance of a row or one before it."""
        return {(takes, last): self._chances(rows, last) for takes, rows in self.rows.items() for last in (False, True)}

    def _chances(self, rows: Sequence[Row], last: bool) -> list[float]:
        weights = [rank**-self.exponent if last or "bool" not in row[2:] else 0.0 for rank, row in enumerate(rows, 1)]
        return (np.cumsum(weights) / np.sum(weights)).tolist()

    def draw(self, rng: np.random.Generator, takes: str, last: bool) -> tuple[Step, str]:
        """A step on a value of this type, and the type it gives. What gives a bool comes `last` only."""
        return _filled(rng, self.rows[takes][bisect.bisect(self._cumulative[takes, last], rng.random())], takes)


def below(rng: np.random.Generator, n: int) -> int:
    """A number from 0 to n - 1: a good deal faster than rng.integers for one number."""
    return int(rng.random() * n)


def _filled(rng: np.random.Generator, row: Row, takes: str) -> tuple[Step, str]:
    """A row with its constants drawn, and the type it gives."""
    phrase, expression, *gives = row
    letters = [LETTERS[below(rng, 26)] for _ in range(4)]
    constants = dict(
        n=below(rng, 8) + 2, k=below(rng, 8) + 2, m=below(rng, 8) + 2,
        c=letters[0], d=letters[1], w="".join(letters[2 : 3 + below(rng, 2)]),
    )  # fmt: skip
    return (phrase.format(**constants), expression.format(v="{v}", **constants)), gives[0] if gives else takes


def _library() -> dict[str, list[Row]]:
    """Of each type, names in place of phrases. Of the commonest names as many as there are meanings all differ."""
    rng = np.random.default_rng(_LIBRARY_SEED)
    names: dict[str, None] = {}
    while len(names) < len(_TABLE) * _NAMES_PER_TYPE:
        names["".join(_SYLLABLES[below(rng, len(_SYLLABLES))] for _ in range(3))] = None
    fresh = iter(names)
    library = {}
    for takes, rows in _TABLE.items():
        meanings: dict[str, Row] = {}
        while len(meanings) < _MEANINGS_PER_TYPE:
            (_, expression), gives = _filled(rng, rows[below(rng, len(rows))], takes)
            meanings[expression] = (expression,) if gives == takes else (expression, gives)
        dealt = itertools.cycle(meanings.values())
        library[takes] = [(name, *next(dealt)) for name in itertools.islice(fresh, _NAMES_PER_TYPE)]
    return library


DESCRIBED = Operations(_TABLE, exponent=1.5, levels=6, synonyms=False)
NAMED = Operations(_library(), exponent=1.5, levels=3, synonyms=True)
FAMILIES = {"code_tasks": DESCRIBED, "named_tasks": NAMED}  # by the name of the data set that has such texts
