"""Tools that a language model calls in its text, and how a call is written: " [Calculator(3*4) -> 12]".

Schick et al. 2023, "Toolformer": e(c) = " [NAME(INPUT)]", e(c, r) = " [NAME(INPUT) -> RESULT]". How a model learns to
write calls, and writes with them, is in `toolformer`.
"""

import datetime
import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

START, ARROW, CLOSE = " [", " -> ", "]"
MAX_INPUT = 200  # characters that the calculator reads
_HEAD = r"(\w+)\(([^\[\]]*)\)"
_CALL = re.compile(rf" \[{_HEAD}(?: -> ([^\[\]]*))?\]")
# In English, whatever language the machine speaks.
_DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
_MONTHS = (
    "January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November",
    "December",
)  # fmt: skip
_DIGITS = tuple("0123456789")
_TOKEN = re.compile(r"[0-9]+(?:\.[0-9]+)?|\S")

Tool = Callable[[str], str | None]  # the result of an input; None: there is none


class Call(NamedTuple):
    """The name of a tool and what it is given."""

    tool: str
    input: str


class Written(NamedTuple):
    """A call in a text, text[start:end]; without a result, the result is None."""

    start: int
    end: int
    call: Call
    result: str | None


def write(call: Call, result: str | None = None) -> str:
    """e(c), or with a result e(c, r); the empty result is written as well: " [NAME(INPUT) -> ]"."""
    said = "" if result is None else f"{ARROW}{result}"
    return f"{START}{call.tool}({call.input}){said}{CLOSE}"


def find(text: str) -> list[Written]:
    """All calls of a text, in their order."""
    return [Written(m.start(), m.end(), Call(m[1], m[2]), m[3]) for m in _CALL.finditer(text)]


def strip(text: str) -> str:
    """The text without its calls."""
    return _CALL.sub("", text)


def read(text: str) -> Call | None:
    """The call that a model has written behind START, up to the arrow or the bracket; None: it is none."""
    found = re.fullmatch(_HEAD, text.strip())
    return Call(found[1], found[2]) if found else None


def run(call: Call, tools: dict[str, Tool]) -> str | None:
    """The result of a call; None: there is no such tool, or it has no result for that input."""
    tool = tools.get(call.tool)
    return None if tool is None else tool(call.input)


def calendar(today: datetime.date) -> Tool:
    """The tool that tells the date, whatever day the machine thinks it is; it takes no input."""
    text = f"Today is {_DAYS[today.weekday()]}, {_MONTHS[today.month - 1]} {today.day}, {today.year}."
    return lambda given: None if given.strip() else text


def calculator(text: str) -> str | None:
    """The value of a sum with + - * / and parentheses, exact and then rounded to two decimals (half to even).

    None: it is no such sum, it divides by zero, or it is longer than MAX_INPUT.
    """
    if len(text) > MAX_INPUT:
        return None
    try:
        value = round(_Sum(text).value(), 2)
    except (_NoSumError, ZeroDivisionError):
        return None
    whole, hundredths = divmod(abs(value) * 100, 100)
    decimals = f"{int(hundredths):02d}".rstrip("0")
    return f"{'-' if value < 0 else ''}{int(whole)}{'.' if decimals else ''}{decimals}"


class _NoSumError(Exception):
    """The text is no sum."""


class _Sum:
    """A reader of sums: SUM = PRODUCT {(+|-) PRODUCT}, PRODUCT = FACTOR {(*|/) FACTOR}, FACTOR = [-] (NUMBER | (SUM)).

    It calls itself for what is in parentheses, at most MAX_INPUT deep.
    """

    def __init__(self, text: str):
        self._tokens, self._at = [*_TOKEN.findall(text), ""], 0  # the last one stands for the end

    def value(self) -> Fraction:
        """Of all of the text."""
        value = self._sum()
        if self._tokens[self._at]:
            raise _NoSumError
        return value

    def _take(self, *signs: str) -> str:
        """The next token, if it is one of those; else nothing."""
        if self._tokens[self._at] not in signs:
            return ""
        self._at += 1
        return self._tokens[self._at - 1]

    def _sum(self) -> Fraction:
        value = self._product()
        while sign := self._take("+", "-"):
            right = self._product()
            value = value + right if sign == "+" else value - right
        return value

    def _product(self) -> Fraction:
        value = self._factor()
        while sign := self._take("*", "/"):
            right = self._factor()
            value = value * right if sign == "*" else value / right
        return value

    def _factor(self) -> Fraction:
        if self._take("-"):
            return -self._factor()
        if self._take("("):
            value = self._sum()
            if not self._take(")"):
                raise _NoSumError
            return value
        token = self._tokens[self._at]
        if token[:1] not in _DIGITS:
            raise _NoSumError
        self._at += 1
        return Fraction(token)
