"""What masks have in common: how they are combined, which blocks they show, and how much of them there is.

Blocks are answered by bounds, `some` (False: surely no pair is visible) and `every` (True: surely all are), which
`&`, `|` and `~` combine. Bounds of a mask that depends on the distance q - k alone are exact (they are counted), and of
`causal() & fixed(...)` every EMPTY block is found; other combinations may call a block PARTIAL that is EMPTY or FULL,
which costs time and is never wrong.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

EMPTY, PARTIAL, FULL = 0, 1, 2
_LONGEST_PERIOD = 2**16  # of strides combined, up to which distances are counted


class Bounds(NamedTuple):
    """Of blocks: whether some of their pairs may be visible, and whether every one surely is."""

    some: np.ndarray
    every: np.ndarray


class Mask:
    """A pattern of query and key positions.

    Attributes:
        relative: whether it depends on the distance q - k alone, so that it holds at any place of a row.
        parts: the masks that it is made of.
        edges, strides: of a relative mask: the distances at which its answer changes, but for the multiples of strides.
    """

    relative = False
    parts: tuple["Mask", ...] = ()
    edges: tuple[int, ...] = ()
    strides: tuple[int, ...] = ()

    def __call__(self, q_pos: Any, k_pos: Any) -> Any:
        """Whether the query sees the key, for integer positions that broadcast against each other."""
        raise NotImplementedError(f"{type(self).__name__} does not say which keys it shows")

    def bounds(self, q_start: Any, q_end: Any, k_start: Any, k_end: Any) -> Bounds:
        """Bounds of blocks of queries q_start to q_end and keys k_start to k_end, ends excluded; arrays broadcast."""
        raise NotImplementedError(f"{type(self).__name__} does not say which blocks it shows")

    def distances(self) -> tuple[float, float]:
        """An interval, both ends included, in which q - k lies wherever the mask shows the key."""
        return -math.inf, math.inf

    def at(self, distance: Any, residue: Any) -> Any:
        """Of a relative mask: its answer where windows are asked for one distance, and strides for another."""
        raise NotImplementedError(f"{type(self).__name__} depends on more than a distance")

    @property
    def causal(self) -> bool:
        """Whether it shows no key after the query."""
        return self.distances()[0] >= 0

    def block(self, q_start: Any, q_end: Any, k_start: Any, k_end: Any) -> np.ndarray:
        """EMPTY, PARTIAL or FULL for blocks of queries and keys, ends excluded; arrays broadcast."""
        some, every = self.bounds(*map(np.asarray, (q_start, q_end, k_start, k_end)))
        return np.where(every, FULL, np.where(some, PARTIAL, EMPTY)).astype(np.int8)

    def active_blocks(self, q_len: int, k_len: int, q_block: int, k_block: int, *, offset: int = 0) -> int:
        """How many blocks of q_len queries, from position `offset` on, and k_len keys are not EMPTY."""
        k_start = np.arange(0, k_len, k_block)
        total = 0
        for start in range(0, q_len, q_block):
            q_range = offset + start, offset + min(start + q_block, q_len)
            total += int(np.count_nonzero(self.block(*q_range, k_start, np.minimum(k_start + k_block, k_len))))
        return total

    def pairs(self, q_len: int, k_len: int, *, offset: int = 0) -> int:
        """How many pairs of q_len queries, from position `offset` on, and k_len keys are visible."""
        return _pairs(self, q_len, k_len, offset)

    def __and__(self, other: "Mask") -> "Mask":
        return And((self, other))

    def __or__(self, other: "Mask") -> "Mask":
        return Or((self, other))

    def __invert__(self) -> "Mask":
        return Not(self)


@dataclasses.dataclass(frozen=True)
class _Combined(Mask):
    parts: tuple[Mask, ...]

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return all(part.relative for part in self.parts)

    def bounds(self, q_start, q_end, k_start, k_end):
        if self.relative and _period(self) <= _LONGEST_PERIOD:
            return _counted(self, q_start - k_end + 1, q_end - 1 - k_start)
        return self._combine([part.bounds(q_start, q_end, k_start, k_end) for part in self.parts])

    def _combine(self, bounds: list[Bounds]) -> Bounds:
        raise NotImplementedError


class And(_Combined):
    """All of the masks show the key."""

    def __call__(self, q_pos, k_pos):
        return _all(part(q_pos, k_pos) for part in self.parts)

    def _combine(self, bounds):
        return Bounds(_all(b.some for b in bounds), _all(b.every for b in bounds))

    def distances(self):
        lows, highs = zip(*(part.distances() for part in self.parts), strict=True)
        return max(lows), min(highs)

    def at(self, distance, residue):
        return _all(part.at(distance, residue) for part in self.parts)


class Or(_Combined):
    """At least one of the masks shows the key."""

    def __call__(self, q_pos, k_pos):
        return _any(part(q_pos, k_pos) for part in self.parts)

    def _combine(self, bounds):
        return Bounds(_any(b.some for b in bounds), _any(b.every for b in bounds))

    def distances(self):
        lows, highs = zip(*(part.distances() for part in self.parts), strict=True)
        return min(lows), max(highs)

    def at(self, distance, residue):
        return _any(part.at(distance, residue) for part in self.parts)


@dataclasses.dataclass(frozen=True)
class Not(Mask):
    """The mask does not show the key."""

    mask: Mask

    @property
    def parts(self) -> tuple[Mask, ...]:  # type: ignore[override]
        return (self.mask,)

    @property
    def relative(self) -> bool:  # type: ignore[override]
        return self.mask.relative

    def __call__(self, q_pos, k_pos):
        return self.mask(q_pos, k_pos) ^ True  # of a Python bool too

    def bounds(self, q_start, q_end, k_start, k_end):
        some, every = self.mask.bounds(q_start, q_end, k_start, k_end)
        return Bounds(~every, ~some)

    def distances(self):
        low, high = self.mask.distances()
        if not self.mask.parts and self.mask.edges:  # of one mask with one edge: the other side of it
            return (high + 1, math.inf) if low == -math.inf else (-math.inf, low - 1)
        return -math.inf, math.inf

    def at(self, distance, residue):
        return self.mask.at(distance, residue) ^ True


class Relative(Mask):
    """Of one distance; `at` is all that it needs to say."""

    relative = True

    def __call__(self, q_pos, k_pos):
        distance = q_pos - k_pos
        return self.at(distance, distance)

    def bounds(self, q_start, q_end, k_start, k_end):
        return _counted(self, q_start - k_end + 1, q_end - 1 - k_start)


@dataclasses.dataclass(frozen=True)
class Anywhere(Mask):
    """What is known of `mask` if a block's place in its document is not known: the distances that it shows."""

    mask: Mask

    def __call__(self, q_pos, k_pos):
        return self.mask(q_pos, k_pos)

    def bounds(self, q_start, q_end, k_start, k_end):
        low, high = self.mask.distances()
        some = (q_end - 1 - k_start >= low) & (q_start - k_end + 1 <= high)
        return Bounds(some, np.zeros_like(some))

    def distances(self):
        return self.mask.distances()


def anywhere(mask: Mask) -> Mask:
    """`mask` as bounds may use it where positions are not places of the row: in rows of packed documents."""
    return transform(mask, lambda atom: atom if atom.relative else Anywhere(atom))


def transform(mask: Mask, atom: Callable[[Mask], Mask]) -> Mask:
    """`mask` with `atom(part)` in the place of each of its smallest parts."""
    if isinstance(mask, Not):
        return Not(transform(mask.mask, atom))
    if isinstance(mask, _Combined):
        return type(mask)(tuple(transform(part, atom) for part in mask.parts))
    return atom(mask)


def atoms(mask: Mask) -> list[Mask]:
    """The smallest parts of a mask."""
    return [mask] if not mask.parts else [atom for part in mask.parts for atom in atoms(part)]


def _all(values: Iterable[Any]) -> Any:
    first, *rest = values
    for value in rest:
        first = first & value
    return first


def _any(values: Iterable[Any]) -> Any:
    first, *rest = values
    for value in rest:
        first = first | value
    return first


@lru_cache(maxsize=256)
def _period(mask: Mask) -> int:
    return math.lcm(*(stride for atom in atoms(mask) for stride in atom.strides))


@lru_cache(maxsize=256)
def _residues(mask: Mask) -> tuple[list[float], list[np.ndarray]]:
    """Where windows of a relative mask begin and end, and between each two of these the residues that are visible.

    As sums: entry i of an array counts those below i.
    """
    edges = {0, *(edge for atom in atoms(mask) for edge in atom.edges)}
    starts = [-math.inf, *sorted(edges)]
    residue = np.arange(_period(mask))
    within = [np.int64(min(edges) - 1), *map(np.int64, sorted(edges))]  # a distance of each range
    shown = [np.broadcast_to(mask.at(distance, residue), residue.shape) for distance in within]
    return starts, [np.concatenate([[0], np.cumsum(one)]) for one in shown]


def _count(mask: Mask, low: Any, high: Any) -> Any:
    """How many distances from low to high, both included, a relative mask shows."""
    starts, sums = _residues(mask)
    period, total = _period(mask), np.zeros((), np.int64)

    def below(x, shown):  # visible ones of 0 to x - 1; of a negative x, less those of x to -1
        return x // period * shown[-1] + shown[x % period]

    for i, shown in enumerate(sums):
        first = low if starts[i] == -math.inf else np.maximum(low, int(starts[i]))
        end = high + 1 if i + 1 == len(starts) else np.minimum(high + 1, int(starts[i + 1]))
        total = total + np.where(end > first, below(np.maximum(first, end), shown) - below(first, shown), 0)
    return total


def _counted(mask: Mask, low: Any, high: Any) -> Bounds:
    low, high = np.asarray(low, np.int64), np.asarray(high, np.int64)
    count = _count(mask, low, high)
    return Bounds(count > 0, count == high - low + 1)


@lru_cache(maxsize=256)
def _pairs(mask: Mask, q_len: int, k_len: int, offset: int) -> int:
    if mask.relative and _period(mask) <= _LONGEST_PERIOD:
        q_pos = offset + np.arange(q_len, dtype=np.int64)
        return int(np.sum(_count(mask, q_pos - k_len + 1, q_pos)))
    # Blocks that are partial are split until they are small: a block costs nothing for its size.
    total, corner = 0, np.array([[offset, 0]])
    size = 1 << max(q_len - 1, k_len - 1, 1).bit_length()
    while len(corner):
        q, k = corner.T
        q_end, k_end = np.minimum(q + size, offset + q_len), np.minimum(k + size, k_len)
        kind = mask.block(q, q_end, k, k_end) * ((q_end > q) & (k_end > k))
        total += int(np.sum(((q_end - q) * (k_end - k))[kind == FULL]))
        corner, size = corner[kind == PARTIAL], size // 2
        if not size:
            return total
        corner = (corner[:, None] + size * np.array([[0, 0], [0, 1], [1, 0], [1, 1]])).reshape(-1, 2)
    return total
