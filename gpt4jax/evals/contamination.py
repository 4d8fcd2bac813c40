"""Was an evaluation's text in the training data? The report's rule (appendix C), and a detector that misses less.

Both read a corpus once, as it comes, in bounded memory. Texts are compared as runs of letters and digits: everything
else is left out of both sides first, so a match means the same characters in the same order.
"""

import functools
import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

PROBES, PROBE_LENGTH = 3, 50  # the report's
SHINGLE_LENGTH = 20  # letters and digits, four words or so: what a diluted text still has in one piece
LEAST_OWN = 0.25  # of an example's runs must be its own, else all of them count
THRESHOLD = 0.35  # of an example's shingles: see tests/bench/contamination.py for what it finds and what it doesn't
SEGMENT = 2**16  # characters of a document that are looked at together
_BUFFER = 2**21  # characters of documents that are read at once
_TABLE_BITS = 23
_SHIFT = np.uint64(64 - _TABLE_BITS)
_BASE = 0x9E3779B97F4A7C15 | 1  # odd, so that it has an inverse modulo 2^64
_INVERSE = pow(_BASE, -1, 2**64)

Documents = Iterable[tuple[str, str]]  # (id, text)


class Match(NamedTuple):
    """Where an example was found: the first document, and the part of the example that is in it (1: as it is)."""

    document: str
    share: float


def strip(text: str, fold: bool = False) -> str:
    """The letters and digits of a text, in any script; with `fold` in lower case.

    The report removes "all spaces and symbols" and does not speak of case; we keep it unless told.
    """
    return _text(_codes(text, fold))


def probes(examples: Mapping[str, str], seed: int = 0, fold: bool = False) -> dict[str, tuple[str, ...]]:
    """Three random runs of 50 characters of each example's letters and digits, or all of a shorter one.

    An example's are a function of the seed and its id. One without letters or digits has none, and never matches.
    """
    drawn: dict[str, tuple[str, ...]] = {}
    for name, text in examples.items():
        stripped = strip(text, fold)
        rng = random.Random(hashlib.sha256(f"{seed} {name}".encode()).digest())
        if len(stripped) <= PROBE_LENGTH:
            drawn[name] = (stripped,) if stripped else ()
        else:
            starts = [rng.randrange(len(stripped) - PROBE_LENGTH + 1) for _ in range(PROBES)]
            drawn[name] = tuple(stripped[start : start + PROBE_LENGTH] for start in starts)
    return drawn


def by_report(examples: Mapping[str, str], documents: Documents, seed: int = 0, fold: bool = False) -> dict[str, Match]:
    """The examples of which any probe is in any document, after both were stripped.

    Give of an example what the report gives: question or context, not the answer.
    """
    owners: dict[str, list[str]] = defaultdict(list)
    for name, own in probes(examples, seed, fold).items():
        for probe in own:
            owners[probe].append(name)
    found: dict[str, Match] = {}
    if not owners:
        return found
    # Probes are looked for by their first characters, in a few lengths, and then compared as a whole.
    by_length: dict[int, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for probe in owners:
        length = PROBE_LENGTH if len(probe) == PROBE_LENGTH else 1 << (len(probe).bit_length() - 1)
        by_length[length][probe[:length]].append(probe)
    tables = [
        (length, _Table(np.array([_hash(start) for start in starts])), list(starts.values()))
        for length, starts in by_length.items()
    ]
    for batch in _batches(documents, fold, math.inf, max(map(len, owners)) - 1):
        text = None
        for length, table, whole in tables:
            for place, number in zip(*table.find(batch.windows(length)), strict=True):
                text = text or _text(batch.codes)
                for probe in whole[number]:
                    if text.startswith(probe, place):
                        for name in owners[probe]:
                            found.setdefault(name, Match(batch.document(int(place)), 1.0))
    return found


def by_overlap(
    examples: Mapping[str, str], documents: Documents, threshold: float = THRESHOLD, length: int = SHINGLE_LENGTH
) -> dict[str, Match]:
    """The examples of whose runs of `length` letters and digits a share of `threshold` is close together in a document.

    Case is folded. Runs that three examples or more have ("which of the following") say nothing and don't count, but of
    an example that has hardly any others (questions on one passage) all do; one shorter than a run counts as a whole.
    Close together: in 65,536 characters. So it finds a text that was wrapped, hyphenated or put in capitals, and one
    that is spread among other text, as long as pieces of some words are whole.
    """
    ids = list(examples)
    codes = [_codes(text, fold=True) for text in examples.values()]
    tables = [(size, some, _runs([codes[i] for i in some], size)) for size, some in _by_size(codes, length).items()]
    found: dict[str, Match] = {}
    for batch in _batches(documents, True, SEGMENT, SEGMENT // 2) if tables else ():
        for size, some, runs in tables:
            for document, example, share in _shares(batch, runs, size):
                name = ids[some[example]]
                if share >= threshold and share > found.get(name, Match("", 0.0)).share:
                    found[name] = Match(document, share)
    return found


def _by_size(codes: list[np.ndarray], length: int) -> dict[int, list[int]]:
    """Examples by the length of their runs: `length`, or all of a shorter one."""
    sizes: dict[int, list[int]] = defaultdict(list)
    for i, own in enumerate(codes):
        if len(own):
            sizes[min(length, len(own))].append(i)
    return sizes


class _Runs(NamedTuple):
    """The runs of some examples that tell them apart; run r is in examples `example[first[r] : first[r + 1]]`."""

    table: "_Table"
    first: np.ndarray
    example: np.ndarray
    kept: np.ndarray  # how many different ones each example has


def _runs(codes: list[np.ndarray], size: int) -> _Runs:
    batch = _batch([part for own in codes for part in (own, np.zeros(1, np.uint64))], [""] * len(codes))
    hashes = batch.windows(size)
    places = np.arange(len(hashes))
    example = batch.segment(places)
    inside = places + size <= batch.starts[example] + np.array([len(own) for own in codes])[example]
    pairs = np.unique(np.stack([hashes[inside], example[inside].astype(np.uint64)]), axis=1)
    counts = np.unique(pairs[0], return_counts=True)[1]
    telling, owner = np.repeat(counts <= 2, counts), pairs[1].astype(np.int64)
    total, own = np.bincount(owner, minlength=len(codes)), np.bincount(owner[telling], minlength=len(codes))
    counted = telling | (own < LEAST_OWN * total)[owner]
    of_run, (run, first) = owner[counted], np.unique(pairs[0][counted], return_index=True)
    return _Runs(_Table(run), np.append(first, len(of_run)), of_run, np.bincount(of_run, minlength=len(codes)))


def _shares(batch: "_Batch", runs: _Runs, size: int) -> Iterator[tuple[str, int, float]]:
    """Of each example with a run in a segment: the document, its number, and its share of different runs there."""
    places, numbers = runs.table.find(batch.windows(size))
    tally: dict[tuple[int, int], int] = defaultdict(int)
    for segment, run in np.unique(np.stack([batch.segment(places), numbers]), axis=1).T.tolist():
        for example in runs.example[runs.first[run] : runs.first[run + 1]].tolist():
            tally[segment, example] += 1
    for (segment, example), count in tally.items():
        yield batch.names[segment], example, count / int(runs.kept[example])


class _Batch(NamedTuple):
    """Stripped segments of documents behind each other, with a 0 behind each, which nothing matches."""

    codes: np.ndarray
    starts: np.ndarray
    names: list[str]

    def windows(self, length: int) -> np.ndarray:
        """A hash of the `length` characters from each place on."""
        # Of long rows (all examples together) by parts, each with the beginning of the next.
        powers, inverses = _powers()
        parts = []
        for start in range(0, max(len(self.codes) - length + 1, 0), _BUFFER):
            codes = self.codes[start : start + _BUFFER + length - 1]
            sums = np.zeros(len(codes) + 1, np.uint64)
            np.cumsum(codes * powers[: len(codes)], out=sums[1:])
            parts.append((sums[length:] - sums[:-length]) * inverses[: len(codes) + 1 - length])
        return np.concatenate(parts) if parts else np.zeros(0, np.uint64)

    def segment(self, places: np.ndarray) -> np.ndarray:
        """Which segment each place is in."""
        return np.searchsorted(self.starts, places, side="right") - 1

    def document(self, place: int) -> str:
        """The document that a place is in."""
        return self.names[int(self.segment(np.array([place]))[0])]


def _batches(documents: Documents, fold: bool, segment: float, overlap: int) -> Iterator[_Batch]:
    """Documents, those longer than a segment (or a batch) in several that overlap."""
    pieces: list[np.ndarray] = []
    names: list[str] = []
    held = 0
    size = int(min(segment, _BUFFER))
    for name, text in documents:
        codes = _codes(text, fold)
        for start in range(0, max(len(codes) - overlap, 1), size - overlap) if len(codes) > size else (0,):
            part = codes[start : start + size]
            pieces += [part, np.zeros(1, np.uint64)]
            names.append(name)
            held += len(part) + 1
            if held >= _BUFFER:
                yield _batch(pieces, names)
                pieces, names, held = [], [], 0
    if names:
        yield _batch(pieces, names)


def _batch(pieces: list[np.ndarray], names: list[str]) -> _Batch:
    lengths = [len(part) + 1 for part in pieces[::2]]
    return _Batch(np.concatenate(pieces), np.cumsum([0, *lengths[:-1]]), names)


class _Table:
    """Hashes to be found among those of windows.

    Two different texts with one hash of 64 bits would be taken for each other: 10^-19 of pairs are.
    """

    def __init__(self, hashes: np.ndarray):
        self._order = np.argsort(hashes, kind="stable")
        self._hashes = hashes[self._order]
        self._some = np.zeros(1 << _TABLE_BITS, bool)  # most windows are none of them: that is told by one look
        self._some[self._hashes >> _SHIFT] = True

    def __len__(self) -> int:
        return len(self._hashes)

    def find(self, hashes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Places of the windows that are one of them, and which one."""
        places = np.flatnonzero(self._some[hashes >> _SHIFT])
        at = np.minimum(np.searchsorted(self._hashes, hashes[places]), len(self._hashes) - 1)
        same = self._hashes[at] == hashes[places]
        return places[same], self._order[at[same]]


def _hash(text: str) -> np.uint64:
    """As `_Batch.windows` has it."""
    codes = np.array([ord(character) for character in text], np.uint64)
    return (codes * _powers()[0][: len(codes)]).sum(dtype=np.uint64)


@functools.cache
def _powers() -> tuple[np.ndarray, np.ndarray]:
    """The base's powers and their inverses, modulo 2^64, for as many characters as a batch of documents may have."""
    powers, inverses = (np.full(2 * _BUFFER + 2, base, np.uint64) for base in (_BASE, _INVERSE))
    powers[0] = inverses[0] = 1
    return np.cumprod(powers), np.cumprod(inverses)


@functools.cache
def _kept() -> np.ndarray:
    """Of each Unicode character, whether it is a letter or a digit."""
    return np.array([chr(code).isalnum() for code in range(0x110000)])


def _codes(text: str, fold: bool) -> np.ndarray:
    # A lone surrogate, half a character, is no letter.
    codes = np.frombuffer((text.casefold() if fold else text).encode("utf-32-le", "replace"), np.uint32)
    return codes[_kept()[codes]].astype(np.uint64)


def _text(codes: np.ndarray) -> str:
    return codes.astype("<u4").tobytes().decode("utf-32-le")
