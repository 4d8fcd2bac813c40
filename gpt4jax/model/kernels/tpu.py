"""Block-sparse flash attention for TPUs: Pallas kernels (Mosaic) for the two passes of one part of a mask.

The grid goes through a flat list of the tiles that a part shows, block of queries by block of queries (for the
gradients of keys, block of keys by block of keys). The list is prefetched as scalars, so that a tile which shows
nothing is neither computed nor read. All query heads of a key/value head take a tile in turn: keys, values and what is
visible are fetched and worked out once for them. Sums live in the result's block, which stays on the chip until the
block is done. (Dao et al. 2022, FlashAttention; the list of tiles as in JAX's splash attention.)

On a CPU the kernels are interpreted, which is for tests.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from gpt4jax.model.blockwise import Passes, Sums
from gpt4jax.model.kernels import tiling
from gpt4jax.model.kernels.tiling import Pairs, Rows
from gpt4jax.model.masks import FULL, PARTIAL
from gpt4jax.model.parts import Part

LANES = 128  # of a vector register
MIN_BLOCK, MAX_BLOCK = LANES, 512  # of queries and of keys; all are multiples of the least
MAX_QUERIES = 4096  # in a block, over all query heads of a key/value head: they all lie on the chip
MAX_TILES = 2**16  # of three scalars each, 768 KiB of the 1 MiB for scalars
VMEM_BYTES = 64 * 2**20  # that a kernel may take; TPUs since v4 have more
KIND, FIRST, LAST = 3, 4, 8  # bits of a tile's kind, and two more for the first and the last one of its block


def _size(part: Part, group: int, length: int) -> int:
    """Of the blocks of a row: equal ones, no larger than a narrow band needs."""
    most = min(MAX_BLOCK, max(MIN_BLOCK, MAX_QUERIES // group // MIN_BLOCK * MIN_BLOCK))
    while most > MIN_BLOCK and most > tiling.band(part) / 2:
        most //= 2
    each = -(-length // -(-length // most))
    return -(-each // MIN_BLOCK) * MIN_BLOCK


def _tiles(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Row, column and kind with flags of each active tile, row by row; a row without any has one that is EMPTY.

    Raises:
        ValueError: more of them than fit the chip's memory for scalars.
    """
    found = []
    for row, (of_row, column) in enumerate(zip(kinds, map(np.flatnonzero, kinds), strict=True)):
        column = column if len(column) else np.zeros(1, int)
        flags = of_row[column].astype(np.int32)
        flags[0] += FIRST
        flags[-1] += LAST
        found.append(np.stack([np.full(len(column), row), column, flags]))
    rows, columns, flags = np.concatenate(found, axis=1).astype(np.int32)
    if len(rows) > MAX_TILES:
        raise ValueError(f"a mask shows {len(rows)} tiles of a row; lowering 'tpu' has room for {MAX_TILES}")
    return rows, columns, flags


def _dot(a: jax.Array, b: jax.Array, contract: tuple[int, int]) -> jax.Array:
    # Unasked, a TPU multiplies float32 as bfloat16.
    precision = jax.lax.Precision.HIGHEST if a.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    dimensions = ((contract[:1], contract[1:]), ((), ()))
    return jax.lax.dot_general(a, b, dimensions, precision=precision, preferred_element_type=jnp.float32)


def _each_kind(kind_ref: Any, pairs: Pairs, q: Callable, k: Callable, body: Callable) -> None:
    """`body(visible)` of this step's tile, if it shows anything."""
    kind = kind_ref[pl.program_id(3)]
    for one in (PARTIAL, FULL):

        @pl.when(kind & KIND == one)
        def _(one: int = one) -> None:
            body(pairs.visible(one, q, k))


def _along(ref: Any) -> Callable[[int], jax.Array]:
    return lambda i: ref[i : i + 1, :]


def _down(ref: Any) -> Callable[[int], jax.Array]:
    return lambda i: ref[i, :][:, None]


def _sums_kernel(pairs, soft_cap, q_of, k_of, kind_of, q_ref, k_ref, v_ref, q_tokens, k_tokens, *others):
    out_ref, top_ref, total_ref, top, total = others
    kind = kind_of[pl.program_id(3)]
    lowest = jnp.finfo(jnp.float32).min

    @pl.when(kind & FIRST > 0)
    def _():
        out_ref[...] = jnp.zeros_like(out_ref)
        top[...] = jnp.full_like(top, lowest)
        total[...] = jnp.zeros_like(total)

    def tile(visible):
        def head(g, _):
            scores = _dot(q_ref[g], k_ref[...], (1, 1))
            if soft_cap:
                scores = soft_cap * jnp.tanh(scores / soft_cap)
            if visible is not None:
                scores = jnp.where(visible, scores, lowest)
            old = top[g][:, :1]
            new = jnp.maximum(old, jnp.max(scores, axis=-1, keepdims=True))
            weights = jnp.exp(scores - new)
            if visible is not None:  # of a query that sees nothing yet, all scores are the lowest
                weights = jnp.where(visible, weights, 0)
            shrunk = jnp.exp(old - new)
            sums = total[g][:, :1] * shrunk + jnp.sum(weights, axis=-1, keepdims=True)
            top[g], total[g] = (jnp.broadcast_to(x, top.shape[1:]) for x in (new, sums))
            out_ref[g] = out_ref[g] * shrunk + _dot(weights.astype(v_ref.dtype), v_ref[...], (1, 0))
            return _

        jax.lax.fori_loop(0, q_ref.shape[0], head, None)

    _each_kind(kind_of, pairs, _down(q_tokens), _along(k_tokens), tile)

    @pl.when(kind & LAST > 0)
    def _():
        def head(g, _):
            top_ref[g], total_ref[g] = top[g].T[:1], total[g].T[:1]
            return _

        jax.lax.fori_loop(0, q_ref.shape[0], head, None)


def _dq_kernel(pairs, soft_cap, q_of, k_of, kind_of, q_ref, dy_ref, log_sum, inner, k_ref, v_ref, *others):
    q_tokens, k_tokens, dq_ref = others

    @pl.when(kind_of[pl.program_id(3)] & FIRST > 0)
    def _():
        dq_ref[...] = jnp.zeros_like(dq_ref)

    def tile(visible):
        def head(g, _):
            scores = _dot(q_ref[g], k_ref[...], (1, 1))
            weights, slope = tiling.weights_again(soft_cap, visible, scores, log_sum[g, 0][:, None])
            d_scores = weights * (_dot(dy_ref[g], v_ref[...], (1, 1)) - inner[g, 0][:, None])
            d_scores = d_scores if slope is None else d_scores * slope
            dq_ref[g] += _dot(d_scores.astype(k_ref.dtype), k_ref[...], (1, 0))
            return _

        jax.lax.fori_loop(0, q_ref.shape[0], head, None)

    _each_kind(kind_of, pairs, _down(q_tokens), _along(k_tokens), tile)


def _dkv_kernel(pairs, soft_cap, k_of, q_of, kind_of, q_ref, dy_ref, log_sum, inner, k_ref, v_ref, *others):
    """Scores are (keys, queries) here: then no product needs a transposed left side."""
    q_tokens, k_tokens, dk_ref, dv_ref = others

    @pl.when(kind_of[pl.program_id(3)] & FIRST > 0)
    def _():
        dk_ref[...], dv_ref[...] = jnp.zeros_like(dk_ref), jnp.zeros_like(dv_ref)

    def tile(visible):
        def head(g, _):
            scores = _dot(k_ref[...], q_ref[g], (1, 1))
            weights, slope = tiling.weights_again(soft_cap, visible, scores, log_sum[g])
            dv_ref[...] += _dot(weights.astype(dy_ref.dtype), dy_ref[g], (1, 0))
            d_scores = weights * (_dot(v_ref[...], dy_ref[g], (1, 1)) - inner[g])
            d_scores = d_scores if slope is None else d_scores * slope
            dk_ref[...] += _dot(d_scores.astype(q_ref.dtype), q_ref[g], (1, 0))
            return _

        jax.lax.fori_loop(0, q_ref.shape[0], head, None)

    _each_kind(kind_of, pairs, _along(q_tokens), _down(k_tokens), tile)


def _call(
    kernel: Callable, x: Rows, soft_cap: float, by_keys: bool, results: str, scratch: Any = ()
) -> list[jax.Array]:
    """Runs a kernel over the tiles of each row, ordered by blocks of queries, or by those of keys.

    `results` are what it gives, in float32: "Q" like the queries, "q" with one number for each, "k" like the keys.
    """
    (r, b, k, g, a, h), c = x.queries[0].shape, x.keys[0].shape[-2]
    block, other, flags = _tiles(x.kinds.T if by_keys else x.kinds)
    q_list = int(by_keys)

    def spec(shape, at):
        def index(r, b, k, i, *lists):
            return at(r, b, k, lists[q_list][i], lists[1 - q_list][i])

        return pl.BlockSpec(shape, index)

    row, q_tokens, k_tokens = (None, None, None), x.q_tokens.shape, x.k_tokens.shape
    specs = {
        "Q": spec((*row, g, x.q_size, h), lambda r, b, k, q, _: (r, b, k, 0, q, 0)),
        "q": spec((*row, g, 1, x.q_size), lambda r, b, k, q, _: (r, b, k, 0, 0, q)),
        "k": spec((*row, x.k_size, h), lambda r, b, k, _, key: (r, b, k, key, 0)),
    }
    of_tokens = [
        spec((None, None, q_tokens[2], x.q_size), lambda r, b, k, q, _: (r, b * (q_tokens[1] > 1), 0, q)),
        spec(
            (*row, k_tokens[3], x.k_size),
            lambda r, b, k, _, key: (r, b * (k_tokens[1] > 1), k * (k_tokens[2] > 1), 0, key),
        ),
    ]
    shapes = {"Q": (r, b, k, g, a, h), "q": (r, b, k, g, 1, a), "k": (r, b, k, c, h)}
    grid = pltpu.PrefetchScalarGridSpec(
        num_scalar_prefetch=3,
        grid=(r, b, k, len(flags)),
        in_specs=[*(specs["Qq"[i > 1]] for i in range(len(x.queries))), specs["k"], specs["k"], *of_tokens],
        out_specs=[specs[one] for one in results],
        scratch_shapes=scratch,
    )
    parameters = pltpu.CompilerParams(
        dimension_semantics=("parallel", "parallel", "parallel", "arbitrary"), vmem_limit_bytes=VMEM_BYTES
    )

    def run(interpret, *arrays):
        return pl.pallas_call(
            partial(kernel, x.pairs, soft_cap),
            grid_spec=grid,
            out_shape=[jax.ShapeDtypeStruct(shapes[one], jnp.float32) for one in results],
            compiler_params=parameters,
            interpret=interpret,
        )(*arrays)

    arrays = block, other, flags, *x.queries, *x.keys, x.q_tokens, x.k_tokens
    return jax.lax.platform_dependent(*arrays, tpu=partial(run, False), cpu=partial(run, True))


def _sums(part: Part, soft_cap: float, q_rows: Any, k_rows: Any) -> Sums:
    group, a = q_rows[0].shape[3:5]
    x = tiling.rows(part, q_rows, k_rows, partial(_size, part, group))
    scratch = [pltpu.VMEM((group, x.q_size, LANES), jnp.float32)] * 2
    out, top, total = _call(_sums_kernel, x, soft_cap, False, "Qqq", scratch)
    return Sums(out[..., :a, :], *(one.swapaxes(-1, -2)[..., :a, :] for one in (top, total)))


def _gradients(part: Part, soft_cap: float, q_rows: Any, k_rows: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    (group, a), c = q_rows[0].shape[3:5], k_rows[0].shape[3]
    x = tiling.rows(part, q_rows, k_rows, partial(_size, part, group))
    (dq,) = _call(_dq_kernel, x, soft_cap, False, "Q")
    dk, dv = _call(_dkv_kernel, x, soft_cap, True, "kk")
    return dq[..., :a, :], dk[..., :c, :], dv[..., :c, :]


def _over_mesh(run: Callable, part: Part, soft_cap: float, q_rows: Any, k_rows: Any) -> Any:
    return tiling.over_mesh(partial(run, part, soft_cap), "tpu", q_rows, k_rows)


PASSES = Passes(partial(_over_mesh, _sums), partial(_over_mesh, _gradients))
