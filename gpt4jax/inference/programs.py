"""The programs of the decode loop: a step of all rows, a chunk of prompts, and blocks of a cache in and out.

Each is compiled once for the shapes it is called with. `Config` is static, a cache is donated and updated in
place. A row's result depends on nothing but that row: the other rows are other rows of the same products.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax import model
from gpt4jax.inference import sampling
from gpt4jax.inference.sampling import Settings
from gpt4jax.model import vision
from gpt4jax.model.cached import Cached, KeysValues
from gpt4jax.model.decoder import State
from gpt4jax.model.vision import Embeddings, Images

MAX_TOP_LOGPROBS = 20

Caches = tuple[KeysValues, ...]


class Rows(NamedTuple):
    """What a step is told of each row."""

    token_b: jax.Array  # the last token, which is not yet in the cache
    length_b: jax.Array  # how many tokens are
    index_b: jax.Array  # how many tokens the row has drawn
    draws_b: jax.Array  # whether it draws now; the others are computed too, and forgotten
    top_logprobs_b: jax.Array  # how many of the likeliest tokens are wanted; 0: none
    settings: Settings


class Drawn(NamedTuple):
    """Tokens for each row, of which the first `count_b` count; log probabilities are the model's own.

    Those are taken before any setting; the likeliest tokens are there only if a row wants them.
    """

    token_bt: jax.Array
    logprob_bt: jax.Array
    top_id_btn: jax.Array
    top_logprob_btn: jax.Array
    count_b: jax.Array


@partial(jax.jit, static_argnums=(0, 1), donate_argnums=(3, 4))
def step(
    config: model.Config, vocab_size: int, params: Any, cache: Caches, seen_bv: jax.Array, rows: Rows
) -> tuple[Caches, jax.Array, Drawn]:
    """One token for every row. `vocab_size` is the tokenizer's: ids from there on are never drawn.

    `seen_bv` are the tokens of each row's text so far, for the repetition penalty.
    """
    x_b1d, state = model.features(config, params, rows.token_b[:, None], state=State(cache, rows.length_b))
    assert isinstance(state, State)
    logits_b1v = model.unembed(config, params, x_b1d)
    log_bv = sampling.log_distribution(drawable(logits_b1v[:, 0], vocab_size), seen_bv, rows.settings)
    token_b = sampling.draw(log_bv, sampling.keys(rows.settings.seed_b, rows.index_b))
    seen_bv = seen_bv | (rows.draws_b[:, None] & (jnp.arange(seen_bv.shape[-1]) == token_b[:, None]))
    return state.cache, seen_bv, drawn(logits_b1v, token_b[:, None], rows.top_logprobs_b, jnp.ones_like(token_b))


def drawable(logits_bv: jax.Array, vocab_size: int) -> jax.Array:
    """The logits of ids that may be drawn; -inf for those that the tokenizer lacks."""
    return jnp.where(jnp.arange(logits_bv.shape[-1]) < vocab_size, logits_bv, -jnp.inf)


def drawn(logits_btv: jax.Array, token_bt: jax.Array, top_logprobs_b: jax.Array, count_b: jax.Array) -> Drawn:
    """The tokens, and what the model thought of them and of others."""
    total_bt1 = jax.nn.logsumexp(logits_btv, axis=-1, keepdims=True)
    logprob_bt = (jnp.take_along_axis(logits_btv, token_bt[..., None], axis=-1) - total_bt1)[..., 0]
    n = min(MAX_TOP_LOGPROBS, logits_btv.shape[-1])
    shape = (*token_bt.shape, n)
    nothing = (jnp.zeros(shape, logits_btv.dtype), jnp.zeros(shape, jnp.int32))
    top_btn, id_btn = jax.lax.cond(
        jnp.any(top_logprobs_b > 0), lambda: tuple(jax.lax.top_k(logits_btv, n)), lambda: nothing
    )
    return Drawn(token_bt, logprob_bt, id_btn, top_btn - total_bt1, count_b)


class Scores(NamedTuple):
    """Of each position's next token: its log probability, and whether it is the likeliest."""

    logprob_bt: jax.Array
    greedy_bt: jax.Array


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def prefill(
    config: model.Config,
    params: Any,
    cache: Caches,
    row_b: jax.Array,
    length_b: jax.Array,
    tokens_bt: jax.Array,
    target_bt: jax.Array,
    images: Embeddings | None = None,
) -> tuple[Caches, Scores]:
    """T tokens of a prompt into one row of each of B equal parts of the cache (-1: none), behind what is there.

    `target_bt` is the token after each position, or -1 where nobody asks for its score. Padding comes last: what
    it writes lies behind the row's end, where nobody sees it and the next tokens overwrite it. `images` are those of
    the image tokens among these, all of each image.
    """
    x_btd, state = model.features(config, params, tokens_bt, images=images, state=State(cache, length_b, row_b))
    assert isinstance(state, State)

    def score() -> Scores:
        logits_btv = model.unembed(config, params, x_btd)
        logprob_btv = jax.nn.log_softmax(logits_btv, axis=-1)
        target_bt1 = jnp.maximum(target_bt, 0)[..., None]
        logprob_bt = jnp.take_along_axis(logprob_btv, target_bt1, axis=-1)[..., 0]
        return Scores(logprob_bt, jnp.argmax(logits_btv, axis=-1) == target_bt)

    def nothing() -> Scores:
        return Scores(jnp.zeros(target_bt.shape, config.stable_dtype), jnp.zeros(target_bt.shape, bool))

    return state.cache, jax.lax.cond(jnp.any(target_bt >= 0), score, nothing)


@partial(jax.jit, static_argnums=0)
def embed(config: model.Config, params: Any, images: Images) -> Embeddings:
    """What the frontend makes of images."""
    return vision.embed(config, params, images)


@partial(jax.jit, static_argnums=3)
def read_block(cache: Caches, row_b: jax.Array, start: jax.Array, size: int) -> KeysValues:
    """The tokens start to start + size of one row of each of B equal parts of the cache, stacked: (B, L, K, size, H).

    Tokens' ids are stacked over the layers that hold them. `start` is a multiple of `size`, and in rings the tokens
    must not have been overwritten yet.

    Raises:
        ValueError: a block could go over the end of a ring.
    """

    def read(layer: KeysValues) -> KeysValues:
        places = layer.k_bksh.shape[2]
        if places % size:
            raise ValueError(f"blocks of {size} tokens do not fit a cache of {places} places: it must be a multiple")
        return Cached(layer, jnp.zeros_like(row_b), row_b).block(start % places, size)

    blocks = [read(layer) for layer in cache]
    tokens = [block.token_bks1 for block in blocks if block.token_bks1 is not None]
    keys, values = [block.k_bksh for block in blocks], [block.v_bksh for block in blocks]
    return KeysValues(jnp.stack(keys, axis=1), jnp.stack(values, axis=1), jnp.stack(tokens, axis=1) if tokens else None)


@partial(jax.jit, donate_argnums=0)
def write_block(cache: Caches, row_b: jax.Array, start_b: jax.Array, block: KeysValues) -> Caches:
    """Writes what `read_block` read, the same bits, into one row of each part of the cache (-1: none)."""
    keys, values, tokens = (iter(() if leaf is None else leaf.swapaxes(0, 1)) for leaf in block)
    new = [KeysValues(next(keys), next(values), None if old.token_bks1 is None else next(tokens)) for old in cache]
    return tuple(Cached(old, start_b, row_b).append(one).cache for old, one in zip(cache, new, strict=True))


@partial(jax.jit, donate_argnums=0)
def set_seen(seen_bv: jax.Array, row: jax.Array, seen_v: jax.Array) -> jax.Array:
    """The tokens of a row's prompt, for its repetition penalty."""
    return jnp.where(jnp.arange(len(seen_bv))[:, None] == row, seen_v, seen_bv)
