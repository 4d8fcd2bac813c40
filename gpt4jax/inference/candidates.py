"""Texts that begin alike, and the plan by which one pass over what they share scores them all.

The texts of one item are laid out behind each other as a row that branches (`model.cached.Tree`): a prefix that other
items begin with too, the rest of what these texts share, and their different ends. A plan is a function of
its item alone: so are its scores, to the last bit, whatever was or is scored beside it.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gpt4jax.errors import UserError

CHUNK = 128  # tokens that are read at once; the rest in a multiple of STEP
STEP = 16


@dataclasses.dataclass(frozen=True)
class Candidates:
    """Texts to score, as token ids.

    Attributes:
        texts: at least one; the more they begin alike, the less there is to compute.
        score_from: of each text the first token whose log probability counts, after all tokens before it; at least 1.
        shared: how many tokens at their beginning other candidates have as well (a few-shot prompt, say). They are
            read once for consecutive candidates; where it ends may change last digits.

    Raises:
        UserError: a text without a token before the first that is scored, or numbers that don't fit.
    """

    texts: tuple[tuple[int, ...], ...]
    score_from: tuple[int, ...]
    shared: int = 0

    def __post_init__(self) -> None:
        if not self.texts or len(self.texts) != len(self.score_from):
            raise UserError(f"{len(self.texts)} texts to score and {len(self.score_from)} places to score them from")
        for text, start in zip(self.texts, self.score_from, strict=True):
            if not 1 <= start <= len(text):
                raise UserError(
                    f"a text of {len(text)} tokens can't be scored from token {start} on: a continuation can be scored "
                    "only after a context of at least one token"
                )


class Score(NamedTuple):
    """A text's log probability in nats, of the tokens that count; and whether greedy choice gives each of them."""

    logprob: float
    greedy: bool


class Query(NamedTuple):
    """Asks for the log probability of a token at the place that predicts it."""

    place: int
    target: int
    text: int


class Laid(NamedTuple):
    """Tokens behind each other in a row, and where each belongs, as `model.cached.Tree` has it."""

    tokens: np.ndarray
    position: np.ndarray
    branch: np.ndarray
    before: np.ndarray


class Round(NamedTuple):
    """Tokens at places `start`, `start + 1`, ... of a row, and what is asked of them."""

    start: int
    laid: Laid
    queries: tuple[Query, ...]

    @property
    def size(self) -> int:
        """How many tokens it has."""
        return len(self.laid.tokens)


class Plan(NamedTuple):
    """The prefix, which may be there already, and the rounds behind it; each starts over behind the stem."""

    prefix: Round
    rounds: tuple[Round, ...]

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of the chunks behind the prefix."""
        return tuple(size for one in self.rounds for size in chunks(one.size))


def chunks(tokens: int) -> list[int]:
    """The sizes in which some tokens are read."""
    whole, rest = divmod(tokens, CHUNK)
    return [CHUNK] * whole + ([-(-rest // STEP) * STEP] if rest else [])


def common(texts: Sequence[tuple[int, ...]]) -> int:
    """How many tokens all texts begin with."""
    low, high = min(texts), max(texts)  # all others lie between these two
    return next((i for i, (a, b) in enumerate(zip(low, high, strict=False)) if a != b), min(len(low), len(high)))


def plan(item: Candidates, places: int) -> Plan:
    """How to score an item in a row of that many places.

    Raises:
        UserError: a text that is longer.
    """
    longest = max(map(len, item.texts))
    if longest > places:
        raise UserError(f"a text of {longest} tokens does not fit {places}")
    first, stem = item.texts[0], common(item.texts)
    read = stem if longest > stem else stem - 1  # a text's last token predicts nothing that is asked for
    prefix = min(item.shared, read, min(item.score_from) - 1)
    asked = [
        Query(j - 1, text[j], i)
        for i, (text, start) in enumerate(zip(item.texts, item.score_from, strict=True))
        for j in range(start, min(len(text), stem + 1))
    ]
    rounds = [Round(prefix, _along(first, prefix, read, 0), tuple(asked))]
    room = places - stem
    for i, text in enumerate(item.texts):
        if len(text) < stem + 2:  # all its tokens are predicted by the stem's
            continue
        used = rounds[-1].size - (read - rounds[-1].start)
        if used + len(text) - 1 - stem > room:
            rounds.append(Round(stem, _along(text, 0, 0, 0), ()))
            used = 0
        rounds[-1] = _with_branch(rounds[-1], item, i, stem, stem + used)
    return Plan(Round(0, _along(first, 0, prefix, 0), ()), tuple(rounds))


def _along(text: Sequence[int], start: int, end: int, branch: int) -> Laid:
    """Of the tokens from start to end of a text: ids, positions, branch, and the tokens before them."""
    shifted = ([-1, *text] if not start else text[start - 1 :])[: end - start]
    position = np.arange(start, end, dtype=np.int32)
    ids, before = np.array(text[start:end], np.int32), np.array(shifted, np.int32)
    return Laid(ids, position, np.full_like(position, branch), before)


def _with_branch(one: Round, item: Candidates, i: int, stem: int, place: int) -> Round:
    """A round with the end of a text behind what is there, from `place` on."""
    text = item.texts[i]
    new = _along(text, stem, len(text) - 1, i + 1)
    first = max(item.score_from[i], stem + 1)  # earlier ones are predicted by the stem
    asked = tuple(Query(place + j - 1 - stem, text[j], i) for j in range(first, len(text)))
    joined = Laid(*(np.concatenate(both) for both in zip(one.laid, new, strict=True)))
    return Round(one.start, joined, one.queries + asked)
