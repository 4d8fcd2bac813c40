"""Block-sparse flash attention for GPUs: Pallas kernels (Triton, by name) for the two passes of one part of a mask.

One program computes one block of queries of one head (for the gradients of keys, one block of keys for all of the
query heads that share it). It goes through the tiles which that block shows, from a list in memory: first those that
are seen as a whole, then those where pairs are told apart. (Dao et al. 2022, FlashAttention.)

On a CPU the kernels are interpreted, which is for tests. They were not run on a GPU yet: block sizes are guesses.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from gpt4jax.model.blockwise import Passes, Sums
from gpt4jax.model.kernels import tiling
from gpt4jax.model.kernels.tiling import Pairs, Rows
from gpt4jax.model.masks import FULL, PARTIAL
from gpt4jax.model.parts import Part

MIN_BLOCK, MAX_BLOCK = 16, 64  # of queries and of keys; powers of two, as all that Triton loads
MIN_HEAD_DIM = 16  # of a product; smaller heads are padded


def _size(part: Part, length: int) -> int:
    """Of the blocks of a row."""
    size = MIN_BLOCK
    while size < MAX_BLOCK and size < length and 2 * size < tiling.band(part):
        size *= 2
    return size


def _dot(a: jax.Array, b: jax.Array) -> jax.Array:
    # Unasked, a GPU multiplies float32 as TensorFloat-32.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return jnp.dot(a, b, precision=precision, preferred_element_type=jnp.float32)


def _along(ref: Any, block: Any) -> Callable[[int], jax.Array]:
    return lambda i: ref[i, block][None, :]


def _down(ref: Any, block: Any) -> Callable[[int], jax.Array]:
    return lambda i: ref[i, block][:, None]


def _each_tile(bounds: Any, list_ref: Any, size: int, body: Callable, carry: Any) -> Any:
    """`body(kind, places, carry)` over the tiles of a block, those that are FULL first."""
    start, middle, end = (bounds[i] for i in range(3))
    for kind, first, last in ((FULL, start, middle), (PARTIAL, middle, end)):

        def step(i, carry, kind=kind):
            return body(kind, pl.ds(list_ref[i] * size, size), carry)

        carry = jax.lax.fori_loop(first, last, step, carry)
    return carry


def _sums_kernel(pairs: Pairs, soft_cap: float, x_size: tuple[int, int], *refs: Any) -> None:
    bounds, list_ref, q_ref, k_ref, v_ref, q_tokens, k_tokens, out_ref, top_ref, total_ref = refs
    q_size, k_size = x_size
    lowest, q = jnp.finfo(jnp.float32).min, q_ref[...]

    def tile(kind, block, carry):
        out, top, total = carry
        visible = pairs.visible(kind, _down(q_tokens, slice(None)), _along(k_tokens, block))
        scores = _dot(q, k_ref[block, :].T)
        if soft_cap:
            scores = soft_cap * jnp.tanh(scores / soft_cap)
        if visible is not None:
            scores = jnp.where(visible, scores, lowest)
        new = jnp.maximum(top, jnp.max(scores, axis=-1))
        weights = jnp.exp(scores - new[:, None])
        if visible is not None:  # of a query that sees nothing yet, all scores are the lowest
            weights = jnp.where(visible, weights, 0)
        shrunk = jnp.exp(top - new)
        out = out * shrunk[:, None] + _dot(weights.astype(v_ref.dtype), v_ref[block, :])
        return out, new, total * shrunk + jnp.sum(weights, axis=-1)

    nothing = jnp.zeros(q.shape, jnp.float32), jnp.full((q_size,), lowest), jnp.zeros((q_size,), jnp.float32)
    out_ref[...], top_ref[...], total_ref[...] = _each_tile(bounds, list_ref, k_size, tile, nothing)


def _dq_kernel(pairs: Pairs, soft_cap: float, x_size: tuple[int, int], *refs: Any) -> None:
    bounds, list_ref, q_ref, dy_ref, log_sum_ref, inner_ref, k_ref, v_ref, q_tokens, k_tokens, dq_ref = refs
    q, dy, log_sum, inner = q_ref[...], dy_ref[...], log_sum_ref[...][:, None], inner_ref[...][:, None]

    def tile(kind, block, dq):
        k = k_ref[block, :]
        visible = pairs.visible(kind, _down(q_tokens, slice(None)), _along(k_tokens, block))
        weights, slope = tiling.weights_again(soft_cap, visible, _dot(q, k.T), log_sum)
        d_scores = weights * (_dot(dy, v_ref[block, :].T) - inner)
        d_scores = d_scores if slope is None else d_scores * slope
        return dq + _dot(d_scores.astype(k.dtype), k)

    dq_ref[...] = _each_tile(bounds, list_ref, x_size[1], tile, jnp.zeros(q.shape, jnp.float32))


def _dkv_kernel(pairs: Pairs, soft_cap: float, x_size: tuple[int, int], *refs: Any) -> None:
    """Scores are (keys, queries) here."""
    bounds, list_ref, q_ref, dy_ref, log_sum_ref, inner_ref, k_ref, v_ref, q_tokens, k_tokens, dk_ref, dv_ref = refs
    k, v = k_ref[...], v_ref[...]

    def tile(kind, block, carry):
        visible = pairs.visible(kind, _along(q_tokens, block), _down(k_tokens, slice(None)))

        def head(g, carry):
            dk, dv = carry
            q, dy, log_sum, inner = (ref[g, block] for ref in (q_ref, dy_ref, log_sum_ref, inner_ref))
            weights, slope = tiling.weights_again(soft_cap, visible, _dot(k, q.T), log_sum[None])
            d_scores = weights * (_dot(v, dy.T) - inner[None])
            d_scores = d_scores if slope is None else d_scores * slope
            return dk + _dot(d_scores.astype(q.dtype), q), dv + _dot(weights.astype(dy.dtype), dy)

        return jax.lax.fori_loop(0, q_ref.shape[0], head, carry)

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk_ref[...], dv_ref[...] = _each_tile(bounds, list_ref, x_size[0], tile, (zeros, zeros))


def _call(kernel: Callable, x: Rows, soft_cap: float, by_keys: bool, results: str) -> list[jax.Array]:
    """Runs a kernel for each block of queries, or of keys.

    `results` are what it gives, in float32: "Q" like the queries, "q" with one number for each, "k" like the keys.
    """
    (r, b, k, g, a, h), c = x.queries[0].shape, x.keys[0].shape[-2]
    bounds, tiles = tiling.active(x.kinds.T if by_keys else x.kinds)
    heads, blocks = (1 if by_keys else g), len(bounds)

    def spec(shape, at):
        def index(program):  # blocks of a row first: they read the same keys
            block, head = program % blocks, program // blocks
            return at(head // (k * heads * b), head // (k * heads) % b, head // heads % k, head % heads, block)

        return pl.BlockSpec(shape, index)

    q_tokens, k_tokens, row = x.q_tokens.shape, x.k_tokens.shape, (None, None, None)
    q_size, k_size = (a, x.k_size) if by_keys else (x.q_size, c)
    group = g if by_keys else None
    q_at, k_at = (int(not by_keys), int(by_keys))  # whether the program's block is one of these
    specs = {
        "Q": spec((*row, group, q_size, h), lambda r, b, k, g, i: (r, b, k, g, i * q_at, 0)),
        "q": spec((*row, group, q_size), lambda r, b, k, g, i: (r, b, k, g, i * q_at)),
        "k": spec((*row, k_size, h), lambda r, b, k, g, i: (r, b, k, i * k_at, 0)),
    }
    of_tokens = [
        spec((None, None, q_tokens[2], q_size), lambda r, b, k, g, i: (r, b * (q_tokens[1] > 1), 0, i * q_at)),
        spec(
            (*row, k_tokens[3], k_size),
            lambda r, b, k, g, i: (r, b * (k_tokens[1] > 1), k * (k_tokens[2] > 1), 0, i * k_at),
        ),
    ]
    shapes = {"Q": (r, b, k, g, a, h), "q": (r, b, k, g, a), "k": (r, b, k, c, h)}
    lists = [spec((None, 3), lambda r, b, k, g, i: (i, 0)), pl.BlockSpec(tiles.shape, lambda program: (0,))]

    def run(interpret, *arrays):
        return pl.pallas_call(
            partial(kernel, x.pairs, soft_cap, (x.q_size, x.k_size)),
            grid=(r * b * k * heads * blocks,),
            in_specs=[
                *lists,
                *(specs["Qq"[i > 1]] for i in range(len(x.queries))),
                *[specs["k"]] * 2,
                *of_tokens,
            ],
            out_specs=[specs[one] for one in results],
            out_shape=[jax.ShapeDtypeStruct(shapes[one], jnp.float32) for one in results],
            compiler_params=triton.CompilerParams(num_warps=4 if h <= 64 else 8, num_stages=2),
            interpret=interpret,
        )(*arrays)

    single = (one[..., 0, :] for one in x.queries[2:])
    arrays = bounds, tiles, *x.queries[:2], *single, *x.keys, x.q_tokens, x.k_tokens
    return jax.lax.platform_dependent(*arrays, cuda=partial(run, False), cpu=partial(run, True))


def _rows(part: Part, q_rows: Any, k_rows: Any) -> Rows:
    """With heads of a power of two."""
    x = tiling.rows(part, q_rows, k_rows, partial(_size, part))
    wide = max(MIN_HEAD_DIM, pl.next_power_of_2(x.queries[0].shape[-1]))

    def pad(a):
        return jnp.pad(a, [(0, 0)] * (a.ndim - 1) + [(0, wide - a.shape[-1])])

    return x._replace(queries=(*map(pad, x.queries[:2]), *x.queries[2:]), keys=tuple(map(pad, x.keys)))


def _sums(part: Part, soft_cap: float, q_rows: Any, k_rows: Any) -> Sums:
    a, h = q_rows[0].shape[-2:]
    out, top, total = _call(_sums_kernel, _rows(part, q_rows, k_rows), soft_cap, False, "Qqq")
    return Sums(out[..., :a, :h], *(one[..., :a, None] for one in (top, total)))


def _gradients(part: Part, soft_cap: float, q_rows: Any, k_rows: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    (a, h), c = q_rows[0].shape[-2:], k_rows[0].shape[-2]
    x = _rows(part, q_rows, k_rows)
    (dq,) = _call(_dq_kernel, x, soft_cap, False, "Q")
    dk, dv = _call(_dkv_kernel, x, soft_cap, True, "kk")
    return dq[..., :a, :h], dk[..., :c, :h], dv[..., :c, :h]


def _over_mesh(run: Callable, part: Part, soft_cap: float, q_rows: Any, k_rows: Any) -> Any:
    return tiling.over_mesh(partial(run, part, soft_cap), "gpu", q_rows, k_rows)


PASSES = Passes(partial(_over_mesh, _sums), partial(_over_mesh, _gradients))
