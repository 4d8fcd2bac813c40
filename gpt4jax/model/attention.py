"""Attention over queries, keys and values: the seam where patterns and kernels plug in.

`attend` serves whole rows: a lowering takes the same arguments and gives the same result. Today there are
two: `reference` computes every score at once and hides what the mask hides; `blockwise` goes through
blocks of queries, leaves out the keys behind each block, and recomputes scores in its backward pass.
All compute what a mask hides: banded and induction layers are right, but as dear as dense ones.
`cached.py` serves new tokens behind a KV cache.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model.masks import Mask

# Of queries. On two CPU cores, 256 tokens and heads of 64, forward and backward: 64 takes 23 ms, 128 and 256
# take 26 to 29 ms, `reference` takes 35 ms. At most so many blocks are unrolled into one program.
_MIN_BLOCK, _MAX_BLOCKS = 64, 8


class Where(NamedTuple):
    """Positions (B, T) and segment ids (B, T or None) of queries and keys; a batch axis of 1 serves all rows.

    Of an induction layer also the queries' tokens and the tokens before the keys (-1 before a segment's first): there a
    query sees itself and the keys whose token before is its own token, so what followed it earlier. That is
    the pattern which induction heads learn (Olsson et al. 2022), given instead (n-gram heads, Akyurek et al. 2024).
    """

    q_pos_bt: jax.Array
    k_pos_bs: jax.Array
    q_segment_bt: jax.Array | None = None
    k_segment_bs: jax.Array | None = None
    q_token_bt: jax.Array | None = None
    k_before_bs: jax.Array | None = None


def attend(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    mask: Mask,
    where: Where,
    *,
    soft_cap: float = 0.0,
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys that the mask shows in the query's own segment: (B, T, N, H).

    Query heads n = k * G + g share key/value head k (grouped-query attention). Scores and softmax are
    float32 (float64 for float64 inputs); `soft_cap` > 0 bounds the scores to soft_cap * tanh(score /
    soft_cap) before masking. Every query must see at least one key (a causal mask shows each token to
    itself).

    Query i and key i are the same token, and positions grow along each segment of a row: then no causal
    query sees a key at a later index, and `blockwise` serves it. Masks that are not causal take `reference`.
    """
    lowering = blockwise if mask.causal else reference
    return lowering(q_btnh, k_bskh, v_bskh, mask, where, soft_cap)


def reference(
    q_btnh: jax.Array, k_bskh: jax.Array, v_bskh: jax.Array, mask: Mask, where: Where, soft_cap: float
) -> jax.Array:
    """Every score at once, O(T S) memory: what the other lowerings are tested against."""
    q_bkgth, k_bksh, v_bksh = by_head(q_btnh, k_bskh.shape[2]), k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2)
    scores_bkgts, _ = score(q_bkgth, k_bksh, soft_cap)
    # A finite minimum, not -inf: exp still gives exactly 0, and no gradient is inf * 0.
    lowest = jnp.finfo(scores_bkgts.dtype).min
    weights_bkgts = jax.nn.softmax(jnp.where(_visible(mask, where, 0, None), scores_bkgts, lowest), axis=-1)
    return by_token(jnp.einsum("bkgts,bksh->bkgth", weights_bkgts.astype(v_bksh.dtype), v_bksh))


def blockwise(
    q_btnh: jax.Array, k_bskh: jax.Array, v_bskh: jax.Array, mask: Mask, where: Where, soft_cap: float
) -> jax.Array:
    """Causal self-attention by blocks of queries, each with the keys up to its own end.

    The forward pass keeps the log-sum-exp of each query; the backward pass recomputes a block's weights
    from it (Dao et al. 2022, FlashAttention), so that no scores are kept for it. How many blocks are in
    memory at once is the compiler's choice: on a CPU, XLA takes all of a layer's, half a (T, T) array.
    """
    q_bkgth, k_bksh, v_bksh = by_head(q_btnh, k_bskh.shape[2]), k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2)
    return by_token(_blockwise(mask, soft_cap, q_bkgth, k_bksh, v_bksh, where))


def by_head(q_btnh: jax.Array, kv_heads: int) -> jax.Array:
    """Scaled queries (B, K, G, T, H)."""
    b, t, n, h = q_btnh.shape
    return (q_btnh * h**-0.5).reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)


def by_token(y_bkgth: jax.Array) -> jax.Array:
    """(B, T, N, H) again."""
    b, k, g, t, h = y_bkgth.shape
    return y_bkgth.transpose(0, 3, 1, 2, 4).reshape(b, t, k * g, h)


def score(q_bkgth, k_bksh, soft_cap):
    """Scores in the stable type, and what the soft cap multiplies their gradient by."""
    stable = jnp.promote_types(q_bkgth.dtype, jnp.float32)
    scores = jnp.einsum("bkgth,bksh->bkgts", q_bkgth, k_bksh, preferred_element_type=stable)
    if not soft_cap:
        return scores, 1
    capped = jnp.tanh(scores / soft_cap)
    return soft_cap * capped, 1 - jnp.square(capped)


def _visible(mask: Mask, where: Where, start: int, end: int | None) -> jax.Array:
    """What queries start to end see of the keys up to `end`, (B, 1, 1, T, S)."""
    q_pos_bt, k_pos_bs = where.q_pos_bt[:, start:end], where.k_pos_bs[:, :end]
    visible_bts = mask(q_pos_bt[:, :, None], k_pos_bs[:, None, :])
    if where.q_segment_bt is not None and where.k_segment_bs is not None:
        visible_bts &= where.q_segment_bt[:, start:end, None] == where.k_segment_bs[:, None, :end]
    if where.q_token_bt is not None and where.k_before_bs is not None:
        visible_bts &= follows(q_pos_bt, k_pos_bs, where.q_token_bt[:, start:end], where.k_before_bs[:, :end])
    return visible_bts[:, None, None]


def follows(q_pos_bt, k_pos_bs, q_token_bt, k_before_bs):
    """Whether the key comes after a copy of the query's token, or is the query's own, (B, T, S)."""
    return (q_token_bt[:, :, None] == k_before_bs[:, None]) | (q_pos_bt[:, :, None] == k_pos_bs[:, None])


def _blocks(t: int) -> list[tuple[int, int]]:
    size = max(_MIN_BLOCK, -(-t // _MAX_BLOCKS))
    return [(start, min(start + size, t)) for start in range(0, t, size)]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _blockwise(mask, soft_cap, q_bkgth, k_bksh, v_bksh, where):
    return _forward(mask, soft_cap, q_bkgth, k_bksh, v_bksh, where)[0]


def _forward(mask, soft_cap, q_bkgth, k_bksh, v_bksh, where):
    outs, log_sums = [], []
    for start, end in _blocks(q_bkgth.shape[3]):
        scores, _ = score(q_bkgth[..., start:end, :], k_bksh[:, :, :end], soft_cap)
        scores = jnp.where(_visible(mask, where, start, end), scores, jnp.finfo(scores.dtype).min)
        top = jnp.max(scores, axis=-1, keepdims=True)
        weights = jnp.exp(scores - top)
        total = jnp.sum(weights, axis=-1, keepdims=True)
        weights = weights.astype(v_bksh.dtype)
        out = jnp.einsum("bkgts,bksh->bkgth", weights, v_bksh[:, :, :end], preferred_element_type=total.dtype)
        outs.append((out / total).astype(v_bksh.dtype))
        log_sums.append(top + jnp.log(total))
    y_bkgth, log_sum_bkgt1 = jnp.concatenate(outs, axis=3), jnp.concatenate(log_sums, axis=3)
    return y_bkgth, (q_bkgth, k_bksh, v_bksh, where, y_bkgth, log_sum_bkgt1)


def _backward(mask, soft_cap, residuals, dy_bkgth):
    q_bkgth, k_bksh, v_bksh, where, y_bkgth, log_sum_bkgt1 = residuals
    stable = log_sum_bkgt1.dtype
    # sum over keys of weight * its gradient, as a product of outputs (FlashAttention, appendix B)
    inner_bkgt1 = jnp.sum(dy_bkgth.astype(stable) * y_bkgth, axis=-1, keepdims=True)
    t = q_bkgth.shape[3]
    dq, dk, dv = [], jnp.zeros(k_bksh.shape, stable), jnp.zeros(v_bksh.shape, stable)
    for start, end in _blocks(t):
        rows = (..., slice(start, end), slice(None))
        q, dy, k, v = q_bkgth[rows], dy_bkgth[rows], k_bksh[:, :, :end], v_bksh[:, :, :end]
        scores, through_cap = score(q, k, soft_cap)
        visible = _visible(mask, where, start, end)
        weights = jnp.where(visible, jnp.exp(scores - log_sum_bkgt1[rows]), 0)
        d_weights = jnp.einsum("bkgth,bksh->bkgts", dy, v, preferred_element_type=stable)
        d_scores = (weights * (d_weights - inner_bkgt1[rows]) * through_cap).astype(q.dtype)
        dq.append(jnp.einsum("bkgts,bksh->bkgth", d_scores, k))
        unseen = ((0, 0), (0, 0), (0, t - end), (0, 0))
        dk += jnp.pad(jnp.einsum("bkgts,bkgth->bksh", d_scores, q, preferred_element_type=stable), unseen)
        weights = weights.astype(dy.dtype)
        dv += jnp.pad(jnp.einsum("bkgts,bkgth->bksh", weights, dy, preferred_element_type=stable), unseen)
    return jnp.concatenate(dq, axis=3), dk.astype(k_bksh.dtype), dv.astype(v_bksh.dtype), None


_blockwise.defvjp(_forward, _backward)
