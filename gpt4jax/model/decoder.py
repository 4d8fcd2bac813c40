"""The decoder's forward pass, and the thin Linen shell that holds its parameters."""

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from gpt4jax.model import layers, position
from gpt4jax.model.axes import constrain
from gpt4jax.model.config import Config
from gpt4jax.model.layers import Cache, Rows
from gpt4jax.model.parameters import Params, draw, table


class State(NamedTuple):
    """A KV cache of all layers (L, B, S, K, H), and how many tokens each row holds."""

    cache: Cache
    length_b: jax.Array


class Decoder(nn.Module):
    """Declares the parameter table, group by group; the mathematics is in `forward`."""

    config: Config

    @nn.compact
    def __call__(self, tokens_bt: jax.Array, **options: Any) -> tuple[jax.Array, State | None]:
        """See `features`."""
        rows = table(self.config)
        dtype = jnp.dtype(self.config.param_dtype)
        params = {
            group: self.param(
                group, lambda key, group=group: {r.name: draw(r, key, dtype) for r in rows if r.group == group}
            )
            for group in dict.fromkeys(row.group for row in rows)
        }
        return forward(self.config, params, tokens_bt, **options)


def init(config: Config, key: jax.Array) -> Params:
    """Draws the parameters: plain nested dicts of arrays, `params[group][name]`, as the table has them."""
    return Decoder(config).init(key, jnp.zeros((1, 1), jnp.int32))["params"]


def features(
    config: Config,
    params: Params,
    tokens_bt: jax.Array,
    *,
    segment_ids_bt: jax.Array | None = None,
    positions_bt: jax.Array | None = None,
    images: jax.Array | None = None,
    state: State | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, State | None]:
    """The last hidden states, after the final norm, (B, T, D) in the compute dtype, and the new state.

    Args:
        config: the decoder.
        params: what `init` gives.
        tokens_bt: integers in [0, vocab_size).
        segment_ids_bt: documents of a packed row; a token sees its own segment only. Default: one segment.
        positions_bt: position within the piece of a document that a row holds, growing along each segment;
            default 0, 1, ... or, with a state, on from its length.
        images: reserved for the image frontend.
        state: a KV cache (`init_cache`) to read and append to. It must have room for T more tokens in
            every row: what is written past its end would overwrite its last places.
        dropout_key: turns dropout on.

    Raises:
        ValueError: rows longer than the position table or the cache, or segment ids together with a cache.
    """
    if images is not None:
        raise ValueError("this decoder has no image frontend yet: images must be None")
    return Decoder(config).apply(  # type: ignore[return-value] # Flax types it as anything
        {"params": params},
        tokens_bt,
        segment_ids_bt=segment_ids_bt,
        positions_bt=positions_bt,
        state=state,
        dropout_key=dropout_key,
    )


def unembed(config: Config, params: Params, x_btd: jax.Array) -> jax.Array:
    """Logits (B, T, V) of hidden states, in float32 (float64 for a float64 decoder)."""
    table_vd = params["embed"]["token_vd"] if config.tie_embeddings else params["final"]["unembed_vd"]
    logits_btv = jnp.einsum(
        "btd,vd->btv", x_btd, table_vd.astype(x_btd.dtype), preferred_element_type=config.stable_dtype
    )
    if config.logit_soft_cap:
        logits_btv = config.logit_soft_cap * jnp.tanh(logits_btv / config.logit_soft_cap)
    return constrain(logits_btv, "act_batch", "act_len", "act_vocab")


def apply(config: Config, params: Params, tokens_bt: jax.Array, **options: Any) -> jax.Array:
    """The plain forward pass: logits (B, T, V). Options as in `features`."""
    x_btd, _ = features(config, params, tokens_bt, **options)
    return unembed(config, params, x_btd)


def init_cache(config: Config, batch: int, length: int) -> State:
    """An empty KV cache with room for `length` tokens in each of `batch` rows."""
    shape = (config.num_layers, batch, length, config.num_kv_heads, config.head_dim)
    empty = Cache(jnp.zeros(shape, config.compute_dtype), jnp.zeros(shape, config.compute_dtype))
    return State(empty, jnp.zeros((batch,), jnp.int32))


def forward(
    config: Config,
    params: Params,
    tokens_bt: jax.Array,
    *,
    segment_ids_bt: jax.Array | None = None,
    positions_bt: jax.Array | None = None,
    state: State | None = None,
    dropout_key: jax.Array | None = None,
) -> tuple[jax.Array, State | None]:
    """The body of `features`, a pure function of the parameters."""
    t = tokens_bt.shape[1]
    _check_lengths(config, t, segment_ids_bt, state)
    start_b = None if state is None else state.length_b
    if positions_bt is None:
        positions_bt = jnp.arange(t)[None] + (0 if start_b is None else start_b[:, None])
    embed_key, layers_key = (None, None) if dropout_key is None else jax.random.split(dropout_key)

    # Tables are gathered over fsdp before the look-up, as matrices are before a product: left alone, XLA
    # replicates the activations that it looked up.
    token_vd = constrain(params["embed"]["token_vd"], "act_vocab", "act_embed")
    x_btd = token_vd[tokens_bt].astype(config.compute_dtype)
    cos_sin = None
    if config.position == "learned":
        position_td = constrain(params["embed"]["position_td"], "act_len", "act_embed")
        x_btd += position_td[positions_bt].astype(config.compute_dtype)
    else:
        cos_sin = position.rope_angles(config, positions_bt)
    x_btd = constrain(layers.dropout(x_btd, config.dropout, embed_key), "act_batch", "act_len", "act_embed")

    rows = Rows(positions_bt, segment_ids_bt, cos_sin, start_b)
    x_btd, new = _run_layers(config, params["layers"], x_btd, rows, state and state.cache, layers_key)
    final = params["final"]
    x_btd = layers.norm(config, x_btd, final["norm_d"], final.get("norm_bias_d"))
    return x_btd, None if state is None else State(state.cache.append(new, state.length_b), state.length_b + t)


def _check_lengths(config: Config, t: int, segment_ids_bt: jax.Array | None, state: State | None) -> None:
    if config.position == "learned" and t > config.max_seq_len:
        raise ValueError(f"rows of {t} tokens do not fit the position table of max_seq_len {config.max_seq_len}")
    if state is not None and segment_ids_bt is not None:
        raise ValueError("a KV cache holds one document a row: segment_ids_bt and state exclude each other")
    if state is not None and t > (room := state.cache.k_bskh.shape[2]):
        raise ValueError(f"{t} tokens do not fit a KV cache of {room}")


def _run_layers(config, params, x_btd, rows, cache, dropout_key):
    """All layers, a cycle of patterns at a time: scanned, or unrolled into one program.

    Gives the hidden states and, with a cache, the new tokens' keys and values of all layers. The cache itself
    is only read: written in one place afterwards, it can be updated where it lies.
    """
    cycle = len(config.attention)
    cycles = config.num_layers // cycle
    keys = None if dropout_key is None else jax.random.split(dropout_key, config.num_layers)

    def run_cycle(x_btd, xs):
        news = []
        for i, pattern in enumerate(config.attention):
            layer, layer_cache, key = jax.tree.map(lambda leaf, i=i: leaf[i], xs) if cycle > 1 else xs
            x_btd, new = layers.block(config, pattern, layer, x_btd, rows, layer_cache, key)
            news.append(new)
        return x_btd, _stack(news) if cycle > 1 else news[0]

    if config.remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if config.remat == "dots" else None
        run_cycle = jax.checkpoint(run_cycle, policy=policy, prevent_cse=config.layers == "unroll")

    xs = (params, cache, keys)
    if cycle > 1:  # An axis of one would not be free: XLA copies every weight into another layout for it.
        xs = jax.tree.map(lambda leaf: leaf.reshape(cycles, cycle, *leaf.shape[1:]), xs)
    if config.layers == "scan":
        x_btd, news = jax.lax.scan(run_cycle, x_btd, xs)
    else:
        parts = []
        for one in _unstack(xs, cycles):
            x_btd, part = run_cycle(x_btd, one)
            parts.append(part)
        news = _stack(parts)
    if cycle > 1:
        news = jax.tree.map(lambda leaf: leaf.reshape(config.num_layers, *leaf.shape[2:]), news)
    return x_btd, news


def _stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def _unstack(xs, n):
    """The n slices of a stacked tree. The gradient of `split` is one concatenation; that of n indexings, n sums."""
    columns = jax.tree.map(lambda leaf: [part[0] for part in jax.lax.split(leaf, [1] * n)], xs)
    return [jax.tree.map(lambda _, column, i=i: column[i], xs, columns) for i in range(n)]
