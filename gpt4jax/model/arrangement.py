"""Queries and keys in the arrangement of a part, and back: pure index work, no arithmetic.

Arrays come as (B, ..., T, H), with what is said of a token as (B, 1, ..., T, 1), and become rows (R, B, ..., A, H).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model.parts import Part


class Where(NamedTuple):
    """What is known of the keys of a row, (B, S) each; a batch axis of 1 serves all rows.

    Query i is the token of key i + offset, so this says everything of queries too. Positions grow by one along each
    segment, from 0. Without positions they are the places 0, 1, ... of the row; without segment ids it is one segment.

    Of an induction layer also each key's token, and the token before it (-1 before a segment's first): there a query
    sees itself and the keys whose token before is its own token, so what followed it earlier. That is the pattern
    which induction heads learn (Olsson et al. 2022), given instead (n-gram heads, Akyurek et al. 2024).

    `image_bs` has the positions of the first and the last token of the image that a token belongs to, both (B, S);
    of a token of none the last is below the first. `masks.Together` asks for it.

    `head_k` has the numbers of the key/value heads that are here, if a device has some of them alone.
    """

    position_bs: jax.Array | None = None
    segment_bs: jax.Array | None = None
    token_bs: jax.Array | None = None
    before_bs: jax.Array | None = None
    image_bs: tuple[jax.Array, jax.Array] | None = None
    head_k: jax.Array | None = None

    @property
    def plain(self) -> bool:
        """Whether a row is one segment, and the position of a token its place in it."""
        return self.position_bs is None and self.segment_bs is None


class At(NamedTuple):
    """The places of the first query and of the first key in the row that a `Where` describes."""

    query: int | jax.Array = 0
    key: int | jax.Array = 0


def follows(q_pos: jax.Array, k_pos: jax.Array, q_token: jax.Array, k_before: jax.Array) -> jax.Array:
    """Whether the key comes after a copy of the query's token, or is the query's own."""
    return (q_token == k_before) | (q_pos == k_pos)


class Tokens(NamedTuple):
    """What is known of queries (R, B, 1, 1, A, 1) or keys (R, B, K, C, 1), in the rows of an arrangement."""

    position: jax.Array
    segment: jax.Array | None
    token: jax.Array | None
    valid: jax.Array | None  # False where there is no key; None: there is one everywhere
    image: tuple[jax.Array, jax.Array] | None = None  # of queries: their image's first and last position


def cut(x: jax.Array, start: int | jax.Array, size: int, axis: int) -> jax.Array:
    """So many places of an axis from `start` on, which may be known only to the program."""
    if isinstance(start, int):
        return jax.lax.slice_in_dim(x, start, start + size, axis=axis % x.ndim)
    return jax.lax.dynamic_slice_in_dim(x, start, size, axis=axis % x.ndim)


def query_tokens(part: Part, where: Where, at: At, q_len: int, k_len: int) -> Tokens:
    """Of the queries of a part's rows."""

    def take(a_bs):
        return None if a_bs is None else query_rows(part, cut(a_bs, at.query, q_len, 1)[:, None, None, :, None])

    image = None if where.image_bs is None else (take(where.image_bs[0]), take(where.image_bs[1]))
    return Tokens(take(_positions(where, k_len)), take(where.segment_bs), take(where.token_bs), None, image)


def key_tokens(part: Part, where: Where, at: At, q_len: int, k_len: int, places: jax.Array | None) -> Tokens:
    """Of the keys of a part's rows; `places` as `summaries` gives them."""

    def take(a_bs):
        return None if a_bs is None else key_rows(part, cut(a_bs, at.key, k_len, 1)[:, None, :, None], q_len, places)

    valid = None
    if part.kind == "summary":
        assert places is not None
        valid = (places < k_len)[None, ..., None]
    elif _padded(part, q_len, k_len):
        valid = key_rows(part, jnp.ones((1, 1, k_len, 1), bool), q_len, places)
    return Tokens(take(_positions(where, k_len)), take(where.segment_bs), take(where.before_bs), valid)


def _positions(where: Where, k_len: int) -> jax.Array:
    return jnp.arange(k_len)[None] if where.position_bs is None else where.position_bs


def summaries(part: Part, where: Where, at: At, k_len: int) -> jax.Array | None:
    """The places (B, K or 1, C) among the keys of the summaries that later blocks see; k_len where there are no more.

    A summary counts if a token of the next block, in the same segment, is there to see it. Then each takes part in a
    whole block of the row, and there are never more than count * (S - 1) // stride of them in a row of S tokens.
    """
    if part.kind != "summary":
        return None
    position_bs, segment_bs = _positions(where, k_len), where.segment_bs
    stride, s = part.stride, position_bs.shape[1]
    next_bs = jnp.arange(s) + stride - position_bs % stride  # the place of the next block's first token
    seen_bs = next_bs < s
    if segment_bs is not None:
        segment_bs, next_bs = jnp.broadcast_arrays(segment_bs, next_bs)
        seen_bs &= jnp.take_along_axis(segment_bs, jnp.minimum(next_bs, s - 1), axis=1) == segment_bs
    index_k = jnp.asarray(part.indices)
    if where.head_k is not None and len(part.indices) > 1:
        index_k = index_k[where.head_k]
    first_k = stride - part.count * (index_k + 1)
    inside_bks = (position_bs[:, None] % stride - first_k[:, None]) % stride < part.count
    rank_bks = jnp.cumsum(cut(inside_bks & seen_bs[:, None], at.key, k_len, -1), axis=-1)
    wanted_c = jnp.arange(1, part.room + 1)
    find = jax.vmap(jax.vmap(lambda rank_s: jnp.searchsorted(rank_s, wanted_c)))
    return find(rank_bks)


def query_rows(part: Part, x: jax.Array) -> jax.Array:
    """(..., T, H) -> (R, ..., A, H)."""
    if part.kind in ("whole", "summary"):
        return x[None]
    if part.kind == "residue":
        return _residues(x, part.stride, part.skip)
    return _blocks(x, part.block or part.stride)


def from_query_rows(part: Part, x: jax.Array, q_len: int) -> jax.Array:
    """The way back; what padding gave is dropped."""
    if part.kind in ("whole", "summary"):
        return x[0]
    if part.kind == "residue":
        x = jnp.moveaxis(x, 0, -2)
        skip = part.skip
    else:
        x = jnp.moveaxis(x, 0, -3)
        skip = 0
    x = x.reshape(*x.shape[:-3], -1, x.shape[-1])
    return jax.lax.slice_in_dim(x, skip, skip + q_len, axis=-2 % x.ndim)


def key_rows(part: Part, x: jax.Array, q_len: int, places: jax.Array | None) -> jax.Array:
    """(B, K, S, H) -> (R, B, K, C, H); for windows (1, B, K, all places that a window reaches, H)."""
    if part.kind == "whole":
        return x[None]
    if part.kind == "residue":
        return _residues(x, part.stride, 0)
    if part.kind == "local":
        return _blocks(x[..., part.start : part.start + q_len, :], part.stride)
    if part.kind == "window":
        first, end, low, high = _reach(part, q_len, x.shape[-2])
        return _pad(jax.lax.slice_in_dim(x, first, end, axis=x.ndim - 2), low, high)[None]
    assert places is not None
    b, k = max(x.shape[0], places.shape[0]), max(x.shape[1], places.shape[1])
    x = jnp.broadcast_to(x, (b, k, *x.shape[2:]))
    # Where there are no more, the last key is taken, and hidden.
    index = jnp.broadcast_to(jnp.minimum(places, x.shape[2] - 1), (b, k, places.shape[2]))
    return jnp.take_along_axis(x, index[..., None], axis=2)[None]


def from_key_rows(part: Part, x: jax.Array, q_len: int, k_len: int, places: jax.Array | None) -> jax.Array:
    """The way back for gradients: (B, K, S, H), with zeros where the part has no keys."""
    if part.kind == "whole":
        return x[0]
    if part.kind == "window":
        first, end, low, _ = _reach(part, q_len, k_len)
        return _pad(jax.lax.slice_in_dim(x[0], low, low + end - first, axis=2), first, k_len - end)
    if part.kind == "summary":
        assert places is not None
        _, b, k, c, _ = x.shape
        at = jnp.arange(b)[:, None, None], jnp.arange(k)[:, None], jnp.broadcast_to(places, (b, k, c))
        return jnp.zeros((b, k, k_len, x.shape[-1]), x.dtype).at[at].add(x[0], mode="drop")
    x = jnp.moveaxis(x, 0, -2 if part.kind == "residue" else -3)
    x = x.reshape(*x.shape[:-3], -1, x.shape[-1])
    if part.kind == "local":
        return _pad(x[..., :q_len, :], part.start, k_len - part.start - q_len)
    return x[..., :k_len, :]


def _padded(part: Part, q_len: int, k_len: int) -> bool:
    if part.kind == "window":
        return any(_reach(part, q_len, k_len)[2:])
    return part.kind != "whole" and (q_len if part.kind == "local" else k_len) % part.stride != 0


def _reach(part: Part, q_len: int, k_len: int) -> tuple[int, int, int, int]:
    """The keys that windows reach, from first to end, and how many are missing before and after them."""
    low = part.offset - part.before
    high = low + window_places(part, -(-q_len // part.block))
    first, end = min(max(low, 0), k_len), max(min(high, k_len), 0)
    return first, max(first, end), first - low, high - max(first, end)


def window_places(part: Part, rows: int) -> int:
    """How many places `rows` windows reach, in whole blocks."""
    return (rows - 1 + window_blocks(part)) * part.block


def window_blocks(part: Part) -> int:
    """How many blocks a window has, the last of which may be cut short."""
    return -(-(part.before + part.after + part.block) // part.block)


def _pad(x: jax.Array, before: int, after: int) -> jax.Array:
    if not before and not after:
        return x
    return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(before, after), (0, 0)])


def _blocks(x: jax.Array, size: int) -> jax.Array:
    x = _pad(x, 0, -x.shape[-2] % size)
    return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, size, x.shape[-1]), -3, 0)


def _residues(x: jax.Array, stride: int, skip: int) -> jax.Array:
    x = _pad(x, skip, -(skip + x.shape[-2]) % stride)
    return jnp.moveaxis(x.reshape(*x.shape[:-2], -1, stride, x.shape[-1]), -2, 0)
