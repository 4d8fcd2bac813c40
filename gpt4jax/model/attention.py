"""Attention over queries, keys and values: the seam where patterns and kernels plug in.

`attend` is the one entry. A lowering takes the same arguments and gives the same result; today there
is one, `reference`, which computes every score and hides what the mask hides. A banded layer is
therefore right, but as dear as a dense one.
"""

import jax
import jax.numpy as jnp

from gpt4jax.model.masks import Mask


def attend(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    mask: Mask,
    *,
    q_pos_bt: jax.Array,
    k_pos_bs: jax.Array,
    q_segment_bt: jax.Array | None = None,
    k_segment_bs: jax.Array | None = None,
    soft_cap: float = 0.0,
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys that the mask shows in the query's own segment: (B, T, N, H).

    Query heads n = k * G + g share key/value head k (grouped-query attention). Positions and segment
    ids may have a batch axis of 1. Scores and softmax are float32 (float64 for float64 inputs);
    `soft_cap` > 0 bounds the scores to soft_cap * tanh(score / soft_cap) before masking. Every query
    must see at least one key (a causal mask shows each token to itself).
    """
    visible_bts = mask(q_pos_bt[:, :, None], k_pos_bs[:, None, :])
    if q_segment_bt is not None and k_segment_bs is not None:
        visible_bts &= q_segment_bt[:, :, None] == k_segment_bs[:, None, :]
    return reference(q_btnh, k_bskh, v_bskh, visible_bts, soft_cap)


def reference(
    q_btnh: jax.Array, k_bskh: jax.Array, v_bskh: jax.Array, visible_bts: jax.Array, soft_cap: float
) -> jax.Array:
    """Every score at once, O(T S) memory: what the other lowerings are tested against."""
    b, t, n, h = q_btnh.shape
    k = k_bskh.shape[2]
    stable = jnp.promote_types(q_btnh.dtype, jnp.float32)
    q_btkgh = (q_btnh * h**-0.5).reshape(b, t, k, n // k, h)
    scores_bkgts = jnp.einsum("btkgh,bskh->bkgts", q_btkgh, k_bskh, preferred_element_type=stable)
    if soft_cap:
        scores_bkgts = soft_cap * jnp.tanh(scores_bkgts / soft_cap)
    # A finite minimum, not -inf: exp still gives exactly 0, and no gradient is inf * 0.
    scores_bkgts = jnp.where(visible_bts[:, None, None], scores_bkgts, jnp.finfo(stable).min)
    weights_bkgts = jax.nn.softmax(scores_bkgts, axis=-1).astype(v_bskh.dtype)
    return jnp.einsum("bkgts,bskh->btkgh", weights_bkgts, v_bskh).reshape(b, t, n, h)
