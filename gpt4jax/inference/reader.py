"""Reads candidates and scores them: one row a device, one pass over what texts share (`candidates`)."""

from collections import deque
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.inference import candidates
from gpt4jax.inference.candidates import Candidates, Plan, Query, Round, Score, chunks, plan
from gpt4jax.inference.pool import Pool
from gpt4jax.inference.programs import Caches
from gpt4jax.model.cached import CACHE_AXES, Tree
from gpt4jax.model.decoder import State

_FEWEST = 8  # places, and tokens, that are scored by one program; others take four times as many, and so on


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def read(
    config: model.Config, params: Any, cache: Caches, row_b: jax.Array, length_b: jax.Array, tokens_bt: jax.Array,
    tree: Tree,
) -> tuple[Caches, jax.Array]:  # fmt: skip
    """T tokens behind the first `length_b` of one row of each part (-1: none), and their last hidden states."""
    x_btd, state = model.features(config, params, tokens_bt, state=State(cache, length_b, row_b, tree))
    assert isinstance(state, State)
    return state.cache, x_btd


@partial(jax.jit, static_argnums=0)
def score(
    config: model.Config, params: Any, x_btd: jax.Array, place_bu: jax.Array, of_bq: jax.Array, target_bq: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Log probabilities (B, Q) of tokens as the hidden states at `place_bu[of_bq]` predict them; are they likeliest."""
    logits_buv = model.unembed(config, params, jnp.take_along_axis(x_btd, place_bu[..., None], axis=1))
    logprob_buv = jax.nn.log_softmax(logits_buv, axis=-1)
    b_b1 = jnp.arange(len(of_bq))[:, None]
    return logprob_buv[b_b1, of_bq, target_bq], jnp.argmax(logits_buv, axis=-1)[b_b1, of_bq] == target_bq


class _Piece(NamedTuple):
    """A chunk of a round, from token `first` on, and what is asked of it: what one pass of one part reads."""

    round: Round
    first: int
    size: int
    asked: tuple[Query, ...]

    @property
    def start(self) -> int:
        """The place of its first token."""
        return self.round.start + self.first

    @property
    def shape(self) -> tuple[int, int]:
        """What decides the program, and with it the bits: tokens, and places that are scored (padded)."""
        return self.size, _bucket(len({query.place for query in self.asked})) if self.asked else 0


class _Job:
    """One item on its way through a part."""

    def __init__(self, index: int, item: Candidates, planned: Plan, known: int):
        self.index = index
        self.sums = np.zeros(len(item.texts))
        self.greedy = np.ones(len(item.texts), bool)
        self.pieces: deque[_Piece] = deque()
        for one in (planned.prefix, *planned.rounds):
            at = known if one is planned.prefix else 0
            for size in chunks(one.size - at):
                inside = range(one.start + at, one.start + at + size)
                self.pieces.append(_Piece(one, at, size, tuple(q for q in one.queries if q.place in inside)))
                at += size

    def add(self, asked: Sequence[Query], logprobs: np.ndarray, greedy: np.ndarray) -> None:
        for query, logprob, likeliest in zip(asked, logprobs, greedy, strict=False):
            self.sums[query.text] += float(logprob)
            self.greedy[query.text] &= bool(likeliest)

    @property
    def scores(self) -> list[Score]:
        return [Score(float(total), bool(greedy)) for total, greedy in zip(self.sums, self.greedy, strict=True)]


class Reader:
    """Scores candidates with a pool's model, in rows of its own: one for each part of the pool.

    Args:
        pool: whose parameters, mesh and parts are used.
        max_len: tokens of the longest text.
    """

    def __init__(self, pool: Pool, max_len: int):
        self._pool, self.max_len = pool, max_len
        self._places = (
            -(-(max_len + candidates.STEP) // candidates.CHUNK) * candidates.CHUNK
        )  # whole chunks, and the padding of the last
        with pool.on_mesh():
            empty = lambda: model.init_cache(pool.config, pool.parts, self._places).cache  # noqa: E731
            self._cache = jax.jit(empty, out_shardings=pool.place(CACHE_AXES))()
        self._held: list[np.ndarray] = [np.zeros(0, np.int32)] * pool.parts  # the prefix that each row begins with
        shape = (pool.parts, self._places)
        self._tree = Tree(np.zeros(shape, np.int32), np.zeros(shape, np.int32), np.full(shape, -1, np.int32))  # type: ignore[arg-type]
        self.tokens_read = 0  # padding included: what time goes with

    def score(self, items: Sequence[Candidates]) -> Iterator[tuple[int, list[Score]]]:
        """Each item's number and scores, as they come: those with the same prefix together, by length.

        Raises:
            UserError: a text that is too long; then none is begun.
        """
        plans = [plan(item, self.max_len) for item in items]
        group: dict[bytes, int] = {}
        for one in plans:
            group.setdefault(one.prefix.laid.tokens.tobytes(), len(group))
        key = lambda i: (group[plans[i].prefix.laid.tokens.tobytes()], plans[i].sizes)  # noqa: E731
        queue = deque(sorted(range(len(plans)), key=key))
        jobs: list[_Job | None] = [None] * self._pool.parts
        while queue or any(jobs):
            for part, job in enumerate(jobs):
                if job is None and queue:
                    index = queue.popleft()
                    jobs[part] = _Job(
                        index, items[index], plans[index], self._begin(part, plans[index].prefix.laid.tokens)
                    )
            self._pass({part: job for part, job in enumerate(jobs) if job is not None and job.pieces})
            for part, job in enumerate(jobs):
                if job is not None and not job.pieces:
                    jobs[part], self._held[part] = None, plans[job.index].prefix.laid.tokens
                    yield job.index, job.scores

    def _begin(self, part: int, prefix: np.ndarray) -> int:
        """How much of a prefix a row begins with: all of it, or whole chunks, which end where its own do."""
        # Until the item is done its row holds nothing that is sure: a pass may be interrupted.
        held, self._held[part] = self._held[part], np.zeros(0, np.int32)
        if np.array_equal(held, prefix):
            return len(prefix)
        shortest = min(len(held), len(prefix))
        same = int(np.argmin([*(held[:shortest] == prefix[:shortest]), False]))
        return same // candidates.CHUNK * candidates.CHUNK

    def _pass(self, jobs: dict[int, _Job]) -> None:
        """The next chunk of each part whose chunk has the shape that most have; the others wait."""
        shapes = [job.pieces[0].shape for job in jobs.values()]
        if not shapes:
            return
        shape = max(shapes, key=lambda one: (shapes.count(one), one))
        pieces = {part: job.pieces.popleft() for part, job in jobs.items() if job.pieces[0].shape == shape}
        row_b, length_b = np.full(self._pool.parts, -1, np.int32), np.zeros(self._pool.parts, np.int32)
        tokens_bt = np.zeros((self._pool.parts, shape[0]), np.int32)
        for part, piece in pieces.items():
            row_b[part], length_b[part] = 0, piece.start
            self._lay_out(part, piece, tokens_bt)
        self.tokens_read += shape[0] * len(pieces)
        tree = Tree(*(leaf.copy() for leaf in self._tree))  # XLA may read host arrays later than it is given them
        with self._pool.on_mesh():
            self._cache, x_btd = read(
                self._pool.config, self._pool.params, self._cache, row_b, length_b, tokens_bt, tree
            )
        if shape[1]:
            self._ask(jobs, pieces, x_btd, shape[1])

    def _lay_out(self, part: int, piece: _Piece, tokens_bt: np.ndarray) -> None:
        """Writes a piece's tokens, and where they belong, padding of no branch behind them."""
        tokens, *new = (leaf[piece.first : piece.first + piece.size] for leaf in piece.round.laid)
        tokens_bt[part, : len(tokens)] = tokens
        for leaf, values, padding in zip(self._tree, new, (piece.start, -1, -1), strict=True):
            leaf[part, piece.start : piece.start + piece.size] = padding
            leaf[part, piece.start : piece.start + len(tokens)] = values

    def _ask(self, jobs: dict[int, _Job], pieces: dict[int, _Piece], x_btd: jax.Array, count: int) -> None:
        """Scores what is asked of the hidden states of one pass, at `count` places or fewer a part."""
        parts, most = self._pool.parts, _bucket(max(len(piece.asked) for piece in pieces.values()))
        place_bu = np.zeros((parts, count), np.int32)
        of_bq, target_bq = np.zeros((parts, most), np.int32), np.zeros((parts, most), np.int32)
        for part, piece in pieces.items():
            places = sorted({query.place for query in piece.asked})
            place_bu[part, : len(places)] = np.array(places) - piece.start
            of_bq[part, : len(piece.asked)] = [places.index(query.place) for query in piece.asked]
            target_bq[part, : len(piece.asked)] = [query.target for query in piece.asked]
        with self._pool.on_mesh():
            found = score(self._pool.config, self._pool.params, x_btd, place_bu, of_bq, target_bq)
        logprob_bq, greedy_bq = jax.device_get(found)
        for part, piece in pieces.items():
            logprobs = logprob_bq[part, : len(piece.asked)]
            if np.isnan(logprobs).any():
                raise UserError("the model gives no number for a token's probability: its weights are damaged")
            jobs[part].add(piece.asked, logprobs, greedy_bq[part])


def _bucket(count: int) -> int:
    size = _FEWEST
    while size < count:
        size *= 4
    return size
