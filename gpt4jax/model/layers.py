"""The parts of a decoder block as pure functions of one layer's parameters."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model import masks, mup, patterns, position, transformer_xl
from gpt4jax.model.arrangement import Where
from gpt4jax.model.attention import attend
from gpt4jax.model.axes import constrain, shards
from gpt4jax.model.cached import Cached, KeysValues, attend_cached
from gpt4jax.model.config import Config
from gpt4jax.model.masks import Mask

Layer = Mapping[str, jax.Array]


class Matrix(NamedTuple):
    """A kernel laid out for inference: outputs first, and in int8 with one scale for each output.

    A product with a few rows reads every weight once and is bound by that: with the outputs first, two CPU
    cores read 20 to 25 GB/s instead of 14, and int8 is a quarter of the bytes.
    """

    values: Any  # (outputs..., inputs...); arrays, or whatever else is said of each of them, such as shardings
    scale: Any  # (outputs...), or None


class Rows(NamedTuple):
    """What every layer needs to know of the rows, in their order (`cos_sin`: in that of x)."""

    position_bt: jax.Array
    segment_bt: jax.Array | None
    cos_sin: tuple[jax.Array, jax.Array] | None
    token_bt: jax.Array | None = None
    before_bt: jax.Array | None = None  # the token before each in its segment, or -1
    plain: bool = False  # whether the position of a token is its place in the row
    keys: transformer_xl.Keys | None = None  # of a Transformer-XL, whose keys are more than the rows' tokens
    images: tuple[jax.Array, jax.Array] | None = None  # (B, T) each: where a token's image begins and ends (`Where`)


# The norms over D and the activations keep only their inputs for the backward pass and compute the rest again:
# that is less work than the memory traffic of what lies between (10 to 15% of a step on two CPU cores).
@partial(jax.checkpoint, static_argnums=0)
def norm(config: Config, x: jax.Array, scale: jax.Array, bias: jax.Array | None) -> jax.Array:
    """LayerNorm (Ba et al. 2016) or RMSNorm (Zhang and Sennrich 2019) over the last axis, in the stable dtype."""
    y = x.astype(config.stable_dtype)
    if config.norm == "layernorm":
        y = y - jnp.mean(y, axis=-1, keepdims=True)
    y = _unit_root_mean_square(y, config.norm_eps) * scale.astype(y.dtype)
    return (y if bias is None else y + bias.astype(y.dtype)).astype(x.dtype)


def _unit_root_mean_square(y: jax.Array, eps: float) -> jax.Array:
    return y * jax.lax.rsqrt(jnp.mean(jnp.square(y), axis=-1, keepdims=True) + eps)


def linear(
    x: jax.Array, kernel: jax.Array | Matrix, bias: jax.Array | None, inputs: int = 1, *, apart: bool = False
) -> jax.Array:
    """Contracts the last `inputs` axes of x with the first of the kernel, in x's dtype, and adds the bias.

    Computed as one (tokens, in) x (in, out) product: with the batch and length axes apart, XLA's CPU
    back end is 1.5 times slower. They stay apart if asked to, as where both are sharded: one
    axis can't say that of two.
    """
    lead, width = x.shape[: x.ndim - inputs], math.prod(x.shape[x.ndim - inputs :])
    if isinstance(kernel, Matrix):
        out = kernel.values.shape[: kernel.values.ndim - inputs]
        y = outputs_first(x.reshape(-1, width), kernel, x.dtype)
    else:
        out = kernel.shape[inputs:]
        x = x.reshape(*lead, width) if apart else x.reshape(-1, width)
        y = x @ kernel.reshape(width, -1).astype(x.dtype)
    if bias is not None:
        y = y + bias.reshape(-1).astype(x.dtype)
    return y.reshape(*lead, *out)


def outputs_first(x_md: jax.Array, kernel: Matrix, dtype: jnp.dtype) -> jax.Array:
    """The product (M, outputs) of rows with a `Matrix`, accumulated and given in `dtype`."""
    values = kernel.values.reshape(-1, x_md.shape[-1]).astype(x_md.dtype)
    contract_last = (((1,), (1,)), ((), ()))
    # Without the barrier XLA folds the transpose into the product, and is back at the slow order.
    y_om = jax.lax.optimization_barrier(jax.lax.dot_general(values, x_md, contract_last, preferred_element_type=dtype))
    if kernel.scale is not None:
        y_om = y_om * kernel.scale.reshape(-1, 1).astype(dtype)
    return y_om.T


def dropout(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Zeroes a fraction `rate` of x and scales up the rest; without a key (evaluation), x itself."""
    if key is None or not rate:
        return x
    return jnp.where(jax.random.bernoulli(key, 1 - rate, x.shape), x / (1 - rate), 0)


def self_attention(
    config: Config, pattern: str, p: Layer, x_btd: jax.Array, rows: Rows, cached: Cached | None
) -> tuple[jax.Array, KeysValues | None]:
    """One layer's attention, and its cache, where it has one, extended by the new tokens."""
    apart = tokens_apart(config, x_btd, cached)
    q_btnh = linear(x_btd, p["query_dnh"], p.get("query_bias_nh"), apart=apart)
    k_btkh = linear(x_btd, p["key_dkh"], p.get("key_bias_kh"), apart=apart)
    v_btkh = linear(x_btd, p["value_dkh"], p.get("value_bias_kh"), apart=apart)
    q_btnh = constrain(q_btnh, "act_batch", config.length_axis, "act_heads", "act_head_dim")
    k_btkh = constrain(k_btkh, "act_batch", config.length_axis, "act_kv_heads", "act_head_dim")
    v_btkh = constrain(v_btkh, "act_batch", config.length_axis, "act_kv_heads", "act_head_dim")
    if config.qk_norm:  # Dehghani et al. 2023, with RMSNorm over each head
        q_btnh = _head_norm(config, q_btnh, p["query_norm_h"])
        k_btkh = _head_norm(config, k_btkh, p["key_norm_h"])
    if rows.cos_sin is not None:
        q_btnh, k_btkh = position.rotate(q_btnh, *rows.cos_sin), position.rotate(k_btkh, *rows.cos_sin)
    q_btnh = times(mup.multipliers(config).attention, q_btnh)
    of_heads, soft_cap = masks_of_heads(config, pattern, rows.images is not None), config.attention_soft_cap
    induction = pattern == patterns.INDUCTION
    if induction and (rows.token_bt is None or rows.before_bt is None):
        raise ValueError("an induction layer needs the rows' tokens")
    if cached is not None:
        # Written first and then only read: the other way round, XLA would copy the cache for the loop over it.
        token_bt = rows.token_bt if induction else None
        token_bkt1 = None if token_bt is None else jnp.repeat(token_bt[:, None, :, None], config.num_kv_heads, axis=1)
        cached = cached.append(KeysValues(k_btkh.swapaxes(1, 2), v_btkh.swapaxes(1, 2), token_bkt1))
        y_btnh = attend_cached(
            q_btnh, cached, of_heads, rows.position_bt, q_token_bt=token_bt, soft_cap=soft_cap, images=rows.images
        )
    else:
        tokens = (rows.token_bt, rows.before_bt) if induction else (None, None)
        where = Where(None if rows.plain else rows.position_bt, rows.segment_bt, *tokens, rows.images)
        lowering = config.attention_lowering
        over = config.context_method if shards(config.length_axis) > 1 else ""
        y_btnh = attend(q_btnh, k_btkh, v_btkh, of_heads, where, soft_cap=soft_cap, lowering=lowering, over=over)
    return linear(y_btnh, p["out_nhd"], p.get("out_bias_d"), inputs=2, apart=apart), cached and cached.cache


def masks_of_heads(config: Config, pattern: str, images: bool) -> tuple[Mask, ...]:
    """Of each key/value head: the layer's pattern, and where rows have images all of a query's own image.

    An induction layer compares tokens, which patches are not: it stays as it is.
    """
    if not config.causal:
        return (masks.full(),) * config.num_kv_heads
    of_heads = patterns.from_pattern(pattern, config.num_kv_heads)
    if not images or config.vision is None or pattern == patterns.INDUCTION:
        return of_heads
    together = masks.together(config.vision.longest)
    return tuple(mask | together for mask in of_heads)


def relative_attention(config: Config, pattern: str, p: Layer, x_bsd: jax.Array, rows: Rows) -> jax.Array:
    """One Transformer-XL layer's attention of a row's tokens over [memory; row]: (B, T, D) of both, (B, S, D).

    `p` has u and v among its parameters, whichever group they are declared in.
    """
    if rows.keys is None:
        raise ValueError("a Transformer-XL layer needs the segments and distances of its keys")
    t = rows.position_bt.shape[1]
    q_btnh = linear(x_bsd[:, -t:], p["query_dnh"], p.get("query_bias_nh"))
    k_bskh = linear(x_bsd, p["key_dkh"], p.get("key_bias_kh"))
    v_bskh = linear(x_bsd, p["value_dkh"], p.get("value_bias_kh"))
    q_btnh = constrain(q_btnh, "act_batch", config.length_axis, "act_heads", "act_head_dim")
    k_bskh = constrain(k_bskh, "act_batch", config.length_axis, "act_kv_heads", "act_head_dim")
    v_bskh = constrain(v_bskh, "act_batch", config.length_axis, "act_kv_heads", "act_head_dim")
    relative_skh = linear(rows.keys.distance_sd.astype(x_bsd.dtype), p["relative_dkh"], None)
    by = mup.multipliers(config).attention
    content_btnh, distance_btnh = (
        times(by, q_btnh + p[name].astype(q_btnh.dtype)) for name in ("content_bias_nh", "distance_bias_nh")
    )
    of_heads = patterns.from_pattern(pattern, config.num_kv_heads)
    y_btnh = transformer_xl.attend_relative(
        content_btnh, distance_btnh, k_bskh, v_bskh, relative_skh, of_heads, rows.keys.segment_bs,
        soft_cap=config.attention_soft_cap,
    )  # fmt: skip
    return linear(y_btnh, p["out_nhd"], p.get("out_bias_d"), inputs=2)


def times(factor: float, x: jax.Array) -> jax.Array:
    """A product with a constant of the program; x itself for 1."""
    return x if factor == 1 else x * jnp.asarray(factor, x.dtype)


def _head_norm(config: Config, x_btnh: jax.Array, scale_h: jax.Array) -> jax.Array:
    y = _unit_root_mean_square(x_btnh.astype(config.stable_dtype), config.norm_eps)
    return (y * scale_h.astype(y.dtype)).astype(x_btnh.dtype)


def mlp(config: Config, p: Layer, x_btd: jax.Array, *, apart: bool = False) -> jax.Array:
    """GELU (tanh form, as GPT-2 has it), its sigmoid form (CLIP's) or SwiGLU (Shazeer 2020)."""
    hidden_btf = linear(x_btd, p["up_df"], p.get("up_bias_f"), apart=apart)
    if config.activation == "swiglu":
        hidden_btf = _swiglu(linear(x_btd, p["gate_df"], p.get("gate_bias_f"), apart=apart), hidden_btf)
    else:
        hidden_btf = (_gelu if config.activation == "gelu" else _quick_gelu)(hidden_btf)
    hidden_btf = constrain(hidden_btf, "act_batch", config.length_axis, "act_mlp")
    return linear(hidden_btf, p["down_fd"], p.get("down_bias_d"), apart=apart)


@jax.checkpoint
def _gelu(x: jax.Array) -> jax.Array:
    return jax.nn.gelu(x, approximate=True)


@jax.checkpoint
def _quick_gelu(x: jax.Array) -> jax.Array:
    return x * jax.nn.sigmoid(1.702 * x)


@jax.checkpoint
def _swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return jax.nn.silu(gate) * up


def block(
    config: Config,
    pattern: str,
    p: Layer,
    x_btd: jax.Array,
    rows: Rows,
    cached: Cached | None,
    dropout_key: jax.Array | None,
    memory_bmd: jax.Array | None = None,
) -> tuple[jax.Array, KeysValues | None]:
    """One pre-norm decoder block: x + attention(norm(x)), then x + mlp(norm(x)). `cached` as in `self_attention`.

    `memory_bmd` has this layer's inputs at earlier tokens, of a Transformer-XL; None: it has none.
    """
    by = mup.multipliers(config).residual
    keys = (None, None) if dropout_key is None else jax.random.split(dropout_key)
    x_bsd = x_btd if memory_bmd is None else jnp.concatenate([memory_bmd.astype(x_btd.dtype), x_btd], axis=1)
    y_bsd = norm(config, x_bsd, p["attention_norm_d"], p.get("attention_norm_bias_d"))
    if config.position == "transformer_xl":
        y_btd, cache = relative_attention(config, pattern, p, y_bsd, rows), None
    else:
        y_bsd = constrain(y_bsd, "act_batch", config.length_axis, "act_embed")
        y_btd, cache = self_attention(config, pattern, p, y_bsd, rows, cached)
    x_btd = stream(config, x_btd + times(by, dropout(y_btd, config.dropout, keys[0])), cached)
    y_btd = norm(config, x_btd, p["mlp_norm_d"], p.get("mlp_norm_bias_d"))
    y_btd = constrain(y_btd, "act_batch", config.length_axis, "act_embed")
    y_btd = mlp(config, p, y_btd, apart=tokens_apart(config, y_btd, cached))
    return stream(config, x_btd + times(by, dropout(y_btd, config.dropout, keys[1])), cached), cache


def stream(config: Config, x_btd: jax.Array, state: Any = None) -> jax.Array:
    """The residual stream, its tokens over tensor too; not of a decoder with a state, nor where they don't divide."""
    return constrain(x_btd, "act_batch", _stream_axis(config, x_btd, state), "act_embed")


def _stream_axis(config: Config, x_btd: jax.Array, state: Any) -> str:
    whole = state is not None or config.position == "transformer_xl" or x_btd.shape[1] % shards(config.stream_axis)
    return config.length_axis if whole else config.stream_axis


def tokens_apart(config: Config, x_btd: jax.Array, state: Any) -> bool:
    """Whether both the rows and the tokens in them are divided in the residual stream."""
    return shards(_stream_axis(config, x_btd, state)) > 1
