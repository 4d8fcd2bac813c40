"""Attention masks as functions of positions: which keys a query may see.

A mask answers three questions, none of which needs a (T, S) array:

    mask(q_pos, k_pos)                       elementwise, for integer positions that broadcast
    mask.block(q_start, q_end, k_start, k_end)   EMPTY, PARTIAL or FULL, for many blocks at once
    mask.active_blocks(...), mask.pairs(...)     how many blocks and pairs there are

`&`, `|` and `~` combine masks (`mask_algebra`). None but `causal` is causal by itself. Positions count within a
document; that two tokens belong to the same document is asked separately (segment ids, which are data, not a pattern).
"""

import dataclasses
import itertools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax.model.mask_algebra import EMPTY, FULL, PARTIAL, And, Anywhere, Bounds, Mask, Not, Or, Relative, transform

__all__ = ["EMPTY", "FULL", "PARTIAL", "And", "Anywhere", "Mask", "Not", "Or"]

MAX_COMPARED = 32  # segments or spans up to which a position is compared with each, and not searched for


@dataclasses.dataclass(frozen=True)
class Full(Relative):
    """Every key."""

    def at(self, distance, residue):
        return distance == distance


@dataclasses.dataclass(frozen=True)
class Causal(Relative):
    """The key does not come after the query."""

    edges = (0,)

    def at(self, distance, residue):
        return distance >= 0

    def distances(self):
        return 0, math.inf


@dataclasses.dataclass(frozen=True)
class Banded(Relative):
    """The key lies less than `window` positions before the query (or anywhere after it)."""

    window: int

    @property
    def edges(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.window,)

    def at(self, distance, residue):
        return distance < self.window

    def distances(self):
        return -math.inf, self.window - 1


@dataclasses.dataclass(frozen=True)
class Strided(Relative):
    """The key lies a multiple of `stride` away."""

    stride: int

    @property
    def strides(self) -> tuple[int, ...]:  # type: ignore[override]
        return (self.stride,)

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
class Together(Mask):
    """Query and key lie in the same image, of at most `longest` tokens; where images lie is data, as segments are."""

    longest: int

    def __call__(self, q_pos, k_pos):
        raise ValueError("a mask of images was asked without where the images lie: see `shown`")

    def bounds(self, q_start, q_end, k_start, k_end):
        some = (q_end - 1 - k_start > -self.longest) & (q_start - k_end + 1 < self.longest)
        return Bounds(some, np.zeros_like(some))

    def distances(self):
        return 1 - self.longest, self.longest - 1


@dataclasses.dataclass(frozen=True)
class _Given(Mask):
    """An answer that is known already."""

    answer: Any

    def __call__(self, q_pos, k_pos):
        return self.answer


def shown(mask: Mask, q_pos: Any, k_pos: Any, q_image: tuple[Any, Any] | None) -> Any:
    """`mask(q_pos, k_pos)`; `q_image` has the first and last position of the query's image, of none last < first."""
    if q_image is None:
        return mask(q_pos, k_pos)
    same = _Given((k_pos >= q_image[0]) & (k_pos <= q_image[1]))
    return transform(mask, lambda atom: same if isinstance(atom, Together) else atom)(q_pos, k_pos)


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


def together(longest: int) -> Mask:
    """The same image, of at most `longest` tokens. Images are seen with this or `causal`: KOSMOS-1, section 2.2."""
    return Together(_at_least("the longest image of together", longest, 1))


def _at_least(what: str, value: int, least: int) -> int:
    if value < least:
        raise ValueError(f"{what} is {value}; it must be at least {least}")
    return value


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
