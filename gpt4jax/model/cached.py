"""Attention of new tokens over a KV cache, and the cache of one layer."""

import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model import patterns
from gpt4jax.model.arrangement import follows
from gpt4jax.model.attention import by_head, by_token, score
from gpt4jax.model.axes import constrain
from gpt4jax.model.masks import Mask, shown

CACHE_BLOCK = 128  # places of a KV cache that are read at once
CACHE_AXES = ("act_batch", "act_kv_heads", "act_cache", "act_head_dim")


class KeysValues(NamedTuple):
    """Keys and values by head, (B, K, S, H); for an induction layer each key's token too, the same for every head."""

    k_bksh: jax.Array
    v_bksh: jax.Array
    token_bks1: jax.Array | None = None


class Ring(KeysValues):
    """The cache of a layer that sees W tokens: R places, fewer than a row may have tokens.

    The token at position p is at place p % R, where the one at p - R was. A row that ends at E is next asked for
    E - W + 1 and what follows. So that this is there, R is W - 1 + A, and nothing is ever written A places or more
    behind E: neither the next tokens, nor what is forgotten again, the padding of a chunk and guesses that were
    wrong. An end may be set back as long as this holds of all that was written; or to 0, for another text, which
    finds what it wrote itself and nothing else.
    """


def window(pattern: str, kv_heads: int) -> int | None:
    """How far back the heads of a layer see, the query itself counted; None: to the row's first token."""
    farthest = max(mask.distances()[1] for mask in patterns.from_pattern(pattern, kv_heads))
    return int(farthest) + 1 if math.isfinite(farthest) else None


def empty_layer(pattern: str, shape_bksh: tuple[int, int, int, int], dtype: jnp.dtype, append: int) -> KeysValues:
    """One layer's cache for rows of S tokens, of which up to `append` come at once: a ring where that takes less.

    A ring has whole CACHE_BLOCKs: so kept blocks, whose size divides that, never go over its end.
    """
    b, k, s, h = shape_bksh
    seen = window(pattern, k)
    ring = s if seen is None else -(-(seen - 1 + append) // CACHE_BLOCK) * CACHE_BLOCK
    places = min(ring, s)
    token_bks1 = jnp.zeros((b, k, places, 1), jnp.int32) if pattern == patterns.INDUCTION else None
    kind = Ring if ring < s else KeysValues
    return kind(jnp.zeros((b, k, places, h), dtype), jnp.zeros((b, k, places, h), dtype), token_bks1)


def room(pattern: str, layer: KeysValues) -> int:
    """How many tokens may be appended at once."""
    places, seen = layer.k_bksh.shape[2], window(pattern, layer.k_bksh.shape[1])
    return places - seen + 1 if isinstance(layer, Ring) and seen is not None else places


class Tree(NamedTuple):
    """Rows that branch: what each place of a cache holds, (B, S) each. Places behind a row's end may say anything.

    A row is a stem and, behind it, texts that go on from there, each as if the others were not there. A token sees
    the stem and its own branch; positions count along a branch, on from the stem. One pass over the stem serves all.
    """

    position_bs: jax.Array
    branch_bs: jax.Array  # 0: the stem
    before_bs: jax.Array  # the token before each, along its branch; -1 before the first

    def of_new(self, length_b: jax.Array, t: int) -> tuple[jax.Array, jax.Array]:
        """The positions and branches of the T tokens that come behind each row's end, (B, T)."""
        place_bt = length_b[:, None] + jnp.arange(t)
        return tuple(jnp.take_along_axis(a, place_bt, axis=1) for a in (self.position_bs, self.branch_bs))  # type: ignore[return-value]


class Cached(NamedTuple):
    """One layer's cache as a batch sees it: `length_b` tokens of each row; `row_b` and `tree` as `model.State` has."""

    cache: KeysValues
    length_b: jax.Array
    row_b: jax.Array | None
    tree: Tree | None = None

    def append(self, new: KeysValues) -> "Cached":
        """The cache with T new tokens (B, K, T, H) written behind each row's own end; none for a row of -1."""
        t, ring = new.k_bksh.shape[2], isinstance(self.cache, Ring)

        def update(old, new_bkth):
            new_bkth = new_bkth.astype(old.dtype)
            if self.row_b is None:
                out = jax.vmap(partial(_write, ring, row=None))(old[:, None], new_bkth, self.length_b)
            else:
                out = self._each_part(partial(_write, ring), old, new_bkth, self.length_b)
            return constrain(out.reshape(old.shape), *CACHE_AXES)

        cache = jax.tree.map(update, self.cache, type(self.cache)(*new))
        return self._replace(cache=cache, length_b=self.length_b + t)

    def positions(self, place_s: jax.Array) -> jax.Array:
        """The position of the token that each place holds for each row, (B, S); negative: of none."""
        if self.tree is not None:
            return jnp.where(place_s < self.length_b[:, None], self.tree.position_bs[:, place_s], -1)
        last_b1 = self.length_b[:, None] - 1
        return last_b1 - (last_b1 - place_s) % self.cache.k_bksh.shape[2]

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
        if self.tree is not None:
            return jax.lax.dynamic_slice_in_dim(self.tree.before_bs, start, size, axis=1)
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


def _write(ring: bool, old_rksh: jax.Array, new_kth: jax.Array, start: jax.Array, row: jax.Array | None) -> jax.Array:
    """One part of a cache with tokens at `start` of its row (None: its only one; -1: of none, and nothing changes).

    In a ring they may go over its end: then they are two pieces, and each is written together with what
    the places beside it hold, so that both have the length T.
    """
    places, t = old_rksh.shape[2], new_kth.shape[1]
    pieces: list = [(start % places if ring else start, None)]
    if ring and t > 1:
        over = jnp.maximum(start % places + t - places, 0)
        new_kth = jnp.roll(new_kth, over, axis=1)
        i_t1 = jnp.arange(t)[:, None]
        pieces = [(start % places - over, i_t1 >= over), (0, i_t1 < over)]
    for at, ours in pieces:
        corner, new_1kth = (0 if row is None else jnp.maximum(row, 0), 0, at, 0), new_kth[None]
        if row is not None:
            ours = row >= 0 if ours is None else ours & (row >= 0)
        if ours is not None:
            new_1kth = jnp.where(ours, new_1kth, jax.lax.dynamic_slice(old_rksh, corner, new_1kth.shape))
        old_rksh = jax.lax.dynamic_update_slice(old_rksh, new_1kth, corner)
    return old_rksh


def attend_cached(
    q_btnh: jax.Array,
    cached: Cached,
    of_heads: Sequence[Mask],
    q_pos_bt: jax.Array,
    *,
    q_token_bt: jax.Array | None = None,
    soft_cap: float = 0.0,
    images: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """Attention (B, T, N, H) of tokens over a cache that holds them and what was before them.

    `q_token_bt` makes it an induction layer's (`Where`), and the cache must hold its keys' tokens. `images` has the
    first and last position of each token's image, (B, T) each, all of which must be among the new tokens.

    The cache is read in blocks of a fixed size, up to the longest row's end or a ring's, and each block is added
    to a running softmax (Milakov and Gimelshein 2018). A block behind a row's own end adds exactly nothing to it:
    so a row's result, to the last bit, depends neither on the other rows nor on the size of a cache of at least
    one block, and the time follows the tokens that are there, in a ring the window. Blocks come in the order of
    places, which in a ring is a matter of the row's own length.
    """
    b, t, n, h = q_btnh.shape
    k, s = cached.cache.k_bksh.shape[1:3]
    rows = n // k * t
    q_bkmh = by_head(q_btnh, k).reshape(b, k, rows, h)
    q_pos_bm = jnp.tile(q_pos_bt, (1, n // k))
    image = None
    if images is not None:
        first_bm1, last_bm1 = (jnp.tile(edge_bt, (1, n // k))[:, :, None] for edge_bt in images)
        image = first_bm1, last_bm1
    q_token_bm = None if q_token_bt is None else jnp.tile(q_token_bt, (1, n // k))
    stable = jnp.promote_types(q_btnh.dtype, jnp.float32)
    lowest = jnp.finfo(stable).min
    size = min(CACHE_BLOCK, s)
    masks = of_heads if len(set(of_heads)) > 1 else of_heads[:1]
    branch_bm = None
    if (tree := cached.tree) is not None:
        branch_bm = jnp.tile(tree.of_new(cached.length_b - t, t)[1], (1, n // k))

    def add_block(i, carry):
        top, total, out = carry
        start = jnp.minimum(i * size, s - size)  # the last block may begin inside the one before
        k_bksh, v_bksh, _ = cached.block(start, size)
        place_s = start + jnp.arange(size)
        k_pos_bs = cached.positions(place_s)
        there_bs = (k_pos_bs >= 0) & (place_s >= i * size)
        visible_bkms = jnp.stack(
            [shown(mask, q_pos_bm[:, :, None], k_pos_bs[:, None], image) for mask in masks], axis=1
        )
        visible_bkms &= there_bs[:, None, None]
        if tree is not None and branch_bm is not None:
            branch_b1s = tree.branch_bs[:, place_s][:, None]
            visible_bkms &= ((branch_b1s == 0) | (branch_b1s == branch_bm[:, :, None]))[:, None]
        if q_token_bm is not None:
            before_b1s = cached.before(start, size)[:, None]
            follow_bms = follows(q_pos_bm[:, :, None], k_pos_bs[:, None], q_token_bm[:, :, None], before_b1s)
            visible_bkms &= follow_bms[:, None]
        scores = jnp.where(visible_bkms, score(q_bkmh[:, :, None], k_bksh, soft_cap)[:, :, 0], lowest)
        new_top = jnp.maximum(top, jnp.max(scores, axis=-1, keepdims=True))
        weights, shrink = jnp.where(visible_bkms, jnp.exp(scores - new_top), 0), jnp.exp(top - new_top)
        part = jnp.einsum("bkms,bksh->bkmh", weights.astype(v_bksh.dtype), v_bksh, preferred_element_type=stable)
        return new_top, total * shrink + jnp.sum(weights, axis=-1, keepdims=True), out * shrink + part

    empty = (jnp.full((b, k, rows, 1), lowest), jnp.zeros((b, k, rows, 1), stable), jnp.zeros((b, k, rows, h), stable))
    _, total, out = jax.lax.fori_loop(0, -(-jnp.minimum(jnp.max(cached.length_b), s) // size), add_block, empty)
    return by_token((out / jnp.where(total == 0, 1, total)).astype(q_btnh.dtype).reshape(b, k, n // k, t, h))
