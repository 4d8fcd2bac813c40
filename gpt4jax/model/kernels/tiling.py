"""What the kernels share: rows padded to whole tiles, the list of tiles that a part shows, and how a mesh divides them.

A kernel takes queries (R, B, K, G, A, H) and keys (R, B, K, C, H) in the rows of a part's arrangement, and of their
tokens int32 arrays (R, B or 1, n, A) and (R, B or 1, K or 1, n, C). Their n lines are the position, then the segment
and the token where they are asked for. Where there is no key, the segment is `NOWHERE`.
"""

import dataclasses
import math
import operator
from collections.abc import Callable, Sequence
from functools import lru_cache, reduce
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gpt4jax.model import masks
from gpt4jax.model.arrangement import Tokens, follows
from gpt4jax.model.axes import RULES
from gpt4jax.model.mask_algebra import atoms
from gpt4jax.model.masks import EMPTY, FULL, PARTIAL, Mask, Segments, Spans
from gpt4jax.model.parts import Part

NOWHERE = -(2**31)  # the segment of keys that are none


@dataclasses.dataclass(frozen=True)
class Pairs:
    """Which pairs of a tile are visible: what a kernel evaluates.

    Attributes:
        mask: of positions; asked in PARTIAL tiles alone.
        segments, tokens: whether segments and tokens are compared.
        always: in FULL tiles too.
        images: whether queries have, as their last two lines, the first and last position of their image.
    """

    mask: Mask
    segments: bool
    tokens: bool
    always: bool
    images: bool = False

    def visible(self, kind: int, q: Callable[[int], jax.Array], k: Callable[[int], jax.Array]) -> jax.Array | None:
        """Of a tile, or None if all of it is; `q(i)` and `k(i)` give line i of its tokens, shaped to broadcast."""
        n = 1 + self.segments + self.tokens
        image = (q(n), q(n + 1)) if self.images else None
        seen = [masks.shown(self.mask, q(0), k(0), image)] if kind == PARTIAL else []
        if kind == PARTIAL or self.always:
            if self.segments:
                seen.append(q(1) == k(1))
            if self.tokens:
                seen.append(follows(q(0), k(0), q(1 + self.segments), k(1 + self.segments)))
        return reduce(operator.and_, seen) if seen else None


class Rows(NamedTuple):
    """A part's rows as a kernel takes them, in whole tiles.

    Attributes:
        queries: arrays (R, B, K, G, A, H), and those with one number a query as (R, B, K, G, 1, A).
        keys: arrays (R, B, K, C, H).
        q_tokens, k_tokens: (R, B or 1, n, A) and (R, B or 1, K or 1, n, C).
        pairs: what is asked of them.
        kinds: EMPTY, PARTIAL or FULL for each tile of queries and keys.
        q_size, k_size: of a tile.
    """

    queries: tuple[jax.Array, ...]
    keys: tuple[jax.Array, ...]
    q_tokens: jax.Array
    k_tokens: jax.Array
    pairs: Pairs
    kinds: np.ndarray
    q_size: int
    k_size: int


def refusal(dtype: Any, of_heads: Sequence[Mask]) -> str | None:
    """What the kernels cannot do of what is asked, in words; None: they can do it."""
    if dtype not in (jnp.float32, jnp.bfloat16):
        return f"{jnp.dtype(dtype).name}, only float32 and bfloat16"
    for atom in (atom for mask in of_heads for atom in atoms(mask)):
        count = len(atom.starts if isinstance(atom, Segments) else atom.ranges if isinstance(atom, Spans) else ())
        if count > masks.MAX_COMPARED:
            return f"a mask of {count} segments or spans, only of up to {masks.MAX_COMPARED}"
    return None


def rows(part: Part, q_rows: Any, k_rows: Any, size: Callable[[int], int]) -> Rows:
    """Queries (arrays, tokens) and keys (k, v, tokens) as `blockwise.attention` has them; `size(length)` of a tile."""
    (*queries, q_tokens), (*keys, k_tokens) = q_rows, k_rows
    a, c = queries[0].shape[-2], keys[0].shape[-2]
    q_size, k_size = size(a), size(c)
    ragged = k_tokens.valid is not None or c % k_size > 0
    segments, tokens = q_tokens.segment is not None or ragged, q_tokens.token is not None
    # Keys that are none lie at the end of a row, but for those of short blocks and of gathered summaries.
    spread = k_tokens.valid is not None and part.kind in ("local", "summary")
    compared = q_tokens.segment is not None or tokens or spread
    pairs = Pairs(part.mask, segments, tokens, compared, q_tokens.image is not None)
    q_lines, k_lines = _lines(q_tokens, k_tokens, pairs)
    wide, single = queries[:2], queries[2:]  # those that have a head dimension, and those with a number a query
    return Rows(
        (*(_pad(x, q_size, -2) for x in wide), *(_pad(x.swapaxes(-1, -2), q_size, -1) for x in single)),
        tuple(_pad(x, k_size, -2) for x in keys),
        _pad(q_lines, q_size, -1),
        _pad_keys(k_lines, k_size, pairs),
        pairs,
        _kinds(part.plan, part.offset, a, c, q_size, k_size, ragged),
        q_size,
        k_size,
    )


def _lines(q: Tokens, k: Tokens, pairs: Pairs) -> tuple[jax.Array, jax.Array]:
    q_lines, k_lines = [q.position], [k.position]
    if pairs.segments:
        q_segment = jnp.zeros((1,) * 6, jnp.int32) if q.segment is None else q.segment
        k_segment = jnp.zeros((1,) * 5, jnp.int32) if k.segment is None else k.segment
        q_lines.append(q_segment)
        k_lines.append(k_segment if k.valid is None else jnp.where(k.valid, k_segment, NOWHERE))
    if q.token is not None and k.token is not None:
        q_lines.append(q.token)
        k_lines.append(k.token)
    q_lines += q.image or ()
    q_lines, k_lines = (jnp.broadcast_arrays(*(x.astype(jnp.int32) for x in lines)) for lines in (q_lines, k_lines))
    return jnp.concatenate(q_lines, -1)[:, :, 0, 0].swapaxes(-1, -2), jnp.concatenate(k_lines, -1).swapaxes(-1, -2)


def _pad(x: jax.Array, size: int, axis: int) -> jax.Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, -x.shape[axis] % size)
    return jnp.pad(x, widths) if widths[axis][1] else x


def _pad_keys(lines: jax.Array, size: int, pairs: Pairs) -> jax.Array:
    c = lines.shape[-1]
    lines = _pad(lines, size, -1)
    return lines.at[..., 1, c:].set(NOWHERE) if lines.shape[-1] > c and pairs.segments else lines


@lru_cache(maxsize=256)
def _kinds(plan: Mask, offset: int, q_len: int, k_len: int, q_size: int, k_size: int, ragged: bool) -> np.ndarray:
    """Of each tile (queries, keys), in closed form; with `ragged`, the last keys' are never FULL."""
    k_start = np.arange(0, k_len, k_size)
    k_end = np.minimum(k_start + k_size, k_len)
    kinds = np.stack(
        [
            plan.block(offset + start, offset + min(start + q_size, q_len), k_start, k_end)
            for start in range(0, q_len, q_size)
        ]
    )
    if ragged:
        kinds[:, -1] = np.where(kinds[:, -1] == EMPTY, EMPTY, PARTIAL)
    return kinds


def weights_again(
    soft_cap: float, visible: jax.Array | None, scores: jax.Array, log_sum: jax.Array
) -> tuple[jax.Array, jax.Array | None]:
    """A tile's weights from the log-sum-exp, and the derivative of its scores by those before the soft cap, if any."""
    slope = None
    if soft_cap:
        capped = jnp.tanh(scores / soft_cap)
        scores, slope = soft_cap * capped, 1 - jnp.square(capped)
    weights = jnp.exp(scores - log_sum)
    return (weights if visible is None else jnp.where(visible, weights, 0)), slope


def active(kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each row of `kinds` the tiles that are not EMPTY, those that are FULL first.

    Returns:
        (rows, 3): where a row's tiles begin in the list, where those that are PARTIAL do, and where they end.
        The list: the columns of the tiles.
    """
    columns = [np.concatenate([np.flatnonzero(row == kind) for kind in (FULL, PARTIAL)]) for row in kinds]
    full = np.sum(kinds == FULL, axis=1)
    end = np.cumsum([len(one) for one in columns])
    start = np.concatenate([[0], end[:-1]])
    return np.stack([start, start + full, end], axis=1).astype(np.int32), np.concatenate(columns).astype(np.int32)


def band(part: Part) -> float:
    """How many keys a query may see at most, of what the plan knows."""
    low, high = part.plan.distances()
    return high - low + 1


def over_mesh(run: Callable[[Any, Any], Any], name: str, q_rows: Any, k_rows: Any) -> Any:
    """`run(q_rows, k_rows)`, whose results are all (R, B, K, ...): under a mesh, each device of its rows and heads.

    Raises:
        ValueError: a batch or heads that do not divide over the mesh.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.are_all_axes_manual:  # each device has its own already
        return run(q_rows, k_rows)
    over = RULES["act_batch"], RULES["act_kv_heads"]
    _, b, k = q_rows[0].shape[:3]
    for what, size, axes in zip(("rows", "key/value heads of one pattern"), (b, k), over, strict=True):
        shards = math.prod(mesh.shape[axis] for axis in axes)
        if size % shards:
            raise ValueError(
                f"{size} {what} do not divide over mesh axis {' x '.join(axes)} = {shards}: lowering {name!r} "
                "computes each on one device; 'blockwise' leaves that to the compiler"
            )

    def spec(x):
        return PartitionSpec(None, *(axes if size > 1 else None for size, axes in zip(x.shape[1:3], over, strict=True)))

    everywhere = PartitionSpec(None, *over)
    specs = jax.tree.map(spec, (q_rows, k_rows))
    # Kernels do not say how their results vary over the mesh.
    return jax.shard_map(run, in_specs=specs, out_specs=everywhere, check_vma=False)(q_rows, k_rows)
