"""Attention masks as functions of positions: which keys a query may see.

A mask answers three questions, none of which needs a (T, S) array:

    mask(q_pos, k_pos)                       elementwise, for integer positions that broadcast
    mask.block(q_start, q_end, k_start, k_end)   EMPTY, PARTIAL or FULL, for many blocks at once
    mask.active_blocks(...), mask.pairs(...)     how many blocks and pairs there are

`&`, `|` and `~` combine masks. None but `causal` is causal by itself. Positions count within a document; that
two tokens belong to the same document is asked separately (segment ids, which are data and not a pattern).

Blocks are answered by bounds, `some` (False: surely no pair is visible) and `every` (True: surely all are), which
`&`, `|` and `~` combine. Bounds of a mask that depends on the distance q - k alone are exact (they are counted), and so
are those of `causal() & fixed(...)`; other combinations may call a block PARTIAL that is EMPTY or FULL, which
costs time and is never wrong.
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

EMPTY, PARTIAL, FULL = 0, 1, 2
MAX_COMPARED = 32  # segments or spans up to which a position is compared with each, and not searched for
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
    """

    relative = False
    parts: tuple["Mask", ...] = ()

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
        if isinstance(self.mask, Causal):
            return -math.inf, -1
        return (self.mask.window, math.inf) if isinstance(self.mask, Banded) else (-math.inf, math.inf)

    def at(self, distance, residue):
        return self.mask.at(distance, residue) ^ True


class _Relative(Mask):
    """Of one distance; `at` is all that it needs to say."""

    relative = True

    def __call__(self, q_pos, k_pos):
        distance = q_pos - k_pos
        return self.at(distance, distance)

    def bounds(self, q_start, q_end, k_start, k_end):
        return _counted(self, q_start - k_end + 1, q_end - 1 - k_start)


@dataclasses.dataclass(frozen=True)
class Full(_Relative):
    """Every key."""

    def at(self, distance, residue):
        return distance == distance


@dataclasses.dataclass(frozen=True)
class Causal(_Relative):
    """The key does not come after the query."""

    def at(self, distance, residue):
        return distance >= 0

    def distances(self):
        return 0, math.inf


@dataclasses.dataclass(frozen=True)
class Banded(_Relative):
    """The key lies less than `window` positions before the query (or anywhere after it)."""

    window: int

    def at(self, distance, residue):
        return distance < self.window

    def distances(self):
        return -math.inf, self.window - 1


@dataclasses.dataclass(frozen=True)
class Strided(_Relative):
    """The key lies a multiple of `stride` away."""

    stride: int

    def __call__(self, q_pos, k_pos):
        return q_pos % self.stride == k_pos % self.stride  # two remainders a position, instead of one a pair

    def at(self, distance, residue):
        return residue % self.stride == 0


@dataclasses.dataclass(frozen=True)
class SameBlock(Mask):
    """Query and key lie in the same block of `stride` positions."""

    stride: int

    def __call__(self, q_pos, k_pos):
        # The first places of their blocks, by remainders: TPU kernels have no division that rounds down.
        return q_pos - q_pos % self.stride == k_pos - k_pos % self.stride

    def bounds(self, q_start, q_end, k_start, k_end):
        q = q_start // self.stride, (q_end - 1) // self.stride
        return _same(q, (k_start // self.stride, (k_end - 1) // self.stride))

    def distances(self):
        return 1 - self.stride, self.stride - 1


@dataclasses.dataclass(frozen=True)
class Summary(Mask):
    """The key is one of `count` in its block of `stride`: the last ones, or with `index` i as many before those."""

    stride: int
    count: int
    index: int = 0

    @property
    def first(self) -> int:
        """The first of them in a block."""
        return self.stride - self.count * (self.index + 1)

    def __call__(self, q_pos, k_pos):
        place = k_pos % self.stride
        return (place >= self.first) & (place < self.first + self.count) & (q_pos == q_pos)

    def bounds(self, q_start, q_end, k_start, k_end):
        place = (k_start - self.first) % self.stride  # of the block's first key, from the first summary on
        some = (place < self.count) | (k_end - k_start > self.stride - place)
        every = (place + (k_end - k_start) <= self.count) | (self.count == self.stride)
        return _broadcast(some, every, q_start)


@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """The key is one of the first `length`."""

    length: int

    def __call__(self, q_pos, k_pos):
        return (k_pos < self.length) & (q_pos == q_pos)

    def bounds(self, q_start, q_end, k_start, k_end):
        return _broadcast(k_start < self.length, k_end <= self.length, q_start)


@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Query and key lie in the same segment; a segment begins at each of `starts` (ascending), and one at 0."""

    starts: tuple[int, ...]

    def __call__(self, q_pos, k_pos):
        return _rank(self.starts, q_pos) == _rank(self.starts, k_pos)

    def bounds(self, q_start, q_end, k_start, k_end):
        q = _rank(self.starts, q_start), _rank(self.starts, q_end - 1)
        return _same(q, (_rank(self.starts, k_start), _rank(self.starts, k_end - 1)))


@dataclasses.dataclass(frozen=True)
class Spans(Mask):
    """Query and key lie in the same of some `ranges` (start, end), ascending and apart: in one image, say."""

    ranges: tuple[tuple[int, int], ...]

    def _span(self, pos):
        """Number of the span, and whether the position lies in it."""
        starts, ends = zip(*self.ranges, strict=True)
        return _rank(starts, pos), _rank(starts, pos) > _rank(ends, pos)

    def __call__(self, q_pos, k_pos):
        (q, inside), (k, _) = self._span(q_pos), self._span(k_pos)
        return (q == k) & inside & self._span(k_pos)[1]

    def bounds(self, q_start, q_end, k_start, k_end):
        starts, ends = zip(*self.ranges, strict=True)
        # Those that a block touches: from the first that ends after its start to the last that starts before its end.
        q_first, k_first = _rank(ends, q_start), _rank(ends, k_start)
        q_last, k_last = _rank(starts, q_end - 1) - 1, _rank(starts, k_end - 1) - 1
        some = np.maximum(q_first, k_first) <= np.minimum(q_last, k_last)
        inside = [_rank(starts, start) > _rank(ends, end - 1) for start, end in ((q_start, q_end), (k_start, k_end))]
        every = inside[0] & inside[1] & (q_last == k_last) & (q_first == q_last) & (k_first == k_last)
        return Bounds(some, every)

    def distances(self):
        longest = max(end - start for start, end in self.ranges)
        return 1 - longest, longest - 1


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


def causal() -> Mask:
    """K <= q."""
    return Causal()


def full() -> Mask:
    """Every key."""
    return Full()


def banded(window: int) -> Mask:
    """Q - k < window."""
    return Banded(_at_least("the window of banded", window, 1))


def strided(stride: int) -> Mask:
    """Every stride-th key: (q - k) % stride == 0.

    The paper's strided pattern is causal() & (banded(l) | strided(l)) (Child et al. 2019).
    """
    return Strided(_at_least("the stride of strided", stride, 1))


def same_block(stride: int) -> Mask:
    """Q // stride == k // stride."""
    return SameBlock(_at_least("the stride of same_block", stride, 1))


def summary(stride: int, count: int, index: int = 0) -> Mask:
    """K % stride >= stride - count; with `index`, as many keys before those: Child et al.'s distinct sub-blocks.

    Raises:
        ValueError: a sub-block that does not lie in a block.
    """
    return _summary(stride, count, index)


def _summary(stride: int, count: int, index: int) -> Mask:
    _at_least("the stride of summary", stride, 1)
    _at_least("the summary", count, 1)
    if index < 0 or count * (index + 1) > stride:
        raise ValueError(f"a block of stride {stride} has no summary {index} of {count} positions: it must fit into it")
    return Summary(stride, count, index)


def fixed(stride: int, summary: int, index: int = 0) -> Mask:
    """The same block of `stride`, or a summary of any; the paper's pattern is this and `causal`.

    Raises:
        ValueError: a summary that does not lie in a block.
    """
    return same_block(stride) | _summary(stride, summary, index)


def prefix(length: int) -> Mask:
    """K < length."""
    return Prefix(_at_least("the length of prefix", length, 0))


def segments(starts: Iterable[int]) -> Mask:
    """The same segment of a row whose segments begin at 0 and at each of `starts`, ascending.

    Raises:
        ValueError: starts that do not ascend.
    """
    starts = tuple(starts)
    if any(a >= b for a, b in itertools.pairwise(starts)):
        raise ValueError(f"segments begin at {starts}: these must ascend")
    return Segments(starts)


def spans(ranges: Iterable[tuple[int, int]]) -> Mask:
    """The same of some ranges, ends excluded, that do not overlap; images are seen with this or `causal`.

    Raises:
        ValueError: no ranges, or ranges that are empty, overlap or do not ascend.
    """
    ranges = tuple((int(start), int(end)) for start, end in ranges)
    flat = [place for span in ranges for place in span]
    if not ranges or flat != sorted(flat) or any(start == end for start, end in ranges):
        raise ValueError(f"spans are {ranges}: they must be ascending ranges (start, end) that do not overlap")
    return Spans(ranges)


def _at_least(what: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{what} is {value}; it must be at least {least}")
    return value


def anywhere(mask: Mask) -> Mask:
    """`mask` as bounds may use it where positions are not places of the row: in rows of packed documents."""
    return transform(mask, lambda atom: atom if atom.relative else Anywhere(atom))


def transform(mask: Mask, atom) -> Mask:
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


def _same(q: tuple[Any, Any], k: tuple[Any, Any]) -> Bounds:
    """From the numbers of the first and last group that blocks of queries and keys touch."""
    some = (q[0] <= k[1]) & (k[0] <= q[1])
    return Bounds(some, some & (q[0] == q[1]) & (k[0] == k[1]))


def _broadcast(some: Any, every: Any, like: Any) -> Bounds:
    shape = np.broadcast_shapes(np.shape(some), np.shape(like))
    return Bounds(np.broadcast_to(some, shape), np.broadcast_to(every, shape))


def _rank(starts: tuple[int, ...], pos: Any) -> Any:
    """How many of the ascending `starts` lie at or before the position."""
    if isinstance(pos, jax.Array):
        if len(starts) <= MAX_COMPARED:  # a kernel can hold no table to search
            return sum(((pos >= start).astype(jnp.int32) for start in starts), jnp.zeros_like(pos, jnp.int32))
        return jnp.searchsorted(jnp.asarray(starts, jnp.int32), pos, side="right")
    return np.searchsorted(np.asarray(starts, np.int64), pos, side="right")


@lru_cache(maxsize=256)
def _period(mask: Mask) -> int:
    return math.lcm(*(atom.stride for atom in atoms(mask) if isinstance(atom, Strided)))


@lru_cache(maxsize=256)
def _residues(mask: Mask) -> tuple[list[float], list[np.ndarray]]:
    """Where windows of a relative mask begin and end, and between each two of these the residues that are visible.

    As sums: entry i of an array counts those below i.
    """
    edges = {0} | {atom.window for atom in atoms(mask) if isinstance(atom, Banded)}
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
