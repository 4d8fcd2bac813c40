"""Attention of rows whose tokens lie over the mesh axis `context`, by all-gather or by ring.

For C shards a row is cut into 2 C chunks, and shard i holds chunks i and 2 C - 1 - i: early queries see few keys and
late ones many, so all shards have the same work (Llama 3, section 3.3.2). Whatever is done to one token at a time does
not see this order; attention does, and knows it.

    gather  every shard has the keys and values of whole rows for the time of a layer, and runs the program of its own
            two chunks of queries: what a pattern hides is skipped as it is on one device
    ring    keys and values go from shard to shard (Liu et al. 2023), in as many steps as the pattern has shards that
            see each other; what is skipped in a pair of chunks depends on how far apart they lie

With B rows a device and K key/value heads, gather takes 4 B K T H bytes of bfloat16 keys and values and in the backward
pass twice that for their gradients in float32; ring a C-th of it, and room for the next shard's. The same bytes pass
between shards in both. A ring sends keys while it computes with those before, and its program does not grow with C.

What is known of a row's tokens (`Where`) is integers: every shard has those of whole rows, in their order. Dropout is
drawn for tokens as they lie: with it, a run on another number of shards is another run.
"""

import dataclasses
import itertools
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from gpt4jax.model import axes, blockwise
from gpt4jax.model.arrangement import At, Where, cut
from gpt4jax.model.blockwise import Passes, Sums
from gpt4jax.model.mask_algebra import anywhere, atoms
from gpt4jax.model.masks import EMPTY, FULL, Full, Mask, SameBlock, Summary, Together
from gpt4jax.model.parts import Part, split, without_windows

AXIS = "context"
METHODS = ("gather", "ring")
_ROWS, _KV_HEADS = axes.RULES["act_batch"], axes.RULES["act_kv_heads"]


def chunks_of(shard: Any, shards: int) -> tuple[Any, Any]:
    """The two chunks of a row that a shard holds."""
    return shard, 2 * shards - 1 - shard


def check(length: int, shards: int) -> None:
    """Checks that rows of `length` tokens divide over the shards.

    Raises:
        ValueError: they do not.
    """
    if length % (2 * shards):
        raise ValueError(
            f"rows of {length} tokens do not divide over mesh axis {AXIS} = {shards}: each shard has two chunks of "
            f"a row, so the length must be a multiple of {2 * shards}"
        )


def order(length: int, shards: int) -> np.ndarray:
    """The places of a row's tokens as the shards have them, one after another."""
    chunks = np.arange(length).reshape(2 * shards, -1)
    return np.concatenate([chunks[list(chunks_of(shard, shards))].ravel() for shard in range(shards)])


def pairs(mask: Mask, length: int, shards: int) -> list[int]:
    """How many pairs each shard's queries see: its work."""
    chunk = length // (2 * shards)
    return [
        sum(mask.pairs(chunk, length, offset=number * chunk) for number in chunks_of(shard, shards))
        for shard in range(shards)
    ]


def spread(a_bt: jax.Array) -> jax.Array:
    """What is said of tokens, (B, T), from the row's order to the shards'; without shards as it is.

    Raises:
        ValueError: rows that do not divide over them.
    """
    shards = axes.shards("act_len")
    if shards == 1:
        return a_bt
    check(a_bt.shape[1], shards)
    return a_bt[:, order(a_bt.shape[1], shards)]


def in_order(x_btd: jax.Array) -> jax.Array:
    """Hidden states from the shards' order to the row's, of which shard i then has the i-th part."""
    shards = axes.shards("act_len")
    if shards == 1:
        return x_btd
    spec = axes.spec(("act_batch", "act_len", "act_embed"))
    from_chunk = [min(chunks_of(chunk, shards)) for chunk in range(2 * shards)]  # the shard that holds it

    def run(x_bcd):
        # Of a shard's chunks one has an even number, and each shard takes one of each kind.
        even, odd = jnp.split(x_bcd, 2, axis=1)
        swapped = jax.lax.axis_index(AXIS) % 2 == 1
        even, odd = jnp.where(swapped, odd, even), jnp.where(swapped, even, odd)
        halves = (
            jax.lax.ppermute(half, AXIS, [(from_chunk[2 * shard + i], shard) for shard in range(shards)])
            for i, half in enumerate((even, odd))
        )
        return jnp.concatenate([*halves], axis=1)

    return jax.shard_map(run, in_specs=spec, out_specs=spec)(x_btd)


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is computed, but for the arrays: one mask, whose summaries may differ by head (`parts.head_groups`)."""

    method: str
    passes: Passes
    mask: Mask
    indices: tuple[int, ...]
    plain: bool
    soft_cap: float
    shards: int


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def attention(plan: Plan, q_bkgth: jax.Array, k_bksh: jax.Array, v_bksh: jax.Array, where: Where) -> jax.Array:
    """As `blockwise.attention`, of queries and keys in the shards' order and a `Where` in the row's: (B, K, G, T, H).

    Raises:
        ValueError: rows, heads or tokens that do not divide over the mesh.
    """
    return _forward(plan, q_bkgth, k_bksh, v_bksh, where)[0]


def _forward(plan, q_bkgth, k_bksh, v_bksh, where):
    check(q_bkgth.shape[3], plan.shards)
    _check_shards(*q_bkgth.shape[:2])
    if plan.indices:
        where = where._replace(head_k=jnp.arange(k_bksh.shape[1]))
    run = {"gather": _gather_forward, "ring": _ring_forward}[plan.method]
    y_bkgth, log_sum_bkgt1 = _on_shards(partial(run, plan), (_Q, _Q), (q_bkgth, k_bksh, v_bksh), where)
    return y_bkgth, (q_bkgth, k_bksh, v_bksh, where, y_bkgth, log_sum_bkgt1)


def _backward(plan, residuals, dy_bkgth):
    q_bkgth, k_bksh, v_bksh, where, y_bkgth, log_sum_bkgt1 = residuals
    queries = q_bkgth, dy_bkgth, log_sum_bkgt1, blockwise.inner_product(y_bkgth, dy_bkgth)
    run = {"gather": _gather_backward, "ring": _ring_backward}[plan.method]
    grads = _on_shards(partial(run, plan), (_Q, _K, _K), (queries, k_bksh, v_bksh), where)
    return *(d.astype(a.dtype) for d, a in zip(grads, (q_bkgth, k_bksh, v_bksh), strict=True)), None


attention.defvjp(_forward, _backward)

_Q = PartitionSpec(_ROWS, _KV_HEADS, None, AXIS, None)
_K = PartitionSpec(_ROWS, _KV_HEADS, AXIS, None)


def _on_shards(run: Any, out_specs: Any, arrays: Any, where: Where) -> Any:
    """`run(*arrays, where)` on every device, of its rows, heads and chunks."""

    def spec(a_bs):
        return PartitionSpec(_KV_HEADS) if a_bs.ndim == 1 else PartitionSpec(_ROWS if a_bs.shape[0] > 1 else None)

    specs = jax.tree.map(lambda x: _Q if x.ndim == 5 else _K, arrays)
    # Kernels do not say how their results vary over the mesh.
    mapped = jax.shard_map(run, in_specs=(*specs, jax.tree.map(spec, where)), out_specs=out_specs, check_vma=False)
    return mapped(*arrays, where)


def _check_shards(rows: int, heads: int) -> None:
    for what, size, axis in (("rows", rows, "act_batch"), ("key/value heads of one pattern", heads, "act_kv_heads")):
        if size % axes.shards(axis):
            raise ValueError(
                f"{size} {what} do not divide over mesh axis {' x '.join(axes.RULES[axis])} = {axes.shards(axis)}, "
                f"as they must where rows lie over {AXIS}"
            )


# --- By all-gather: one program for each shard, whose two chunks of queries stand at known places of the row.


def _gather_forward(plan, q_bkgth, k_bksh, v_bksh, where):
    def of_shard(shard, q_bkgth, k_bksh, v_bksh, where):
        found = []
        for parts, at, q_bkgch in _own_chunks(plan, shard, q_bkgth):
            sums = blockwise.sums(plan.passes, parts, at, plan.soft_cap, q_bkgch, k_bksh, v_bksh, where)
            sums = _nothing(q_bkgch) if sums is None else sums
            found.append(blockwise.finished(sums, v_bksh.dtype))
        return tuple(jnp.concatenate(halves, axis=3) for halves in zip(*found, strict=True))

    return _by_shard(plan, of_shard, q_bkgth, _whole_rows(k_bksh), _whole_rows(v_bksh), where)


def _gather_backward(plan, queries, k_bksh, v_bksh, where):
    def of_shard(shard, queries, k_bksh, v_bksh, where):
        found = []
        for parts, at, half in _own_chunks(plan, shard, queries):
            found.append(blockwise.gradients(plan.passes, parts, at, plan.soft_cap, half, k_bksh, v_bksh, where))
        dq, dk, dv = zip(*found, strict=True)
        return jnp.concatenate(dq, axis=3), sum(dk), sum(dv)

    dq_bkgth, *d_bksh = _by_shard(plan, of_shard, queries, _whole_rows(k_bksh), _whole_rows(v_bksh), where)
    return dq_bkgth, *(_own_sums(plan, d) for d in d_bksh)


def _by_shard(plan: Plan, run: Any, *operands: Any) -> Any:
    branches = [partial(run, shard) for shard in range(plan.shards)]
    return jax.lax.switch(jax.lax.axis_index(AXIS), branches, *operands)


def _own_chunks(plan: Plan, shard: int, queries: Any) -> Iterator[tuple[tuple[Part, ...], At, Any]]:
    """The parts of the mask for each chunk of a shard's queries, its place, and those queries."""
    chunk = jax.tree.leaves(queries)[0].shape[3] // 2
    for half, number in enumerate(chunks_of(shard, plan.shards)):
        place = number * chunk
        parts = split(plan.mask, plan.indices, plan.plain, place, chunk, 2 * plan.shards * chunk)
        parts = parts if plan.passes is blockwise.TILES else without_windows(parts)
        yield parts, At(place), jax.tree.map(lambda x, half=half: cut(x, half * chunk, chunk, 3), queries)


def _whole_rows(a_bksh: jax.Array) -> jax.Array:
    """Of all shards' chunks the row."""
    low, high = jnp.split(jax.lax.all_gather(a_bksh, AXIS), 2, axis=3)
    return jnp.concatenate([*low, *high[::-1]], axis=2)


def _own_sums(plan: Plan, a_bksh: jax.Array) -> jax.Array:
    """The way back for gradients: of a row's chunks a shard's own, summed over all shards."""
    chunks = jnp.split(a_bksh, 2 * plan.shards, axis=2)
    ordered = [chunks[number] for shard in range(plan.shards) for number in chunks_of(shard, plan.shards)]
    return jax.lax.psum_scatter(jnp.concatenate(ordered, axis=2), AXIS, scatter_dimension=2, tiled=True)


def _nothing(q_bkgth: jax.Array) -> Sums:
    stable = jnp.promote_types(q_bkgth.dtype, jnp.float32)
    zero, one = jnp.zeros(q_bkgth.shape, stable), q_bkgth.shape[:-1]
    return Sums(zero, jnp.full((*one, 1), jnp.finfo(stable).min), jnp.zeros((*one, 1), stable))


# --- By ring: one program for each distance of two chunks at which a mask shows something else.


class Ring(NamedTuple):
    """What each step of a ring computes.

    Attributes:
        programs: parts of a mask for a pair of chunks, () among them.
        of_distance: the program of each distance in chunks, from 1 - 2 C to 2 C - 1.
        halves: pairs of a shard's two chunks of queries and another's of keys that are ever seen.
        steps: from how many shards before keys come, step by step, 0 first; where nothing is seen is left out.
    """

    programs: tuple[tuple[Part, ...], ...]
    of_distance: tuple[int, ...]
    halves: tuple[tuple[int, int], ...]
    steps: tuple[int, ...]


@lru_cache(maxsize=64)
def ring_of(mask: Mask, indices: tuple[int, ...], plain: bool, chunk: int, shards: int) -> Ring:
    """The ring of a mask over rows of 2 * `shards` chunks of `chunk` tokens; `plain` as `Where` has it."""
    knows_blocks = {atom.stride for atom in atoms(mask) if isinstance(atom, SameBlock | Summary)}
    others = [atom for atom in atoms(mask) if not (atom.relative or isinstance(atom, SameBlock | Summary | Together))]
    plain = plain and not others and all(chunk % stride == 0 for stride in knows_blocks)
    distances = range(1 - 2 * shards, 2 * shards)
    of = {distance: _of_pair(mask, indices, plain, distance, chunk) for distance in distances}
    programs = tuple(dict.fromkeys(((), *of.values())))
    halves, steps = set(), {0}
    for shard, step in itertools.product(range(shards), repeat=2):
        numbers = chunks_of(shard, shards), chunks_of((shard - step) % shards, shards)
        for q, k in itertools.product((0, 1), repeat=2):
            if of[numbers[0][q] - numbers[1][k]]:
                halves.add((q, k))
                steps.add(step)
    return Ring(programs, tuple(programs.index(of[d]) for d in distances), tuple(sorted(halves)), tuple(sorted(steps)))


def _of_pair(mask: Mask, indices: tuple[int, ...], plain: bool, distance: int, chunk: int) -> tuple[Part, ...]:
    """The parts for a chunk of queries so many chunks after one of keys, without those that show nothing."""
    found = []
    for part in without_windows(split(mask, indices, plain, distance * chunk, chunk, chunk, apart=True)):
        queries, keys = chunk, chunk
        if part.kind == "residue":
            queries, keys = -(-(part.skip + chunk) // part.stride), -(-chunk // part.stride)
        elif part.kind == "local":
            queries = keys = part.stride
        elif part.kind == "summary":
            keys = part.room
        kind = part.plan.block(part.offset, part.offset + queries, 0, keys)
        # Which of these are seen gathered keys do not say themselves.
        of_chunks = anywhere(part.mask).block(distance * chunk, (distance + 1) * chunk, 0, chunk)
        if kind == FULL:  # wherever they stand: the same for all such pairs
            part = dataclasses.replace(part, plan=Full(), offset=0)
        if kind != EMPTY and of_chunks != EMPTY:
            found.append(part)
    return tuple(found)


def _ring_forward(plan, q_bkgth, k_bksh, v_bksh, where):
    ring, q_2bkgch, kv, where = _on_ring(plan, q_bkgth, k_bksh, v_bksh, where)

    def pair(parts, at, sums, q_bkgch, kv):
        k_bksh, v_bksh = kv
        new = blockwise.sums(plan.passes, parts, at, plan.soft_cap, q_bkgch, k_bksh, v_bksh, where)
        return sums if new is None else blockwise.join(sums, new)

    def compute(step, sums, kv):
        return _each_pair(plan, ring, step, pair, sums, q_2bkgch, kv, {})[0]

    def forwards(by, carry, step):
        sums, kv = carry
        ahead = _send(plan, kv, by)  # on its way while it is used here
        return (compute(step, sums, kv), ahead), None

    carry = jax.vmap(_nothing)(q_2bkgch), kv
    for by, steps in _runs(ring):
        carry, _ = jax.lax.scan(partial(forwards, by), carry, steps)
    y, log_sum = blockwise.finished(compute(jnp.asarray(ring.steps[-1]), *carry), v_bksh.dtype)
    return _joined(y), _joined(log_sum)


def _ring_backward(plan, queries, k_bksh, v_bksh, where):
    ring, queries, kv, where = _on_ring(plan, queries, k_bksh, v_bksh, where)
    stable = jnp.promote_types(k_bksh.dtype, jnp.float32)

    def pair(parts, at, dq, queries, kv, dkv):
        if not parts:
            return dq, dkv
        k_bksh, v_bksh = kv
        new, *of_keys = blockwise.gradients(plan.passes, parts, at, plan.soft_cap, queries, k_bksh, v_bksh, where)
        return dq + new, tuple(total + d for total, d in zip(dkv, of_keys, strict=True))

    def compute(step, dq, kv, dkv):
        return _each_pair(plan, ring, step, pair, dq, queries, kv, dkv)

    def backwards(by, carry, step):
        dq, kv, dkv = carry
        ahead = _send(plan, kv, by)
        dq, dkv = compute(step, dq, kv, dkv)
        return (dq, ahead, _send(plan, dkv, by)), None

    zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, stable), (queries[0], kv))
    carry = zeros[0], kv, zeros[1]
    for by, steps in _runs(ring):
        carry, _ = jax.lax.scan(partial(backwards, by), carry, steps)
    dq, dkv = compute(jnp.asarray(ring.steps[-1]), *carry)
    dk, dv = _send(plan, dkv, plan.shards - ring.steps[-1])  # home
    return _joined(dq), _joined(dk), _joined(dv)


def _on_ring(plan, queries, k_bksh, v_bksh, where):
    """The ring, and queries, keys and values as two chunks each."""
    queries, kv = jax.tree.map(lambda x: jnp.stack(jnp.split(x, 2, axis=-2)), (queries, (k_bksh, v_bksh)))
    chunk = k_bksh.shape[2] // 2
    if where.position_bs is None:  # places of a chunk are not those of its row
        where = where._replace(position_bs=jnp.arange(2 * chunk * plan.shards)[None])
    return ring_of(plan.mask, plan.indices, plan.plain, chunk, plan.shards), queries, kv, where


def _each_pair(plan: Plan, ring: Ring, step: Any, pair: Any, of_q: Any, queries: Any, kv: Any, of_kv: Any) -> Any:
    """`of_q` and `of_kv` after each pair of this shard's chunks and those from `step` shards before.

    pair(parts, at, of_q, queries, kv, of_kv) gives what it changes of one pair's.
    """
    own = jax.lax.axis_index(AXIS)
    q_numbers, k_numbers = (jnp.stack(chunks_of(s % plan.shards, plan.shards)) for s in (own, own - step))
    chunk = kv[0].shape[3]

    def pick(tree, half):
        return jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, half, keepdims=False), tree)

    def put(tree, new, half):
        return jax.tree.map(lambda x, one: jax.lax.dynamic_update_index_in_dim(x, one, half, 0), tree, new)

    def body(carry, halves):
        of_q, of_kv = carry
        q_half, k_half = halves
        at = At(q_numbers[q_half] * chunk, k_numbers[k_half] * chunk)
        distance = q_numbers[q_half] - k_numbers[k_half]
        which = jnp.asarray(ring.of_distance)[distance + 2 * plan.shards - 1]
        operands = at, pick(of_q, q_half), pick(queries, q_half), pick(kv, k_half)
        if of_kv:
            new = jax.lax.switch(
                which, [partial(pair, parts) for parts in ring.programs], *operands, pick(of_kv, k_half)
            )
            return (put(of_q, new[0], q_half), put(of_kv, new[1], k_half)), None
        new = jax.lax.switch(which, [partial(pair, parts) for parts in ring.programs], *operands)
        return (put(of_q, new, q_half), of_kv), None

    return jax.lax.scan(body, (of_q, of_kv), tuple(jnp.asarray(ring.halves).T))[0]


def _runs(ring: Ring) -> Iterator[tuple[int, jax.Array]]:
    """Steps after which keys go on by the same number of shards, and that number; the last step stands apart."""
    going = [(after - step, step) for step, after in itertools.pairwise(ring.steps)]
    for by, run in itertools.groupby(going, key=lambda one: one[0]):
        yield by, jnp.asarray([step for _, step in run])


def _send(plan: Plan, tree: Any, by: int) -> Any:
    """To the shard that is `by` further."""
    by %= plan.shards
    ring = [(shard, (shard + by) % plan.shards) for shard in range(plan.shards)]
    return jax.lax.ppermute(tree, AXIS, ring) if by else tree


def _joined(x: jax.Array) -> jax.Array:
    return jnp.concatenate([x[0], x[1]], axis=-2)
