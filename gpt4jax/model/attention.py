"""Attention over queries, keys and values: the seam where patterns and kernels plug in.

`attend` serves whole rows: a lowering takes the same arguments and gives the same result. Today there are
two: `reference` computes every score at once and hides what the mask hides; `blockwise` goes through
blocks of queries, leaves out the keys behind each block, and recomputes scores in its backward pass.
`attend_cached` serves new tokens behind a KV cache. All compute what a mask hides: banded and induction layers are
right, but as dear as dense ones.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model.axes import constrain
from gpt4jax.model.masks import Mask

# Of queries. On two CPU cores, 256 tokens and heads of 64, forward and backward: 64 takes 23 ms, 128 and 256
# take 26 to 29 ms, `reference` takes 35 ms. At most so many blocks are unrolled into one program.
_MIN_BLOCK, _MAX_BLOCKS = 64, 8
CACHE_BLOCK = 128  # places of a KV cache that are read at once
CACHE_AXES = ("act_batch", "act_kv_heads", "act_len", "act_head_dim")


class KeysValues(NamedTuple):
    """Keys and values by head, (B, K, S, H); for an induction layer each key's token too, the same for every head."""

    k_bksh: jax.Array
    v_bksh: jax.Array
    token_bks1: jax.Array | None = None


class Cached(NamedTuple):
    """One layer's cache as a batch sees it: `length_b` tokens of each row; `row_b` as `model.State` has it."""

    cache: KeysValues
    length_b: jax.Array
    row_b: jax.Array | None

    def append(self, new: KeysValues) -> "Cached":
        """The cache with T new tokens (B, K, T, H) written behind each row's own end."""
        t = new.k_bksh.shape[2]

        def write(old_ksh, new_kth, start):
            return jax.lax.dynamic_update_slice_in_dim(old_ksh, new_kth, start, axis=1)

        def write_row(old_rksh, new_kth, start, row):
            place = jnp.maximum(row, 0), 0, jnp.where(row < 0, old_rksh.shape[2] - t, start), 0
            return jax.lax.dynamic_update_slice(old_rksh, new_kth[None], place)

        def update(old, new_bkth):
            new_bkth = new_bkth.astype(old.dtype)
            if self.row_b is None:
                out = jax.vmap(write)(old, new_bkth, self.length_b)
            else:
                out = self._each_part(write_row, old, new_bkth, self.length_b).reshape(old.shape)
            return constrain(out, *CACHE_AXES)

        return Cached(jax.tree.map(update, self.cache, new), self.length_b + t, self.row_b)

    def block(self, start: jax.Array, size: int) -> KeysValues:
        """Places start to start + size of the batch's rows, (B, K, size, H)."""

        def read_row(part, row):
            shape = (1, part.shape[1], size, part.shape[3])
            return jax.lax.dynamic_slice(part, (jnp.maximum(row, 0), 0, start, 0), shape)[0]

        def read(leaf):
            if self.row_b is None:
                return jax.lax.dynamic_slice_in_dim(leaf, start, size, axis=2)
            return self._each_part(read_row, leaf)

        return jax.tree.map(read, self.cache)

    def before(self, start: jax.Array, size: int) -> jax.Array:
        """The tokens before places start to start + size, (B, size); -1 before the first."""
        token_bks1 = self.block(jnp.maximum(start - 1, 0), size).token_bks1
        assert token_bks1 is not None
        token_bs = token_bks1[:, 0, :, 0]
        first_bs = jnp.pad(token_bs[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
        return jnp.where(start == 0, first_bs, token_bs)

    def _each_part(self, function, leaf: jax.Array, *values: jax.Array) -> jax.Array:
        """`function(part, *values, row)` of every part of a cache's array, stacked."""
        assert self.row_b is not None
        if len(self.row_b) == 1:  # XLA would copy the whole cache for a batch of one
            return function(leaf, *(value[0] for value in values), self.row_b[0])[None]
        parts = leaf.reshape(len(self.row_b), -1, *leaf.shape[1:])
        return jax.vmap(function)(parts, *values, self.row_b)


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


def attend_cached(
    q_btnh: jax.Array,
    cached: Cached,
    mask: Mask,
    q_pos_bt: jax.Array,
    *,
    q_token_bt: jax.Array | None = None,
    soft_cap: float = 0.0,
) -> jax.Array:
    """Attention (B, T, N, H) of tokens over a cache that holds them and what was before them.

    `q_token_bt` makes it an induction layer's (`Where`), and the cache must hold its keys' tokens.

    The cache is read in blocks of a fixed size, up to the longest row's end, and each block is added to a
    running softmax (Milakov and Gimelshein 2018). A block behind a row's own end adds exactly nothing to it:
    so a row's result, to the last bit, depends neither on the other rows nor on the size of a cache of at least
    one block, and the time follows the tokens that are there. Place s of a cache holds the token at position s.
    """
    b, t, n, h = q_btnh.shape
    k, s = cached.cache.k_bksh.shape[1:3]
    rows = n // k * t
    q_bkmh = _by_head(q_btnh, k).reshape(b, k, rows, h)
    q_pos_bm = jnp.tile(q_pos_bt, (1, n // k))
    q_token_bm = None if q_token_bt is None else jnp.tile(q_token_bt, (1, n // k))
    stable = jnp.promote_types(q_btnh.dtype, jnp.float32)
    lowest = jnp.finfo(stable).min
    size = min(CACHE_BLOCK, s)

    def add_block(i, carry):
        top, total, out = carry
        start = jnp.minimum(i * size, s - size)  # the last block may begin inside the one before
        k_bksh, v_bksh, _ = cached.block(start, size)
        place_s = start + jnp.arange(size)
        there_bs = (place_s < cached.length_b[:, None]) & (place_s >= i * size)
        visible_bms = mask(q_pos_bm[:, :, None], place_s) & there_bs[:, None]
        if q_token_bm is not None:
            visible_bms &= _follows(q_pos_bm, place_s[None], q_token_bm, cached.before(start, size))
        visible = visible_bms[:, None]
        scores = jnp.where(visible, _scores(q_bkmh[:, :, None], k_bksh, soft_cap)[0][:, :, 0], lowest)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights, shrink = jnp.where(visible, jnp.exp(scores - new_top), 0), jnp.exp(top - new_top)
        part = jnp.einsum("bkms,bksh->bkmh", weights.astype(v_bksh.dtype), v_bksh, preferred_element_type=stable)
        return new_top, total * shrink + jnp.sum(weights, axis=-1, keepdims=True), out * shrink + part

    empty = (jnp.full((b, k, rows, 1), lowest), jnp.zeros((b, k, rows, 1), stable), jnp.zeros((b, k, rows, h), stable))
    _, total, out = jax.lax.fori_loop(0, -(-jnp.max(cached.length_b) // size), add_block, empty)
    return _by_token((out / total).astype(q_btnh.dtype).reshape(b, k, n // k, t, h))


def reference(
    q_btnh: jax.Array, k_bskh: jax.Array, v_bskh: jax.Array, mask: Mask, where: Where, soft_cap: float
) -> jax.Array:
    """Every score at once, O(T S) memory: what the other lowerings are tested against."""
    q_bkgth, k_bksh, v_bksh = _by_head(q_btnh, k_bskh.shape[2]), k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2)
    scores_bkgts, _ = _scores(q_bkgth, k_bksh, soft_cap)
    # A finite minimum, not -inf: exp still gives exactly 0, and no gradient is inf * 0.
    lowest = jnp.finfo(scores_bkgts.dtype).min
    weights_bkgts = jax.nn.softmax(jnp.where(_visible(mask, where, 0, None), scores_bkgts, lowest), axis=-1)
    return _by_token(jnp.einsum("bkgts,bksh->bkgth", weights_bkgts.astype(v_bksh.dtype), v_bksh))


def blockwise(
    q_btnh: jax.Array, k_bskh: jax.Array, v_bskh: jax.Array, mask: Mask, where: Where, soft_cap: float
) -> jax.Array:
    """Causal self-attention by blocks of queries, each with the keys up to its own end.

    The forward pass keeps the log-sum-exp of each query; the backward pass recomputes a block's weights
    from it (Dao et al. 2022, FlashAttention), so that no scores are kept for it. How many blocks are in
    memory at once is the compiler's choice: on a CPU, XLA takes all of a layer's, half a (T, T) array.
    """
    q_bkgth, k_bksh, v_bksh = _by_head(q_btnh, k_bskh.shape[2]), k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2)
    return _by_token(_blockwise(mask, soft_cap, q_bkgth, k_bksh, v_bksh, where))


def _by_head(q_btnh: jax.Array, kv_heads: int) -> jax.Array:
    """Scaled queries (B, K, G, T, H)."""
    b, t, n, h = q_btnh.shape
    return (q_btnh * h**-0.5).reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)


def _by_token(y_bkgth: jax.Array) -> jax.Array:
    b, k, g, t, h = y_bkgth.shape
    return y_bkgth.transpose(0, 3, 1, 2, 4).reshape(b, t, k * g, h)


def _scores(q_bkgth, k_bksh, soft_cap):
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
        visible_bts &= _follows(q_pos_bt, k_pos_bs, where.q_token_bt[:, start:end], where.k_before_bs[:, :end])
    return visible_bts[:, None, None]


def _follows(q_pos_bt, k_pos_bs, q_token_bt, k_before_bs):
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
        scores, _ = _scores(q_bkgth[..., start:end, :], k_bksh[:, :, :end], soft_cap)
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
        scores, through_cap = _scores(q, k, soft_cap)
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
