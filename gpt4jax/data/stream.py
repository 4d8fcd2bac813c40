"""Rows that go on: documents one after another, cut into one long part for each row of a batch.

Row r of a step goes on where row r of the step before ended, as recurrence over rows needs it. A row is still a
function of (seed, step, r): there is no iterator whose place could be lost.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from gpt4jax.data.tokenizer import Tokenizer


class Shard(NamedTuple):
    """Documents' tokens as `cache.TokenCache` stores them: document d has the pairs offsets_d[d] to offsets_d[d + 1].

    Pair i is (tokens[i], tokens[i + 1]).
    """

    tokens: np.ndarray
    offsets: np.ndarray


class Documents:
    """All documents of a split, addressable at random by their number and by the pair inside them."""

    def __init__(self, shards: Sequence[Shard], tokenizer: Tokenizer, seq_len: int):
        self.seq_len = seq_len
        self.lengths = np.concatenate([np.diff(shard.offsets) for shard in shards]).astype(np.int64)  # in pairs
        self._shards = shards
        self._token_bytes, self._end = tokenizer.token_bytes, tokenizer.end
        self._dummy = len(tokenizer.dummy_prefix)
        self._first = np.cumsum([0, *(len(shard.offsets) - 1 for shard in shards)])

    def pairs(self, document: int, start: int, end: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Tokens, targets and the targets' bytes of a document's pairs from `start` to `end`."""
        number = int(np.searchsorted(self._first, document, side="right")) - 1
        tokens, offsets = self._shards[number]
        at = int(offsets[document - self._first[number]])
        ids = np.asarray(tokens[at + start : at + end + 1], np.int32)
        # A document's first token stands behind an end of text, and its dummy prefix is none of the text's.
        sizes = self._token_bytes[ids[1:]] - self._dummy * (ids[:-1] == self._end)
        return ids[:-1], ids[1:], sizes


class Streams:
    """`batch_size` streams over all documents: in the order of `seed`, another one each epoch; None: as they lie.

    The documents of an epoch, N pairs one after another, are cut into `batch_size` parts of N / batch_size (rounded
    up; the last ones may be shorter or empty). Part r is read in rows of `seq_len` by row r of the steps of the
    epoch, and what it lacks of its last row is padding. So each epoch has every pair once.
    """

    def __init__(self, documents: Documents, batch_size: int, seed: int | None):
        self._documents, self._seed = documents, seed
        self._total = int(documents.lengths.sum())
        self._part = -(-self._total // batch_size)
        self.steps_per_epoch = -(-self._part // documents.seq_len)
        self._epoch = lru_cache(maxsize=2)(self._ordered)  # rows of two epochs meet where one follows the other

    def _ordered(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The documents of an epoch in their order, and the first pair of each."""
        lengths = self._documents.lengths
        order = np.arange(len(lengths))
        if self._seed is not None:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(lengths))
        return order, np.cumsum(lengths[order]) - lengths[order]

    def row(self, step: int, row: int) -> dict[str, np.ndarray]:
        """One row, as `cache.PackedRows` gives it: arrays int32 (T,).

        A segment's id is 1 + the document's number, and in every second epoch as much more as there are documents:
        so a document is never its own past. Positions count from the first pair of it in this row.
        """
        t = self._documents.seq_len
        out = {name: np.zeros(t, np.int32) for name in ("tokens", "targets", "segment_ids", "positions", "bytes")}
        epoch, step = divmod(step, self.steps_per_epoch)
        order, first = self._epoch(epoch)
        begin = row * self._part + step * t
        end = min(begin + t, (row + 1) * self._part, self._total)
        at, place = begin, int(np.searchsorted(first, begin, side="right")) - 1
        while at < end:
            document, start = int(order[place]), at - int(first[place])
            length = min(end - at, int(self._documents.lengths[document]) - start)
            here = slice(at - begin, at - begin + length)
            out["tokens"][here], out["targets"][here], out["bytes"][here] = self._documents.pairs(
                document, start, start + length
            )
            out["segment_ids"][here] = 1 + document + (epoch % 2) * len(order)
            out["positions"][here] = np.arange(length)
            at, place = at + length, place + 1
        return out
