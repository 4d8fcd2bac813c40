"""The token cache: documents tokenized once into fixed logical shards, each with its packing plan."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Callable, Sequence

import numpy as np

from gpt4jax import files
from gpt4jax.data import is_utf8
from gpt4jax.data.packing import Plan, plan, row_arrays
from gpt4jax.data.stream import Documents, Shard
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError

_FORMAT = "3"  # of the files below; a change makes new caches


@dataclasses.dataclass(frozen=True)
class TokenCache:
    """The shards of one split on disk, or in an object store.

    `totals` counts documents, empty ones left out, parts after splitting, pairs (target tokens) and bytes;
    `not_utf8` has the numbers of documents left out because they are no text.
    """

    folder: files.Path
    num_shards: int
    totals: dict[str, int]
    not_utf8: list[int]


def plan_shards(sizes: Sequence[int], shard_bytes: int) -> list[list[tuple[int, int, int]]]:
    """Documents (or parts of those above `shard_bytes`) in order into shards of at most `shard_bytes`.

    Returns, for each shard, its (document, first byte, last byte) triples. A pure function of the sizes,
    so that any number of processes agrees on the shards.
    """
    shards: list[list[tuple[int, int, int]]] = [[]]
    room = shard_bytes
    for document, size in enumerate(sizes):
        for first in range(0, size, shard_bytes):
            last = min(size, first + shard_bytes)
            if last - first > room and shards[-1]:
                shards.append([])
                room = shard_bytes
            shards[-1].append((document, first, last))
            room -= last - first
    return shards


def build(
    documents: Sequence[bytes],
    tokenizer: Tokenizer,
    folder: files.Path,
    shard_bytes: int,
    share: tuple[int, int] = (0, 1),
    wait: Callable[[], None] = lambda: None,
) -> TokenCache:
    """Tokenizes what is not yet in `folder`; a shard appears whole or not at all.

    With `share` (i, n) this process makes every n-th shard from the i-th on; `wait` returns when all processes are at
    this place.

    Raises:
        UserError: no usable document, or a tokenizer that changes a text.
    """
    summary = folder / "summary.json"
    if summary.is_file():
        try:
            found = TokenCache(folder, **json.loads(summary.read_text()))
            wait()  # the others may have looked before it was there
            return found
        except (ValueError, TypeError) as error:
            raise UserError(f"{summary} is damaged; remove the folder {folder}, and it is made anew") from error
    sizes, not_utf8 = [], []
    for i, text in enumerate(documents):
        usable = is_utf8(text)
        sizes.append(len(text) if usable else 0)
        if not usable:
            not_utf8.append(i)
    if not sum(sizes):
        raise UserError("the data set has no usable document")
    shards = plan_shards(sizes, shard_bytes)
    for number in range(share[0], len(shards), share[1]):
        if not _path(folder, number, "tokens").is_file():
            _write_shard(documents, shards[number], tokenizer, folder, number)
    wait()
    offsets = [_load(folder, number, "offsets") for number in range(len(shards))]
    totals = {
        "documents": sum(map(bool, sizes)),
        "empty": sizes.count(0) - len(not_utf8),
        "parts": sum(len(starts) - 1 for starts in offsets),
        "pairs": sum(int(starts[-1]) for starts in offsets),
        "bytes": sum(sizes),
    }
    if share[0] == 0:
        files.replace(summary, json.dumps({"num_shards": len(shards), "totals": totals, "not_utf8": not_utf8}))
    return TokenCache(folder, len(shards), totals, not_utf8)


def cache_folder(cache_dir: files.Path, corpus: str, fingerprint: str, tokenizer: Tokenizer, shard_bytes: int):
    """Where the cache of a corpus lies: keyed by source, tokenizer, shard size and format."""
    key = "\n".join((fingerprint, tokenizer.fingerprint, str(shard_bytes), _FORMAT))
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    readable = corpus.rpartition("/")[2].replace(":", "-")
    return cache_dir / "tokens" / f"{readable}-{tokenizer.name.replace(':', '-')}-{digest}"


def _write_shard(documents, shard, tokenizer, folder, number):
    # Where a part's last bytes are inside one character, the next part has them, or nothing is left for it.
    origin = shard[0][0]
    whole = documents[origin : shard[-1][0] + 1]
    texts = [text for i, first, last in shard if (text := _part(whole[i - origin], first, last))]
    lists = tokenizer.encode_batch([text.decode() for text in texts])
    lengths = np.array([len(ids) + 1 for ids in lists], np.int64)
    dtype = np.uint16 if tokenizer.vocab_size <= 2**16 else np.uint32
    tokens = np.full(lengths.sum() + 1, tokenizer.end, dtype)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    token_bytes = tokenizer.token_bytes
    for text, ids, start in zip(texts, lists, offsets, strict=False):
        if int(token_bytes[ids].sum()) != len(tokenizer.dummy_prefix) + len(text):
            raise UserError(f"tokenizer {tokenizer.name} changes the bytes of a document that starts {text[:60]!r}")
        tokens[start + 1 : start + 1 + len(ids)] = ids
    _save(folder, number, "offsets", offsets)
    _save(folder, number, "tokens", tokens)  # last: its presence says that the shard is whole


def _part(text: bytes, first: int, last: int) -> bytes:
    """Bytes first to last of a UTF-8 text, both moved on to the next character's start."""
    return text[_boundary(text, first) : _boundary(text, last)]


def _boundary(text: bytes, at: int) -> int:
    while at < len(text) and text[at] & 0xC0 == 0x80:
        at += 1
    return at


def _path(folder: files.Path, number: int, kind: str) -> files.Path:
    return folder / f"{number:05d}.{kind}.npy"


def _load(folder: files.Path, number: int, kind: str) -> np.ndarray:
    return np.load(files.local_copy(_path(folder, number, kind)), mmap_mode="r")


def _save(folder: files.Path, number: int, kind: str, array: np.ndarray) -> None:
    # Through memory: np.save's own error on a full disk says neither that it is full nor where.
    buffer = io.BytesIO()
    np.save(buffer, array)
    files.replace(_path(folder, number, kind), buffer.getvalue())


def documents(cache: TokenCache, tokenizer: Tokenizer, seq_len: int) -> Documents:
    """The documents of a split, to be read in rows of `seq_len` that go on (`stream`)."""
    shards = [
        Shard(_load(cache.folder, i, "tokens"), _load(cache.folder, i, "offsets")) for i in range(cache.num_shards)
    ]
    return Documents(shards, tokenizer, seq_len)


class PackedRows:
    """All rows of a split at one row length, addressable at random; the plans are kept beside the shards."""

    def __init__(self, cache: TokenCache, tokenizer: Tokenizer, seq_len: int):
        self.seq_len = seq_len
        self._token_bytes = tokenizer.token_bytes
        self._end, self._dummy = tokenizer.end, len(tokenizer.dummy_prefix)
        self._tokens = [_load(cache.folder, number, "tokens") for number in range(cache.num_shards)]
        self._plans = [_shard_plan(cache.folder, number, seq_len) for number in range(cache.num_shards)]
        self._first_row = np.concatenate([[0], np.cumsum([p.num_rows for p in self._plans])])

    def __len__(self) -> int:
        return int(self._first_row[-1])

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One row: tokens, targets, segment_ids, positions, and the bytes of each target, each int32 (T,)."""
        index = index if index >= 0 else index + len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = int(np.searchsorted(self._first_row, index, side="right")) - 1
        row = index - int(self._first_row[shard])
        arrays = row_arrays(self._tokens[shard], self._plans[shard], row, self.seq_len)
        # The first token of a document stands behind an end of text, and its dummy prefix is none of the text's.
        size = self._token_bytes[arrays["targets"]] - self._dummy * (arrays["tokens"] == self._end)
        arrays["bytes"] = np.where(arrays["segment_ids"] > 0, size, 0)
        return arrays


def plan_rows(cache: TokenCache, seq_len: int, share: tuple[int, int] = (0, 1)) -> None:
    """Packs into rows of `seq_len` what is not packed yet, and keeps the plans; `share` as in `build`."""
    for number in range(share[0], cache.num_shards, share[1]):
        _shard_plan(cache.folder, number, seq_len)


def _shard_plan(folder: files.Path, number: int, seq_len: int) -> Plan:
    kinds = [f"plan{seq_len}.{field}" for field in Plan._fields]
    if not _path(folder, number, kinds[-1]).is_file():
        for kind, array in zip(kinds, plan(_load(folder, number, "offsets"), seq_len), strict=True):
            _save(folder, number, kind, array)
    return Plan(*(_load(folder, number, kind) for kind in kinds))
