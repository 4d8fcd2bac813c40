"""Attention of new tokens over a KV cache, and the cache of one layer."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model.arrangement import follows
from gpt4jax.model.attention import by_head, by_token, score
from gpt4jax.model.axes import constrain
from gpt4jax.model.masks import Mask

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


def attend_cached(
    q_btnh: jax.Array,
    cached: Cached,
    of_heads: Sequence[Mask],
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
    q_bkmh = by_head(q_btnh, k).reshape(b, k, rows, h)
    q_pos_bm = jnp.tile(q_pos_bt, (1, n // k))
    q_token_bm = None if q_token_bt is None else jnp.tile(q_token_bt, (1, n // k))
    stable = jnp.promote_types(q_btnh.dtype, jnp.float32)
    lowest = jnp.finfo(stable).min
    size = min(CACHE_BLOCK, s)
    masks = of_heads if len(set(of_heads)) > 1 else of_heads[:1]

    def add_block(i, carry):
        top, total, out = carry
        start = jnp.minimum(i * size, s - size)  # the last block may begin inside the one before
        k_bksh, v_bksh, _ = cached.block(start, size)
        place_s = start + jnp.arange(size)
        there_bs = (place_s < cached.length_b[:, None]) & (place_s >= i * size)
        visible_bkms = jnp.stack([mask(q_pos_bm[:, :, None], place_s) for mask in masks], axis=1)
        visible_bkms &= there_bs[:, None, None]
        if q_token_bm is not None:
            follow = follows(q_pos_bm[:, :, None], place_s, q_token_bm[:, :, None], cached.before(start, size)[:, None])
            visible_bkms &= follow[:, None]
        scores = jnp.where(visible_bkms, score(q_bkmh[:, :, None], k_bksh, soft_cap)[:, :, 0], lowest)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights, shrink = jnp.where(visible_bkms, jnp.exp(scores - new_top), 0), jnp.exp(top - new_top)
        part = jnp.einsum("bkms,bksh->bkmh", weights.astype(v_bksh.dtype), v_bksh, preferred_element_type=stable)
        return new_top, total * shrink + jnp.sum(weights, axis=-1, keepdims=True), out * shrink + part

    empty = (jnp.full((b, k, rows, 1), lowest), jnp.zeros((b, k, rows, 1), stable), jnp.zeros((b, k, rows, h), stable))
    _, total, out = jax.lax.fori_loop(0, -(-jnp.max(cached.length_b) // size), add_block, empty)
    return by_token((out / jnp.where(total == 0, 1, total)).astype(q_btnh.dtype).reshape(b, k, n // k, t, h))
