"""Transformer-XL (Dai et al. 2019): a memory of earlier tokens' hidden states, and attention by relative positions.

A layer sees its own inputs at the tokens before the row's first, as they were then: [stop_gradient(memory); h]. The
memory goes in and out of the forward pass as a value, so whoever calls it decides how long it is: longer at
evaluation than in training, or none.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model.attention import by_head, by_token
from gpt4jax.model.axes import constrain
from gpt4jax.model.config import Config
from gpt4jax.model.masks import Mask

MEMORY_AXES = ("layers", "act_batch", "act_cache", "act_embed")


class Memory(NamedTuple):
    """The inputs of each layer at the M tokens before a row's first, and the segments of those tokens.

    Segment 0 is a place that holds nothing (or padding). Segment ids must mean the same documents from row to row.
    """

    h_lbmd: jax.Array
    segment_bm: jax.Array

    def extended(self, inputs_lbtd: jax.Array, segment_bt: jax.Array) -> "Memory":
        """The last M of [memory; the layers' inputs at new tokens]: as many as there were."""
        length = self.segment_bm.shape[1]
        h_lbsd = jnp.concatenate([self.h_lbmd, inputs_lbtd.astype(self.h_lbmd.dtype)], axis=2)
        segment_bs = jnp.concatenate([self.segment_bm, segment_bt.astype(jnp.int32)], axis=1)
        first = segment_bs.shape[1] - length
        h_lbmd = constrain(h_lbsd[:, :, first:], *MEMORY_AXES)
        return Memory(h_lbmd, segment_bs[:, first:])


class Keys(NamedTuple):
    """What every layer's attention needs to know of the M + T keys of a row: segments, and encodings of distances."""

    segment_bs: jax.Array
    distance_sd: jax.Array


def init_memory(config: Config, batch: int, length: int | None = None) -> Memory:
    """A memory of `length` places (None: `config.memory_len`) that holds nothing, for each of `batch` rows.

    Raises:
        ValueError: the decoder has no memory, or a negative length.
    """
    if config.position != "transformer_xl":
        raise ValueError(f"a decoder with position {config.position!r} has no memory; transformer_xl has")
    length = config.memory_len if length is None else length
    if length < 0:
        raise ValueError(f"a memory of {length} places can't be")
    h_lbmd = jnp.zeros((config.num_layers, batch, length, config.embed_dim), config.compute_dtype)
    return Memory(h_lbmd, jnp.zeros((batch, length), jnp.int32))


def encoded_distances(config: Config, count: int) -> jax.Array:
    """R of the distances count - 1, ..., 1, 0, (count, D): sines, then cosines, of distance * 10000^(-2i / D).

    Distances beyond `xl_clamp_len` (if it is not 0) are encoded as that one. In the stable dtype.
    """
    dtype, width = config.stable_dtype, config.embed_dim
    distance_s = jnp.arange(count - 1, -1, -1, dtype=dtype)
    if config.xl_clamp_len:
        distance_s = jnp.minimum(distance_s, config.xl_clamp_len)
    angle_si = distance_s[:, None] * 10_000.0 ** (-jnp.arange(0, width, 2, dtype=dtype) / width)
    return jnp.concatenate([jnp.sin(angle_si), jnp.cos(angle_si)], axis=-1)


def rel_shift(x_ts: jax.Array) -> jax.Array:
    """From columns of distances S - 1, ..., 0 to columns of keys: out[..., i, j] = x[..., i, T - 1 - i + j].

    Query i is at place S - T + i among the S keys, so its distance to key j is in column j + T - 1 - i. With a column
    put before the first, reading the array in rows of T moves each row by one more than the row above (appendix B).
    Entries of keys after the query are of no meaning.
    """
    *lead, t, s = x_ts.shape
    padded = jnp.pad(x_ts, [(0, 0)] * (x_ts.ndim - 1) + [(1, 0)])
    return padded.reshape(*lead, s + 1, t)[..., 1:, :].reshape(x_ts.shape)


def attend_relative(
    content_btnh: jax.Array,
    distance_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    relative_skh: jax.Array,
    of_heads: Sequence[Mask],
    segment_bs: jax.Array,
    *,
    soft_cap: float = 0.0,
) -> jax.Array:
    """softmax(((q + u) k + (q + v) r) / sqrt(H)) v over the keys that a query sees, (B, T, N, H).

    The T queries are the last T of the S keys' tokens. They see keys of their own segment that their mask shows, and
    each itself. Scores and softmax are float32 (float64 for float64 inputs), and every score exists
    at once.

    Args:
        content_btnh: queries with u added.
        distance_btnh: queries with v added.
        k_bskh: keys, the memory's first; query head n = k * G + g takes key head k.
        v_bskh: values.
        relative_skh: W_k,R R of the distances S - 1, ..., 0.
        of_heads: which distances a query sees, for each key head.
        segment_bs: of the keys.
        soft_cap: above 0, scores are bounded to soft_cap * tanh(score / soft_cap).
    """
    t, s, heads = content_btnh.shape[1], k_bskh.shape[1], k_bskh.shape[2]
    stable = jnp.promote_types(content_btnh.dtype, jnp.float32)
    by_content = jnp.einsum("bkgth,bskh->bkgts", by_head(content_btnh, heads), k_bskh, preferred_element_type=stable)
    by_distance = jnp.einsum(
        "bkgth,skh->bkgts", by_head(distance_btnh, heads), relative_skh, preferred_element_type=stable
    )
    scores_bkgts = by_content + rel_shift(by_distance)
    if soft_cap:
        scores_bkgts = soft_cap * jnp.tanh(scores_bkgts / soft_cap)
    place_s = jnp.arange(s)
    visible_kts = jnp.stack([mask(place_s[s - t :, None], place_s) for mask in of_heads])
    visible_bkts = visible_kts & (segment_bs[:, None, s - t :, None] == segment_bs[:, None, None])
    # A finite minimum, not -inf: exp still gives exactly 0, and no gradient is inf * 0.
    scores_bkgts = jnp.where(visible_bkts[:, :, None], scores_bkgts, jnp.finfo(stable).min)
    weights_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bskh.dtype)
    return by_token(jnp.einsum("bkgts,bskh->bkgth", weights_bkgts, v_bskh))
