"""Speculative decoding: a small model guesses some tokens, one pass of the large one checks them all.

Leviathan et al. 2023, algorithm 1 (and Chen et al. 2023): a guess d, drawn from the small model's q, is kept
with probability min(1, p(d) / q(d)); at the first one that is not, a token is drawn from max(p - q, 0)
instead, and after the last, one from p. What comes out is distributed as p, whatever q is: both are taken
after the row's temperature, cuts and penalty.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import model
from gpt4jax.inference import programs, sampling
from gpt4jax.inference.pool import Chunk, Pool
from gpt4jax.inference.programs import Caches, Drawn, Rows, Scores
from gpt4jax.model.cached import KeysValues
from gpt4jax.model.decoder import State
from gpt4jax.model.parameters import Params


class Draft(NamedTuple):
    """The small model, which shares the large one's tokenizer, how many tokens it guesses at a time, and its type."""

    config: model.Config
    params: Params
    tokens: int = 4
    weights: str = ""  # as `prepare` has them


class SpeculativePool(Pool):
    """A pool whose `draw` gives each row from one token to `draft_tokens` + 1."""

    def __init__(self, large: Mapping[str, Any], small: Mapping[str, Any], draft_tokens: int):
        if draft_tokens < 1:
            raise ValueError(f"the draft model guesses {draft_tokens} tokens at a time; it must be at least 1")
        sizes = [options["config"].vocab_size for options in (small, large)]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"the draft model has a vocabulary of {sizes[0]}, not {sizes[1]}: it must share the model's tokenizer"
            )
        # The small one first, and never consumed: its parameters may be some of the large one's.
        self._small = Pool(**dict(small, consume=False))
        super().__init__(**large)
        self._draft_tokens = draft_tokens

    def draw(self, rows: Rows) -> Drawn:
        """From one token to `draft_tokens` + 1 for every row, on the host."""
        small = self._small
        with self.on_mesh():
            self.cache, small.cache, self._seen_bv, drawn = _round(
                (self.config, small.config), self.vocab_size, self._draft_tokens, (self.params, small.params),
                self.cache, small.cache, self._seen_bv, rows,
            )  # fmt: skip
        return jax.device_get(drawn)

    def read(self, chunks: Mapping[int, Chunk], size: int) -> dict[int, Scores]:
        """As `Pool.read`, for both models."""
        self._small.read({row: chunk._replace(targets=np.array([], np.int32)) for row, chunk in chunks.items()}, size)
        return super().read(chunks, size)

    def read_block(self, row: int, start: int, size: int) -> tuple[KeysValues, ...]:
        """As `Pool.read_block`, of both models."""
        return *super().read_block(row, start, size), *self._small.read_block(row, start, size)

    def write_block(self, row: int, start: int, block: tuple[KeysValues, ...]) -> None:
        """As `Pool.write_block`, for both models."""
        super().write_block(row, start, block[:1])
        self._small.write_block(row, start, block[1:])


# What a key is for: each token's key is split by these, so that no two draws share one.
_GUESS, _ACCEPT, _REPLACE = 1, 2, 3


def _keys(rows: Rows, index_b: jax.Array, purpose: int) -> jax.Array:
    return jax.vmap(jax.random.fold_in, (0, None))(sampling.keys(rows.settings.seed_b, index_b), purpose)


@partial(jax.jit, static_argnums=(0, 1, 2), donate_argnums=(4, 5, 6))
def _round(
    configs: tuple[model.Config, model.Config],
    vocab_size: int,
    n: int,
    params: tuple[Any, Any],
    cache: Caches,
    small_cache: Caches,
    seen_bv: jax.Array,
    rows: Rows,
) -> tuple[Caches, Caches, jax.Array, Drawn]:
    """N guesses, one pass over them, and what is kept. Both caches then hold guesses past the rows' ends too."""
    large, small = configs
    small_cache, guess_bn, log_q_bnv = _guess(small, vocab_size, n, params[1], small_cache, seen_bv, rows)
    tokens_bt = jnp.concatenate([rows.token_b[:, None], guess_bn], axis=1)
    x_btd, state = model.features(large, params[0], tokens_bt, state=State(cache, rows.length_b))
    assert isinstance(state, State)
    logits_btv = model.unembed(large, params[0], x_btd)

    # What each place of the pass has seen: the text so far and the guesses before it.
    guessed_bnv = jax.nn.one_hot(guess_bn, seen_bv.shape[-1], dtype=bool)
    before_bnv = seen_bv[:, None] | jnp.cumsum(guessed_bnv, axis=1, dtype=bool)
    seen_btv = jnp.concatenate([seen_bv[:, None], before_bnv], axis=1)
    at_each_place = jax.tree.map(lambda leaf: jnp.repeat(leaf, n + 1), rows.settings)
    flat = lambda leaf: leaf.reshape(-1, leaf.shape[-1])  # noqa: E731
    drawable = programs.drawable(flat(logits_btv), vocab_size)
    log_p_btv = sampling.log_distribution(drawable, flat(seen_btv), at_each_place).reshape(logits_btv.shape)

    token_bt, count_b = _keep(log_p_btv, log_q_bnv, guess_bn, rows)
    told_bt = _first(jnp.where(rows.draws_b, count_b, 0), n + 1)
    told_btv = jax.nn.one_hot(token_bt, seen_bv.shape[-1], dtype=bool) & told_bt[..., None]
    return (
        state.cache,
        small_cache,
        seen_bv | told_btv.any(axis=1),
        programs.drawn(logits_btv, token_bt, rows.top_logprobs_b, count_b),
    )


def _guess(config, vocab_size, n, params, cache, seen_bv, rows):
    """N tokens a row, and the log probabilities they were drawn from. The last is read into the cache too."""

    def one(i, carry):
        cache, seen_bv, token_b, guess_bn, log_q_bnv = carry
        x_b1d, state = model.features(config, params, token_b[:, None], state=State(cache, rows.length_b + i))
        assert isinstance(state, State)
        logits_bv = programs.drawable(model.unembed(config, params, x_b1d)[:, 0], vocab_size)
        log_q_bv = sampling.log_distribution(logits_bv, seen_bv, rows.settings)
        token_b = sampling.draw(log_q_bv, _keys(rows, rows.index_b + i, _GUESS)).astype(jnp.int32)
        seen_bv = seen_bv | (jnp.arange(seen_bv.shape[-1]) == token_b[:, None])
        # At i = n nothing is guessed any more: what would be written is dropped.
        guess_bn = guess_bn.at[:, i].set(token_b, mode="drop")
        return state.cache, seen_bv, token_b, guess_bn, log_q_bnv.at[:, i].set(log_q_bv, mode="drop")

    b, v = seen_bv.shape
    empty = jnp.zeros((b, n), jnp.int32), jnp.zeros((b, n, v), jnp.float32)
    cache, _, _, guess_bn, log_q_bnv = jax.lax.fori_loop(0, n + 1, one, (cache, seen_bv, rows.token_b, *empty))
    return cache, guess_bn, log_q_bnv


def _keep(log_p_btv, log_q_bnv, guess_bn, rows):
    """The tokens (B, N + 1) of which the first `count_b` count: the guesses that are kept, and one more."""
    n = guess_bn.shape[1]
    of_guess = lambda log_bnv: jnp.take_along_axis(log_bnv, guess_bn[..., None], axis=-1)[..., 0]  # noqa: E731
    ratio_bn = jnp.exp(of_guess(log_p_btv[:, :n]) - of_guess(log_q_bnv))
    key_bn = jnp.stack([_keys(rows, rows.index_b + i, _ACCEPT) for i in range(n)], axis=1)
    accepted_bn = jax.vmap(jax.vmap(jax.random.uniform))(key_bn) < ratio_bn
    kept_b = jnp.sum(jnp.cumprod(accepted_bn, axis=1), axis=1)

    here_bv = lambda leaf: jnp.take_along_axis(leaf, kept_b[:, None, None], axis=1)[:, 0]  # noqa: E731
    log_p_bv = here_bv(log_p_btv)
    # After the last guess there is no q to take away.
    q_bv = jnp.exp(here_bv(jnp.pad(log_q_bnv, ((0, 0), (0, 1), (0, 0)), constant_values=-jnp.inf)))
    rest_bv = jnp.maximum(jnp.exp(log_p_bv) - q_bv, 0)
    total_b1 = jnp.sum(rest_bv, axis=-1, keepdims=True)
    # p and q that differ by rounding alone leave nothing: then p itself is the limit.
    log_rest_bv = jnp.where(total_b1 > 0, jnp.log(rest_bv) - jnp.log(total_b1), log_p_bv)
    more_b = sampling.draw(log_rest_bv, _keys(rows, rows.index_b + kept_b, _REPLACE))
    token_bt = jnp.where(_first(kept_b, n + 1), jnp.pad(guess_bn, ((0, 0), (0, 1))), more_b[:, None])
    return token_bt, kept_b + 1


def _first(count_b: jax.Array, n: int) -> jax.Array:
    return jnp.arange(n) < count_b[:, None]
