"""Rows over the mesh axis context: against float64 NumPy, balance, leakage, and what is refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.model import attention, axes, context, masks, patterns, tiles, vision
from gpt4jax.model.arrangement import Where
from gpt4jax.model.parts import split, without_windows
from gpt4jax.model.vision_config import VisionConfig
from gpt4jax.parallel import mesh as meshes
from tests.conftest import SHAPES, perturbed
from tests.model import attention_cases as cases

T = 32
MESHES = {2: {"data": 2, "tensor": 2, "context": 2}, 4: {"data": 2, "tensor": 1, "context": 4}}


def program(case, method, shards, lowering="blockwise", both=True):
    """As `cases.program`, of arrays in the rows' order; to be run under a mesh. Not `both`: the forward pass alone."""
    to, back = context.order(T, shards), np.argsort(context.order(T, shards))
    of_heads = case.of_heads
    if case.longest:
        of_heads = tuple(mask | masks.together(case.longest) for mask in of_heads)

    @jax.jit
    def run(q, k, v, dy, where):
        def forward(*qkv):
            return attention.attend(*qkv, of_heads, where, soft_cap=case.soft_cap, lowering=lowering, over=method)

        if not both:
            return (forward(q, k, v),)
        y, backward = jax.vjp(forward, q, k, v)
        return y, *backward(dy)

    def in_order(*arrays):
        *arrays, where = arrays
        return tuple(np.asarray(a)[:, back] for a in run(*(a[:, to] for a in arrays), where))

    return in_order


def worst_error(method, pattern, packed, shards, *, dtype=jnp.float32, longest=0, lowering="blockwise", both=True):
    """Relative to the largest value, over two draws of documents and arrays."""
    case = cases.Case((T, T, 0), (2, 2), patterns.from_pattern(pattern, 2), packed, 3.0, longest=longest)
    worst = 0.0
    with jax.set_mesh(meshes.make_mesh(MESHES[shards])):
        run = program(case, method, shards, lowering, both)
        for i in range(2):
            rng = np.random.default_rng(i)
            where, arrays = cases.draw_where(case, rng), cases.draw_arrays(case, rng)
            if dtype == jnp.bfloat16:
                arrays = tuple(np.asarray(jnp.asarray(a, dtype), np.float64) for a in arrays)
            ours = run(*(jnp.asarray(a, dtype) for a in arrays), where)
            true, _ = cases.solve(case, where, *arrays)
            worst = max(worst, cases.error(ours, true if both else true[:1]))
    return worst


@pytest.mark.parametrize(
    ("method", "pattern", "packed", "shards", "longest"),
    [
        ("gather", "fixed:4:1", False, 2, 0),  # blocks that chunks are made of; summaries differ by head and device
        ("gather", "strided:5", True, 2, 0),
        ("gather", "banded:9", True, 2, 11),  # images
        ("ring", "dense", False, 4, 0),
        ("ring", "strided:5", True, 2, 0),
        ("ring", "banded:9", True, 2, 11),
        ("ring", "fixed:4:1", False, 4, 0),
        ("ring", "fixed:3:1", True, 2, 0),
    ],
)
def test_against_float64(method, pattern, packed, shards, longest):
    """A sample of `python -m tests.bench.context`."""
    assert worst_error(method, pattern, packed, shards, longest=longest) < 2e-6


@pytest.mark.parametrize("method", ["gather", "ring"])
def test_kernels(method):
    """Without their gradients, which take long to compile for a CPU: see `python -m tests.bench.context`."""
    assert worst_error(method, "dense", True, 2, lowering="tpu", both=False) < 2e-6


def test_bfloat16():
    assert worst_error("ring", "dense", True, 2, dtype=jnp.bfloat16) < 2e-2


@pytest.mark.parametrize(("method", "pattern"), [("gather", "fixed:4:1"), ("ring", "banded:9")])
def test_nothing_forbidden_leaks(method, pattern):
    """Every key and value that a query may not see changes: not a bit of its result or its gradients does."""
    case = cases.Case((T, T, 0), (2, 1), patterns.from_pattern(pattern, 2), True, 0.0)
    rng = np.random.default_rng(0)
    where, arrays = cases.draw_where(case, rng), cases.draw_arrays(case, rng)
    q, k, v, dy = (a.astype(np.float32) for a in arrays)
    shown = cases.visible(case, where)  # by head: summaries differ
    with jax.set_mesh(meshes.make_mesh(MESHES[2])):
        run = program(case, method, 2)
        for t in range(0, T, 7):
            hidden = ~shown[:, :, t].swapaxes(1, 2)[..., None]
            other = np.where(hidden, rng.normal(size=k.shape) * 50, 0).astype(np.float32)
            one = dy * np.eye(T, dtype=np.float32)[t][None, :, None, None]  # the gradient of one query's result alone
            before, after = run(q, k, v, one, where), run(q, k + other, v + other, one, where)
            for old, new in zip(before[:2], after[:2], strict=True):
                np.testing.assert_array_equal(old[:, t], new[:, t])
            for d in after[2:]:
                assert not np.any(np.where(hidden, d, 0))
            assert np.any(after[-1])  # of values; keys have none where one alone is seen


@pytest.mark.parametrize(
    ("pattern", "contiguous"),
    [("dense", 1.8), ("banded:256", 1.0), ("strided:128", 1.4), ("strided:181", 1.2), ("fixed:2048:128", 1.4)],
)
def test_shards_have_the_same_work(pattern, contiguous):
    """The busiest shard has 0.5% more than the mean, of pairs seen; with a row's eighths in their order far more."""
    (mask,), length, shards = patterns.from_pattern(pattern, 1), 32_768, 8
    work = context.pairs(mask, length, shards)
    assert sum(work) == mask.pairs(length, length)
    assert max(work) < 1.005 * sum(work) / shards
    in_turn = [mask.pairs(length // shards, length, offset=i * length // shards) for i in range(shards)]
    assert max(in_turn) > contiguous * sum(in_turn) / shards


@pytest.mark.parametrize("method", ["gather", "ring"])
@pytest.mark.parametrize("pattern", ["dense", "banded:512", "strided:512", "fixed:128:32"])
def test_tiles_computed_are_balanced(method, pattern):
    """Of tiles of 256 queries and keys, as kernels have them, the busiest shard has at most 5% more than the mean."""
    (mask,), chunk, shards = patterns.from_pattern(pattern, 1), 2048, 4
    ring = context.ring_of(mask, (), True, chunk, shards)

    def cost(parts, keys):
        total = 0
        for part in parts:
            rows, q_len, k_len = tiles.shape(part, chunk)
            k_len = {"whole": keys, "residue": -(-keys // part.stride)}.get(part.kind, k_len)
            total += rows * part.plan.active_blocks(q_len, k_len, 256, 256, offset=part.offset)
        return total

    def work(shard):
        own, length = context.chunks_of(shard, shards), 2 * shards * chunk
        if method == "gather":
            plans = [split(mask, (), True, number * chunk, chunk, length) for number in own]
            return sum(cost(without_windows(plan), length) for plan in plans)
        distances = [q - k + 2 * shards - 1 for q in own for k in range(2 * shards)]
        return sum(cost(ring.programs[ring.of_distance[at]], chunk) for at in distances)

    of_shards = [work(shard) for shard in range(shards)]
    assert max(of_shards) <= 1.05 * np.mean(of_shards)


@pytest.mark.parametrize(
    ("pattern", "plain", "steps", "programs"),
    [
        ("dense", False, (0, 1, 2, 3), 3),  # nothing, a diagonal, everything
        ("banded:1025", False, (0, 1, 3), 3),  # a chunk and the one before it, of the shard before or the one after
        ("banded:1026", False, (0, 1, 2, 3), 4),  # the first query of a chunk sees the last key two before
        ("strided:128", False, (0, 1, 2, 3), 4),
        ("fixed:128:32", True, (0, 1, 2, 3), 3),
        ("fixed:128:32", False, (0, 1, 2, 3), 4),
        ("block:1024", True, (0,), 2),
    ],
)
def test_rings_leave_out_what_nobody_sees(pattern, plain, steps, programs):
    """And chunks that are equally far apart share a program."""
    (mask,) = patterns.from_pattern(pattern, 1)
    ring = context.ring_of(mask, (), plain, 1024, 4)
    assert ring.steps == steps
    assert len(ring.programs) == programs
    assert (0, 1) not in ring.halves  # early queries, late keys


def test_order_and_back():
    assert context.order(8, 2).tolist() == [0, 1, 6, 7, 2, 3, 4, 5]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 3)), jnp.float32)
    weight = jnp.arange(16.0)[None, :, None]

    def both(x):
        return context.in_order(axes.constrain(context.spread(x), "act_batch", "act_len", "act_embed"))

    with jax.set_mesh(meshes.make_mesh({"data": 2, "context": 4})):
        y, backward = jax.vjp(jax.jit(both), x)
        np.testing.assert_array_equal(y, x)
        np.testing.assert_array_equal(backward(x * weight)[0], x * weight)


def test_images_and_induction():
    """What depends on a token's place in its row is right for tokens in the shards' order."""
    sizes = VisionConfig(frontend="linear", image_token=90, patch_size=2, max_patches=4)
    changes = dict(attention=("induction", "banded:5"), vision=sizes, context_method="ring")
    config = model.Config(**SHAPES["gpt"] | changes)
    params, rng = perturbed(config), np.random.default_rng(0)
    tokens = rng.integers(0, 9, (2, 16)).astype(np.int32)
    tokens[0, 3:7] = tokens[0, 12:14] = tokens[1, 7:11] = 90  # over borders of chunks, of 2 tokens and of 8
    ids = np.zeros((2, 6), np.int32)
    images = vision.Images(rng.normal(size=(2, 6, 12)).astype(np.float32), ids + 1, ids, ids, np.ones((2, 1), np.int32))
    segment_ids = np.arange(16)[None] // 11 + np.zeros((2, 1), int)

    def run():
        return jax.jit(partial(model.apply, config))(params, tokens, segment_ids_bt=segment_ids, images=images)

    alone = run()
    with jax.set_mesh(meshes.make_mesh({"data": 2, "context": 4})):
        np.testing.assert_allclose(run(), alone, atol=2e-5)


def test_what_cannot_be_is_said():
    q = jnp.zeros((2, 48, 2, 4))
    attend = partial(attention.attend, over="gather")
    config = model.Config(**SHAPES["gpt"])
    params, tokens = perturbed(config), jnp.zeros((2, 8), jnp.int32)
    with jax.set_mesh(meshes.make_mesh(MESHES[2])):
        with pytest.raises(
            ValueError, match="rows of 46 tokens do not divide over mesh axis context = 2.*multiple of 4"
        ):
            attend(*[q[:, :46]] * 3, masks.causal())
        with pytest.raises(
            ValueError, match="1 key/value heads of one pattern do not divide over mesh axis tensor = 2"
        ):
            attend(q, q, q, [masks.causal(), masks.causal() & masks.banded(5)])
        with pytest.raises(
            ValueError, match="'reference' cannot do rows over the mesh axis context; blockwise and tpu"
        ):
            attend(q, q, q, masks.causal(), lowering="reference")
        with pytest.raises(ValueError, match="40 queries of 48 keys"):
            attend(q[:, :40], q, q, masks.causal(), Where(), offset=8)
        with pytest.raises(ValueError, match="a KV cache can't have its tokens over mesh axis context = 2"):
            model.features(config, params, tokens, state=model.init_cache(config, 2, 8))
