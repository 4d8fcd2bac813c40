"""Attention whose time and memory follow the blocks that a mask shows, in plain XLA: for CPUs, and anywhere.

A mask is split into parts (`parts`), each with an arrangement in which its pairs are dense. A part goes through
tiles of queries and keys; a tile gives an unnormalised sum with its largest score and total weight, and these are
joined (Milakov and Gimelshein 2018). The backward pass computes each tile's weights again from the log-sum-exp
of the whole (Dao et al. 2022, FlashAttention), so nothing of a tile's size lives between the passes.

In the backward pass a tile's scores are (keys, queries): then four of its five products, and all that read
scores, are of matrices as they lie. XLA's CPU back end takes three times as long for a transposed left side.
"""

import operator
from collections.abc import Callable
from functools import partial, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model import tiles
from gpt4jax.model.arrangement import (
    At,
    Tokens,
    Where,
    cut,
    follows,
    from_key_rows,
    from_query_rows,
    key_rows,
    key_tokens,
    query_rows,
    query_tokens,
    summaries,
    window_blocks,
    window_places,
)
from gpt4jax.model.masks import Mask, shown
from gpt4jax.model.parts import Part
from gpt4jax.model.tiles import Tiles


class Sums(NamedTuple):
    """A softmax on its way: sum of weight * value, the largest score, the sum of weights = exp(score - largest)."""

    out: jax.Array  # (..., A, H)
    top: jax.Array  # (..., A, 1)
    total: jax.Array  # (..., A, 1)


def join(a: Sums, b: Sums) -> Sums:
    """The sums over the keys of both."""
    top = jnp.maximum(a.top, b.top)
    of_a, of_b = jnp.exp(a.top - top), jnp.exp(b.top - top)
    return Sums(a.out * of_a + b.out * of_b, top, a.total * of_a + b.total * of_b)


class Passes(NamedTuple):
    """How one part is computed, from its soft cap and trees of rows (R, B, ...): here by tiles, elsewhere by kernels.

    Attributes:
        sums: of queries (q, tokens) and keys (k, v, tokens).
        gradients: of q, k and v, from queries (q, dy, log-sum-exp, inner, tokens) and keys (k, v, tokens).
    """

    sums: Callable[[Part, float, Any, Any], Sums]
    gradients: Callable[[Part, float, Any, Any], tuple[jax.Array, jax.Array, jax.Array]]


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def attention(
    passes: Passes, parts: tuple[Part, ...], offset: int, soft_cap: float,
    q_bkgth: jax.Array, k_bksh: jax.Array, v_bksh: jax.Array, where: Where,
) -> jax.Array:  # fmt: skip
    """Softmax(q k) v over the keys that the parts show, (B, K, G, T, H); zeros for a query that sees none."""
    return _forward(passes, parts, offset, soft_cap, q_bkgth, k_bksh, v_bksh, where)[0]


def sums(passes, parts, at: At, soft_cap, q_bkgth, k_bksh, v_bksh, where) -> Sums | None:
    """Of queries and keys that stand at some places of a row; of no parts None."""
    q_len, k_len = q_bkgth.shape[3], k_bksh.shape[2]
    found = None
    for part in parts:
        places = summaries(part, where, at, k_len)
        q_rows = query_rows(part, q_bkgth), query_tokens(part, where, at, q_len, k_len)
        keys = tuple(key_rows(part, a, q_len, places) for a in (k_bksh, v_bksh))
        k_rows = *keys, key_tokens(part, where, at, q_len, k_len, places)
        new = passes.sums(part, soft_cap, q_rows, k_rows)
        new = Sums(*(from_query_rows(part, leaf, q_len) for leaf in new))
        found = new if found is None else join(found, new)
    return found


def finished(found: Sums, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The result of all keys' sums, and the log-sum-exp of its scores."""
    # A query without keys has a total of 0, and zeros as its sum.
    total = jnp.where(found.total == 0, 1, found.total)
    return (found.out / total).astype(dtype), found.top + jnp.log(total)


def inner_product(y_bkgth: jax.Array, dy_bkgth: jax.Array) -> jax.Array:
    """Sum over keys of weight * its gradient, as a product of outputs (FlashAttention, appendix B): (B, K, G, T, 1)."""
    stable = jnp.promote_types(y_bkgth.dtype, jnp.float32)
    return jnp.sum(dy_bkgth.astype(stable) * y_bkgth, axis=-1, keepdims=True)


def gradients(passes, parts, at: At, soft_cap, queries, k_bksh, v_bksh, where) -> tuple[jax.Array, ...]:
    """Of q, k and v in the stable type, from queries (q, dy, log-sum-exp, inner) and keys as `sums` has them."""
    q_len, k_len = queries[0].shape[3], k_bksh.shape[2]
    stable = jnp.promote_types(k_bksh.dtype, jnp.float32)
    grads = tuple(jnp.zeros(a.shape, stable) for a in (queries[0], k_bksh, v_bksh))
    for i, part in enumerate(parts):
        places = summaries(part, where, at, k_len)
        q_rows = *(query_rows(part, a) for a in queries), query_tokens(part, where, at, q_len, k_len)
        keys = tuple(key_rows(part, a, q_len, places) for a in (k_bksh, v_bksh))
        k_rows = *keys, key_tokens(part, where, at, q_len, k_len, places)
        dq, dk, dv = passes.gradients(part, soft_cap, q_rows, k_rows)
        dk, dv = (from_key_rows(part, d, q_len, k_len, places) for d in (dk, dv))
        new = from_query_rows(part, dq, q_len), dk, dv
        grads = new if i == 0 else tuple(a + b for a, b in zip(grads, new, strict=True))
    return grads


def _forward(passes, parts, offset, soft_cap, q_bkgth, k_bksh, v_bksh, where):
    found = sums(passes, parts, At(offset), soft_cap, q_bkgth, k_bksh, v_bksh, where)
    if found is None:
        return jnp.zeros_like(q_bkgth), (q_bkgth, k_bksh, v_bksh, where, None, None)
    y_bkgth, log_sum_bkgt1 = finished(found, v_bksh.dtype)
    stable = jnp.promote_types(q_bkgth.dtype, jnp.float32)
    return y_bkgth, (q_bkgth, k_bksh, v_bksh, where, y_bkgth, log_sum_bkgt1.astype(stable))


def _backward(passes, parts, offset, soft_cap, residuals, dy_bkgth):
    q_bkgth, k_bksh, v_bksh, where, y_bkgth, log_sum_bkgt1 = residuals
    inner_bkgt1 = None if y_bkgth is None else inner_product(y_bkgth, dy_bkgth)
    queries = q_bkgth, dy_bkgth, log_sum_bkgt1, inner_bkgt1  # of no parts nothing is read
    grads = gradients(passes, parts, At(offset), soft_cap, queries, k_bksh, v_bksh, where)
    return *(d.astype(a.dtype) for d, a in zip(grads, (q_bkgth, k_bksh, v_bksh), strict=True)), None


attention.defvjp(_forward, _backward)


def _each_chunk(function, part: Part, soft_cap: float, q_rows: Any, k_rows: Any) -> Any:
    """`function` over as many of the arrangement's rows at once as give a step's worth of scores.

    q_rows and k_rows are trees of arrays (R, B, ...); the result is one too, or for keys of windows (1, B, ...).
    """
    queries, keys = q_rows[0], k_rows[0]
    rows, b, k, g, a = queries.shape[:5]
    window = part.kind == "window"
    c = part.before + part.after + part.block if window else keys.shape[3]
    function = partial(function, part, soft_cap)
    chunk = min(rows, max(1, tiles.SCORES // (b * k * g * min(a, tiles.MAX_BLOCK) * min(c, tiles.MAX_BLOCK * 4))))
    steps = -(-rows // chunk)
    chunk = -(-rows // steps)
    if steps == 1:
        if window:
            k_rows = jax.tree.map(lambda x: _windows(part, x, rows, c), k_rows)
        out = function(q_rows, k_rows)
        return (out[0], *(_sum_windows(part, d) for d in out[1:])) if window and not isinstance(out, Sums) else out

    def divide(x):
        x = jnp.pad(x, [(0, steps * chunk - rows)] + [(0, 0)] * (x.ndim - 1))
        return x.reshape(steps, chunk, *x.shape[1:])

    def merge(x):
        return x.reshape(-1, *x.shape[2:])[:rows]

    q_steps = jax.tree.map(divide, q_rows)
    if not window:
        if k_rows[2].valid is None and steps * chunk > rows:
            k_rows = *k_rows[:2], k_rows[2]._replace(valid=jnp.ones((rows, 1, 1, c, 1), bool))
        k_steps = jax.tree.map(divide, k_rows)
        _, out = jax.lax.scan(lambda _, xs: (None, function(*xs)), None, (q_steps, k_steps))
        return jax.tree.map(merge, out)
    return _each_window(part, function, chunk, c, q_steps, k_rows, merge)


def _each_window(part, function, chunk, c, q_steps, k_rows, merge):
    steps = q_steps[0].shape[0]
    length = window_places(part, steps * chunk)
    k_rows = jax.tree.map(lambda x: jnp.pad(x, [(0, 0)] * 3 + [(0, length - x.shape[3]), (0, 0)]), k_rows)
    reach = window_places(part, chunk)

    def read(x, step):
        return _windows(part, jax.lax.dynamic_slice_in_dim(x, step * chunk * part.block, reach, axis=3), chunk, c)

    def body(sums, xs):
        step, q_chunk = xs
        out = function(q_chunk, jax.tree.map(lambda x: read(x, step), k_rows))
        if isinstance(out, Sums):
            return sums, out
        dq, *of_keys = out

        def add(total, d):
            start = step * chunk * part.block
            old = jax.lax.dynamic_slice_in_dim(total, start, reach, axis=3)
            return jax.lax.dynamic_update_slice_in_dim(total, old + _sum_windows(part, d), start, axis=3)

        return tuple(map(add, sums, of_keys)), dq

    stable = jnp.promote_types(k_rows[0].dtype, jnp.float32)
    zeros = () if function.func is _row_sums else tuple(jnp.zeros(x.shape, stable) for x in k_rows[:2])
    sums, out = jax.lax.scan(body, zeros, (jnp.arange(steps), q_steps))
    return Sums(*map(merge, out)) if isinstance(out, Sums) else (merge(out), *sums)


def _windows(part: Part, x: jax.Array, rows: int, c: int) -> jax.Array:
    """(1, B, K, places, H) -> (rows, B, K, c, H): windows that overlap, each one block on from the last."""
    if rows == 1:
        return x[:, :, :, :c]
    blocks = x[0, :, :, : window_places(part, rows)]
    blocks = blocks.reshape(*blocks.shape[:2], -1, part.block, blocks.shape[-1])
    shifted = [blocks[:, :, j : j + rows] for j in range(window_blocks(part))]
    return jnp.moveaxis(jnp.concatenate(shifted, axis=-2)[..., :c, :], 2, 0)


def _sum_windows(part: Part, d: jax.Array) -> jax.Array:
    """The way back: each place's sum over the windows that it lies in, (1, B, K, places, H)."""
    rows, n = d.shape[0], window_blocks(part)
    d = jnp.pad(d, [(0, 0)] * 3 + [(0, n * part.block - d.shape[3]), (0, 0)])
    if rows == 1:
        return d
    d = jnp.moveaxis(d.reshape(*d.shape[:3], n, part.block, d.shape[-1]), 0, 2)
    total = jnp.zeros((*d.shape[:2], rows + n - 1, *d.shape[4:]), d.dtype)
    for j in range(n):
        total = total.at[:, :, j : j + rows].add(d[:, :, :, j])
    return total.reshape(1, *total.shape[:2], -1, total.shape[-1])


def _plan(part: Part, q_chunk: Any, k_chunk: Any) -> Tiles:
    rows, b, k, g, a = q_chunk[0].shape[:5]
    if part.kind == "window":
        return Tiles(((0, a, ((0, k_chunk[0].shape[3], False),)),))
    return tiles.cover(part.plan, part.offset, a, k_chunk[0].shape[3], rows * b * k * g)


def _row_sums(part: Part, soft_cap: float, q_chunk: Any, k_chunk: Any) -> Sums:
    """The sums (R, B, K, G, A, ...) of some rows."""
    plan = _plan(part, q_chunk, k_chunk)
    queries = q_chunk[0]
    a, h = queries.shape[-2], k_chunk[1].shape[-1]
    stable = jnp.promote_types(queries.dtype, jnp.float32)

    def nothing(length):
        shape = (*queries.shape[:-2], length)
        lowest = jnp.full((*shape, 1), jnp.finfo(stable).min)
        return Sums(jnp.zeros((*shape, h), stable), lowest, jnp.zeros((*shape, 1), stable))

    if plan.unrolled is not None:
        done = []
        for start, end, of_keys in plan.unrolled:
            q_tile, sums = _slice(q_chunk, start, end - start), nothing(end - start)
            for i, (k_start, k_end, every) in enumerate(of_keys):
                new = _tile_sums(part.mask, soft_cap, every, q_tile, _slice(k_chunk, k_start, k_end - k_start))
                sums = join(sums, new) if i else new
            done.append(sums)
        return Sums(*(jnp.concatenate(leaves, axis=-2) for leaves in zip(*done, strict=True)))

    q_chunk, k_chunk = _pad_tiles(plan.size, q_chunk, k_chunk)

    def step(every, sums, at):
        q_tile, k_tile = _slice(q_chunk, at[0], plan.size), _slice(k_chunk, at[1], plan.size)
        old = Sums(*(_slice(leaf, at[0], plan.size) for leaf in sums))
        new = join(old, _tile_sums(part.mask, soft_cap, every, q_tile, k_tile))
        return Sums(*(_update(total, leaf, at[0]) for total, leaf in zip(sums, new, strict=True))), None

    sums = nothing(q_chunk[0].shape[-2])
    sums, _ = jax.lax.scan(partial(step, True), sums, plan.full)
    sums, _ = jax.lax.scan(partial(step, False), sums, plan.partial)
    return Sums(*(leaf[..., :a, :] for leaf in sums))


def _row_gradients(part: Part, soft_cap: float, q_chunk: Any, k_chunk: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of some rows: queries (R, B, K, G, A, H), keys and values (R, B, K, C, H)."""
    plan = _plan(part, q_chunk, k_chunk)
    queries, a, c = q_chunk[0], q_chunk[0].shape[-2], k_chunk[0].shape[-2]
    stable = jnp.promote_types(queries.dtype, jnp.float32)
    if plan.unrolled is None:
        q_chunk, k_chunk = _pad_tiles(plan.size, q_chunk, k_chunk)
    zeros = (
        jnp.zeros((*queries.shape[:3], queries.shape[-1], queries.shape[3], q_chunk[0].shape[-2]), stable),
        *(jnp.zeros(x.shape, stable) for x in k_chunk[:2]),
    )

    def step(every, q_size, k_size, sums, at):
        q_tile, k_tile = _slice(q_chunk, at[0], q_size), _slice(k_chunk, at[1], k_size)
        dq_hga, dk, dv = _tile_gradients(part.mask, soft_cap, every, q_tile, k_tile)
        return (
            _update(sums[0], _slice(sums[0], at[0], q_size, -1) + dq_hga, at[0], -1),
            _update(sums[1], _slice(sums[1], at[1], k_size) + dk, at[1]),
            _update(sums[2], _slice(sums[2], at[1], k_size) + dv, at[1]),
        ), None

    sums = zeros
    if plan.unrolled is not None:
        for q_start, q_end, of_keys in plan.unrolled:
            for k_start, k_end, every in of_keys:
                sums, _ = step(every, q_end - q_start, k_end - k_start, sums, (q_start, k_start))
    else:
        sums, _ = jax.lax.scan(partial(step, True, plan.size, plan.size), sums, plan.full)
        sums, _ = jax.lax.scan(partial(step, False, plan.size, plan.size), sums, plan.partial)
    dq, dk, dv = sums
    return jnp.moveaxis(dq, 3, -1)[..., :a, :], dk[..., :c, :], dv[..., :c, :]


def _pad_tiles(size: int, q_chunk: Any, k_chunk: Any) -> tuple[Any, Any]:
    """Whole tiles of queries and keys; keys that are none are marked."""

    def pad(x):
        return jnp.pad(x, [(0, 0)] * (x.ndim - 2) + [(0, -x.shape[-2] % size), (0, 0)])

    tokens = k_chunk[-1]
    if tokens.valid is None and k_chunk[0].shape[-2] % size:
        k_chunk = *k_chunk[:-1], tokens._replace(valid=jnp.ones((1, 1, 1, k_chunk[0].shape[-2], 1), bool))
    return jax.tree.map(pad, q_chunk), jax.tree.map(pad, k_chunk)


def _slice(tree: Any, start: Any, size: int, axis: int = -2) -> Any:
    """Places start to start + size of every array."""
    return jax.tree.map(lambda x: cut(x, start, size, axis), tree)


def _update(x: jax.Array, new: jax.Array, start: Any, axis: int = -2) -> jax.Array:
    return jax.lax.dynamic_update_slice_in_dim(x, new, start, axis=axis % x.ndim)


def _visible(mask: Mask, every: bool, q: Tokens, k: Tokens, backward: bool) -> jax.Array | None:
    """Which pairs of a tile are visible, (R, B, K, G, A, C), or backward (R, B, K, C, G, A); None: all are."""

    def of_q(x):
        return x.swapaxes(-1, -2) if backward else x

    def of_k(x):
        return x[..., None] if backward else x.swapaxes(-1, -2)[..., None, :]

    seen = []
    if not every:
        image = None if q.image is None else (of_q(q.image[0]), of_q(q.image[1]))
        seen.append(shown(mask, of_q(q.position), of_k(k.position), image))
    if k.valid is not None:
        seen.append(of_k(k.valid))
    if q.segment is not None and k.segment is not None:
        seen.append(of_q(q.segment) == of_k(k.segment))
    if q.token is not None and k.token is not None:
        seen.append(follows(of_q(q.position), of_k(k.position), of_q(q.token), of_k(k.token)))
    return reduce(operator.and_, seen) if seen else None


def _tile_sums(mask: Mask, soft_cap: float, every: bool, q_tile: Any, k_tile: Any) -> Sums:
    (q, q_tokens), (k, v, k_tokens) = q_tile, k_tile
    *lead, g, a, h = q.shape
    stable = jnp.promote_types(q.dtype, jnp.float32)
    scores = jnp.einsum("rbkmh,rbkch->rbkmc", q.reshape(*lead, g * a, h), k, preferred_element_type=stable)
    scores = scores.reshape(*lead, g, a, -1)
    if soft_cap:
        scores = soft_cap * jnp.tanh(scores / soft_cap)
    visible = _visible(mask, every, q_tokens, k_tokens, False)
    if visible is not None:
        scores = jnp.where(visible, scores, jnp.finfo(stable).min)
    top = jnp.max(scores, axis=-1, keepdims=True)
    # Of a query that sees nothing here all scores are the lowest, and must weigh nothing.
    weights = jnp.exp(scores - (top if visible is None else jnp.where(top == jnp.finfo(stable).min, 0, top)))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    weights = weights.astype(v.dtype).reshape(*lead, g * a, -1)
    out = jnp.einsum("rbkmc,rbkch->rbkmh", weights, v, preferred_element_type=stable)
    return Sums(out.reshape(*lead, g, a, -1), top, total)


def _tile_gradients(mask: Mask, soft_cap: float, every: bool, q_tile: Any, k_tile: Any):
    """Of queries (R, B, K, H, G, A), of keys and values (R, B, K, C, H)."""
    (q, dy, log_sum, inner, q_tokens), (k, v, k_tokens) = q_tile, k_tile
    *lead, g, a, h = q.shape
    stable = log_sum.dtype
    flat = lambda x: x.reshape(*lead, g * a, x.shape[-1])  # noqa: E731
    row = lambda x: flat(x).swapaxes(-1, -2)  # noqa: E731
    scores = jnp.einsum("rbkch,rbkmh->rbkcm", k, flat(q), preferred_element_type=stable)
    if soft_cap:
        capped = jnp.tanh(scores / soft_cap)
        scores = soft_cap * capped
    weights = jnp.exp(scores - row(log_sum))
    visible = _visible(mask, every, q_tokens, k_tokens, True)
    if visible is not None:
        shape = (*lead, -1, g, a)
        weights = jnp.where(visible, weights.reshape(shape), 0).reshape(weights.shape)
    d_weights = jnp.einsum("rbkch,rbkmh->rbkcm", v, flat(dy), preferred_element_type=stable)
    d_scores = weights * (d_weights - row(inner))
    if soft_cap:
        d_scores = d_scores * (1 - jnp.square(capped))
    d_scores, weights = d_scores.astype(q.dtype), weights.astype(dy.dtype)
    dq = jnp.einsum("rbkhc,rbkcm->rbkhm", k.swapaxes(-1, -2), d_scores, preferred_element_type=stable)
    dk = jnp.einsum("rbkcm,rbkmh->rbkch", d_scores, flat(q), preferred_element_type=stable)
    dv = jnp.einsum("rbkcm,rbkmh->rbkch", weights, flat(dy), preferred_element_type=stable)
    return dq.reshape(*lead, h, g, a), dk, dv


TILES = Passes(partial(_each_chunk, _row_sums), partial(_each_chunk, _row_gradients))
