"""Which tiles of queries and keys an arrangement's rows are computed by, for `blockwise`, and what that costs."""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from gpt4jax.model.masks import EMPTY, FULL, PARTIAL, Mask
from gpt4jax.model.parts import Part, split

# Two CPU cores, heads of 64: rows of 256 tokens take 23 ms in blocks of 64, 26 to 29 ms in larger ones.
MIN_BLOCK, MAX_UNROLLED = 64, 8  # of queries; rows of up to so many blocks are unrolled into one program
MAX_BLOCK = 512  # a side of a tile in longer rows; half of it takes 1.7 times as long
SCORES = 2**20  # of one step where there are many small tiles, or many heads: 4 MiB


class Tiles(NamedTuple):
    """The tiles of one row: unrolled, for each block of queries those of its keys, or squares to scan through.

    Unrolled: (q_start, q_end, ((k_start, k_end, whether every pair is visible), ...)) each. Else two arrays
    of (q_start, k_start), of squares all visible and of others.
    """

    unrolled: tuple[tuple[int, int, tuple[tuple[int, int, bool], ...]], ...] | None
    size: int = 0
    full: Any = None
    partial: Any = None


@lru_cache(maxsize=256)
def cover(plan: Mask, offset: int, q_len: int, k_len: int, heads: int) -> Tiles:
    """The tiles that cover what `plan` may show to q_len queries, from place `offset` on, of k_len keys."""
    if q_len <= MIN_BLOCK * MAX_UNROLLED * 2:
        size, found = max(MIN_BLOCK, -(-q_len // MAX_UNROLLED)), []
        k_start = np.arange(0, k_len, MIN_BLOCK)
        k_end = np.minimum(k_start + MIN_BLOCK, k_len)
        for start in range(0, q_len, size):
            end = min(start + size, q_len)
            kind = plan.block(offset + start, offset + end, k_start, k_end)
            runs = ((i, j, bool(np.all(kind[i:j] == FULL))) for i, j in _runs(kind != EMPTY))
            found.append((start, end, tuple((int(k_start[i]), int(k_end[j - 1]), every) for i, j, every in runs)))
        return Tiles(tuple(found))
    size = MAX_BLOCK
    while size > MAX_BLOCK // 4 and size * size * heads > 16 * SCORES:
        size //= 2
    q_start, k_start = np.arange(0, q_len, size), np.arange(0, k_len, size)
    q_end, k_end = np.minimum(q_start + size, q_len), np.minimum(k_start + size, k_len)
    kind = np.stack([plan.block(offset + a, offset + e, k_start, k_end) for a, e in zip(q_start, q_end, strict=True)])
    full, partly = (np.argwhere(kind == which).astype(np.int32) * size for which in (FULL, PARTIAL))
    return Tiles(None, size, full, partly)


def work(mask: Mask, length: int, *, plain: bool = True, heads: int = 1) -> int:
    """How many pairs are computed for rows of `length` tokens, each head; `heads` as they are computed at once.

    `plain` as `parts.split` has it; rows of packed documents may cost more, as less is known of them.
    """
    pairs = 0
    for part in split(mask, (), plain, 0, length, length):
        rows, q_len, k_len = shape(part, length)
        found = cover(part.plan, part.offset, q_len, k_len, rows * heads)
        if part.kind == "window":
            pairs += rows * q_len * k_len
        elif found.unrolled is not None:
            pairs += rows * sum((e - s) * (k_e - k_s) for s, e, keys in found.unrolled for k_s, k_e, _ in keys)
        else:
            pairs += rows * (len(found.full) + len(found.partial)) * found.size**2
    return pairs


def shape(part: Part, length: int) -> tuple[int, int, int]:
    """Rows of a part's arrangement for `length` tokens, and the queries and keys of each."""
    if part.kind == "window":
        return -(-length // part.block), part.block, part.before + part.after + part.block
    if part.kind == "residue":
        return part.stride, -(-length // part.stride), -(-length // part.stride)
    if part.kind == "local":
        return -(-length // part.stride), part.stride, part.stride
    return 1, length, part.room if part.kind == "summary" else length


def _runs(active: np.ndarray) -> list[tuple[int, int]]:
    edges = np.flatnonzero(np.diff(active.astype(int), prepend=0, append=0))
    return [(int(low), int(high)) for low, high in zip(edges[::2], edges[1::2], strict=True)]
