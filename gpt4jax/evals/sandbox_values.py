"""Values of plain types as lines of text, between a program and the process that tests it. Standard library only.

JSON, and objects with one key for what JSON has not: a tuple, a set, a dictionary, bytes, and so on. What comes out has
exactly these types, whatever went in: a number that says it equals everything arrives as the number that it is.
"""

import builtins
import json
import os
from collections.abc import Callable
from typing import Any

MAX_LINE = 2**22  # bytes
_DEPTH = 100


class GoneError(BaseException):
    """The other end of a channel is gone, or says what is no value; no test's `except Exception` holds it up."""


class Lines:
    """Reads and writes lines on a file descriptor."""

    def __init__(self, channel: int):
        self._channel, self._held = channel, b""

    def read(self) -> str | None:
        """The next line; None where the other end is gone, or the line has no end."""
        while b"\n" not in self._held:
            try:
                more = os.read(self._channel, 65536)
            except OSError:
                return None
            if not more or len(self._held) > MAX_LINE:
                return None
            self._held += more
        line, _, self._held = self._held.partition(b"\n")
        return line.decode(errors="replace")

    def write(self, line: str) -> None:
        """Writes a line; nobody there is no error."""
        data = line.encode() + b"\n"
        while data:
            try:
                data = data[os.write(self._channel, data) :]
            except OSError:
                return


def encode(value: object) -> str:
    """A line of a value.

    Raises:
        GoneError: a value with a part of no plain type (a generator, an object of a class), or too deep.
    """
    return json.dumps(_plain(value, _DEPTH))


def encode_error(error: BaseException) -> str:
    """A line that raises that error, or its nearest built-in one, where it is decoded."""
    kind = next(kind for kind in type(error).__mro__ if getattr(builtins, kind.__name__, None) is kind)
    return json.dumps({"error": kind.__name__})


def _plain(value, depth: int):
    if depth < 0:
        raise GoneError("a value is too deep")
    if value is None or value is True or value is False:
        return value
    for kind, convert in _KINDS:
        if isinstance(value, kind):
            return convert(value, depth - 1)
    raise GoneError(f"a {type(value).__name__} is no plain value")


def _many(name: str, kind: Any):
    return lambda value, depth: {name: [_plain(one, depth) for one in kind.__iter__(value)]}


_KINDS: tuple[tuple[type, Callable[[Any, int], Any]], ...] = (
    (int, lambda value, depth: {"int": hex(int.__index__(value))}),
    (float, lambda value, depth: {"float": float.__repr__(value)}),
    (str, lambda value, depth: str.__str__(value)),
    (complex, lambda value, depth: {"complex": complex.__repr__(value)}),
    (bytes, lambda value, depth: {"bytes": bytes.hex(value)}),
    (list, lambda value, depth: [_plain(one, depth) for one in list.__iter__(value)]),
    (tuple, _many("tuple", tuple)),
    (set, _many("set", set)),
    (frozenset, _many("frozenset", frozenset)),
    (dict, lambda value, depth: {"dict": [[_plain(k, depth), _plain(v, depth)] for k, v in dict.items(value)]}),
    (range, lambda value, depth: {"range": [value.start, value.stop, value.step]}),
)
_MAKERS: dict[str, Callable[[Any], Any]] = {
    "int": lambda text: int(text, 16), "float": float, "complex": complex, "bytes": bytes.fromhex,
    "tuple": lambda found: tuple(map(_value, found)), "set": lambda found: set(map(_value, found)),
    "frozenset": lambda found: frozenset(map(_value, found)),
    "dict": lambda found: {_value(k): _value(v) for k, v in found}, "range": lambda found: range(*found),
}  # fmt: skip


def decode(line: str):
    """The value of a line.

    Raises:
        GoneError: it is none.
        Exception: the built-in error that the line says.
    """
    try:
        found = json.loads(line)
        if isinstance(found, dict) and "error" in found:
            error = _error(found["error"])
        else:
            return _value(found)
    except Exception as broken:
        raise GoneError("what came is no value") from broken
    raise error


def _error(name: str) -> Exception:
    """A built-in error; of those that would end a test's loop as if all were done, another."""
    kind = getattr(builtins, name, None)
    stops = (StopIteration, StopAsyncIteration)
    plain = isinstance(kind, type) and issubclass(kind, Exception) and not issubclass(kind, stops)
    return kind() if plain and kind is not None else RuntimeError()


def _value(found):
    if isinstance(found, list):
        return [_value(one) for one in found]
    if isinstance(found, dict):
        ((name, inner),) = found.items()
        return _MAKERS[name](inner)
    return found
