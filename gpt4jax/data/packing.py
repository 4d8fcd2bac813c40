"""Packing documents into rows, as arithmetic on token counts.

A shard's documents are written one after another, each behind an end-of-text token, with one more at the
end. Its pairs are (token i, token i + 1): document d owns the pairs from offset d to offset d + 1, so
every token of every document, its end included, is a target exactly once.
"""

from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """Which pieces of a shard make each row: row r holds pieces row_offsets[r] to row_offsets[r + 1].

    `start_p` counts pairs from the shard's start, `length_p` is at most the row's length.
    """

    start_p: np.ndarray
    length_p: np.ndarray
    row_offsets: np.ndarray

    @property
    def num_rows(self) -> int:
        """Rows of the shard."""
        return len(self.row_offsets) - 1


def plan(offsets: np.ndarray, seq_len: int) -> Plan:
    """Cuts documents into rows of `seq_len` pairs; what is left of each is packed best-fit decreasing.

    Args:
        offsets: first pair of each document, and the number of pairs: (documents + 1,).
        seq_len: pairs in a row.
    """
    lengths = np.diff(offsets)
    whole = lengths // seq_len
    full_start = np.repeat(offsets[:-1], whole) + seq_len * _counting(whole)
    rest = lengths % seq_len
    rest_start = offsets[:-1] + whole * seq_len
    groups = best_fit(rest, seq_len)
    order = np.array([document for group in groups for document in group], np.int64)
    start_p = np.concatenate([full_start, rest_start[order]]).astype(np.int64)
    length_p = np.concatenate([np.full(len(full_start), seq_len), rest[order]]).astype(np.int32)
    pieces_per_row = np.concatenate([np.ones(len(full_start), np.int64), [len(group) for group in groups]])
    return Plan(start_p, length_p, np.concatenate([[0], np.cumsum(pieces_per_row)]).astype(np.int64))


def _counting(counts: np.ndarray) -> np.ndarray:
    """0, 1, ..., counts[0] - 1, 0, 1, ..., counts[1] - 1, ..."""
    starts = np.cumsum(counts) - counts
    return np.arange(counts.sum()) - np.repeat(starts, counts)


LOOKED_AT = 32  # bins of one room that are asked whether they have room for the rest too


def best_fit(
    lengths: np.ndarray,
    capacity: int,
    also: tuple[np.ndarray, tuple[int, ...]] | None = None,
    order: np.ndarray | None = None,
) -> list[list[int]]:
    """Bins of indices whose lengths sum to at most `capacity`: longest first, each into the fullest bin it fits.

    Lengths of 0 go nowhere. O(n capacity) at worst, and the same bins on every machine.

    `also` has other sizes (n, m) of what has the lengths, and the m capacities of a bin for them. `order` has the
    indices in the order to put them; longest first leaves the least room, and puts what is alike together.
    """
    order = np.argsort(-lengths, kind="stable") if order is None else order
    others = None if also is None else also[0].tolist()
    left: list[list[int]] = []  # of the other capacities, in each bin

    def fits(index: int, bin_: int) -> bool:
        return others is None or all(a <= b for a, b in zip(others[index], left[bin_], strict=True))

    def find(index: int, length: int) -> tuple[int, int] | None:
        """The room of a bin, and where in the stack of that room it lies."""
        for room in range(length, capacity + 1):
            stack = by_room[room]
            for place in range(len(stack) - 1, max(-1, len(stack) - 1 - LOOKED_AT), -1):
                if fits(index, stack[place]):
                    return room, place
        return None

    bins: list[list[int]] = []
    by_room: list[list[int]] = [[] for _ in range(capacity + 1)]  # bins with exactly so much room, as stacks
    for index in order.tolist():
        length = int(lengths[index])
        if length == 0:
            continue
        found = find(index, length)
        if found is None:
            bins.append([])
            left.append(list(also[1]) if also is not None else [])
            room, chosen = capacity, len(bins) - 1
        else:
            room, place = found
            chosen = by_room[room].pop(place)
        bins[chosen].append(index)
        by_room[room - length].append(chosen)
        if others is not None:
            left[chosen] = [a - b for a, b in zip(left[chosen], others[index], strict=True)]
    return bins


def row_arrays(tokens: np.ndarray, shard_plan: Plan, row: int, seq_len: int) -> dict[str, np.ndarray]:
    """Tokens, targets, segment ids (1, 2, ...; 0 is padding) and positions of one row, each int32 (T,)."""
    out = {name: np.zeros(seq_len, np.int32) for name in ("tokens", "targets", "segment_ids", "positions")}
    at = 0
    first, last = shard_plan.row_offsets[row], shard_plan.row_offsets[row + 1]
    for segment, piece in enumerate(range(first, last), 1):
        start, length = int(shard_plan.start_p[piece]), int(shard_plan.length_p[piece])
        place = slice(at, at + length)
        out["tokens"][place] = tokens[start : start + length]
        out["targets"][place] = tokens[start + 1 : start + length + 1]
        out["segment_ids"][place] = segment
        out["positions"][place] = np.arange(length)
        at += length
    return out
