"""The lowerings of attention against float64 NumPy: values, gradients, leakage, memory, and what is refused."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax.model import attention, masks, parts, patterns, tiles
from gpt4jax.model.arrangement import Where
from tests.model import attention_cases as cases

CAUSAL = masks.causal()
PATTERNS = {
    "dense": CAUSAL,
    "banded": CAUSAL & masks.banded(6),
    "strided": CAUSAL & (masks.banded(5) | masks.strided(5)),
    "column": CAUSAL & masks.strided(5),
    "fixed": CAUSAL & masks.fixed(5, 2),
    "summary": CAUSAL & masks.summary(5, 2),
    "prefix": CAUSAL | masks.prefix(9),
    "spans": CAUSAL | masks.spans([(3, 9), (20, 31)]),
}
SIZES = {
    "unrolled": dict(),
    "scanned": dict(MIN_BLOCK=8, MAX_UNROLLED=0, MAX_BLOCK=16),
    "chunked": dict(SCORES=600),
}


@pytest.fixture(params=SIZES)
def sizes(request, monkeypatch):
    """Blocks unrolled into one program, scanned, and rows of an arrangement in several chunks."""
    for name, value in SIZES[request.param].items():
        monkeypatch.setattr(tiles, name, value)
    tiles.cover.cache_clear()
    yield request.param
    tiles.cover.cache_clear()


@pytest.mark.parametrize("seed", range(5))
def test_random_problems(sizes, seed):
    """A sample of `python -m tests.bench.attention_random`, which has 10,000."""
    number = len(SIZES) * seed + list(SIZES).index(sizes)
    case = cases.draw_case(random.Random(1000 + number))
    assert cases.worst_error(case, "blockwise", 2, number) < 2e-6


@pytest.mark.parametrize("name", PATTERNS)
def test_each_pattern_in_packed_rows_and_bfloat16(name):
    case = cases.Case((45, 45, 0), (2, 2), (PATTERNS[name],) * 2, True, 0.0)
    assert cases.worst_error(case, "blockwise", 2, 0) < 2e-6
    if name in ("strided", "fixed", "prefix"):
        assert cases.worst_error(case, "reference", 1, 0) < 2e-6
        assert cases.worst_error(case, "blockwise", 1, 0, jnp.bfloat16) < 2e-2


@pytest.mark.parametrize(
    "one", [masks.full(), masks.banded(6), masks.strided(5), masks.fixed(8, 3), masks.summary(5, 2)]
)
@pytest.mark.parametrize("packed", [True, False])
def test_images_beside_each_pattern(one, packed):
    case = cases.Case((45, 45, 0), (1, 1), (masks.causal() & one,), packed, 0.0, longest=11)
    assert cases.worst_error(case, "blockwise", 3, 0) < 2e-6


def test_heads_of_different_patterns_and_summaries():
    """Heads that differ in their summaries alone are computed together."""
    fixed = tuple(CAUSAL & masks.fixed(8, 3, index) for index in (1, 0))
    assert len(parts.head_groups(fixed)) == 1
    mixed = (PATTERNS["banded"], PATTERNS["strided"])
    assert len(parts.head_groups(mixed)) == 2
    for of_heads in (fixed, mixed):
        for packed in (False, True):
            case = cases.Case((45, 45, 0), (2, 2), of_heads, packed, 3.0)
            assert cases.worst_error(case, "blockwise", 2, 1) < 2e-6


@pytest.mark.parametrize("lowering", ["reference", "blockwise", "tpu", "gpu"])
@pytest.mark.parametrize("name", PATTERNS)
def test_nothing_forbidden_leaks(name, lowering):
    """Every key and value that a query may not see changes: not a bit of its result or its gradients does.

    And they are right, of kernels too, which take long to compile for a CPU.
    """
    case = cases.Case((40, 40, 0), (1, 2), (PATTERNS[name],), True, 0.0)
    rng = np.random.default_rng(0)
    where, (q, k, v, dy) = cases.draw_where(case, rng), cases.draw_arrays(case, rng)
    shown = cases.visible(case, where)[:, 0]
    run = cases.program(case, lowering)

    @jax.jit
    def each(q, k, v, dy):
        return jax.lax.map(lambda a: run(*a, where), (q, k, v, dy))

    queries = np.arange(0, 40, 3)
    one = np.eye(40)[queries][:, None, :, None, None]  # the gradient of one query's result alone
    hidden = ~np.stack([shown[:, t] for t in queries])[..., None, None]
    other = np.where(hidden, rng.normal(size=(len(queries), 2, 40, 1, 4)) * 50, 0)
    inputs = [np.broadcast_to(a, (len(queries), *a.shape)).astype(np.float32) for a in (q, k, v)]
    before = each(*inputs, (dy * one).astype(np.float32))
    after = each(inputs[0], *((a + other).astype(np.float32) for a in inputs[1:]), (dy * one).astype(np.float32))
    for i, t in enumerate(queries):
        for old, new in zip(before[:2], after[:2], strict=True):
            np.testing.assert_array_equal(old[i, :, t], new[i, :, t])
        for old, new in zip(before[2:], after[2:], strict=True):  # of what it sees; of the rest there is none
            np.testing.assert_array_equal(old[i], new[i])
            assert not np.any(np.where(hidden[i], new[i], 0))
    assert not np.any(np.asarray(before[0])[:, ~np.any(shown, axis=-1)])
    assert cases.error([leaf[-1] for leaf in before], cases.solve(case, where, q, k, v, dy * one[-1])[0]) < 2e-6


@pytest.mark.parametrize("name", ["fixed:8:4", "fixed:8:3|strided:5", "summary:8:3|block:8|column:5"])
@pytest.mark.parametrize("segments", [False, True])
def test_summaries_beside_columns_and_segments_without_positions(name, segments):
    """Blocks that end a segment have no summaries for later ones; heads with columns too can't share a plan."""
    q = jax.random.normal(jax.random.key(0), (1, 64, 2, 4))
    where = Where(None, jnp.asarray(np.arange(64)[None] >= 19, jnp.int32) if segments else None)
    of_heads = patterns.from_pattern(name, 2)
    run = jax.jit(attention.attend, static_argnums=3, static_argnames="lowering")
    ours, true = (run(q, q, q, of_heads, where, lowering=how) for how in ("blockwise", "reference"))
    np.testing.assert_allclose(ours, true, atol=2e-6)


def test_a_query_that_sees_nothing_gives_zeros():
    mask = CAUSAL & masks.summary(8, 2)  # before its first summary a query has none
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 20, 1, 4)) for i in range(3))
    for lowering in ("reference", "blockwise"):

        @jax.jit
        def run(q, k, v, lowering=lowering):
            y, backward = jax.vjp(lambda *qkv: attention.attend(*qkv, mask, lowering=lowering), q, k, v)
            return y, backward(jnp.ones_like(y))[0]

        y, dq = run(q, k, v)
        assert not np.any(y[:, :6]) and np.all(np.any(y[:, 6:] != 0, axis=-1))
        assert not np.any(dq[:, :6]) and np.any(dq[:, 6:])


def test_nothing_as_large_as_the_scores_is_kept_for_the_backward_pass():
    t, heads = 128, 8
    row = jax.ShapeDtypeStruct((1, t, heads, 4), jnp.float32)

    def largest_kept(lowering):
        def backward(q, k, v):
            return jax.vjp(lambda q, k, v: attention.attend(q, k, v, CAUSAL, lowering=lowering), q, k, v)[1]

        return max(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, row, row, row)))

    assert largest_kept("blockwise") < t * t < heads * t * t <= largest_kept("reference")


def test_what_does_not_fit_is_said():
    q, k = jnp.zeros((1, 8, 4, 2)), jnp.zeros((1, 10, 2, 2))
    with pytest.raises(ValueError, match="8 queries from place 3 on are not among 10 keys"):
        attention.attend(q, k, k, CAUSAL, offset=3)
    with pytest.raises(ValueError, match="no lowering 'flash'; there are reference, blockwise, tpu, gpu, cudnn"):
        attention.attend(q, k, k, CAUSAL, lowering="flash")
    with pytest.raises(ValueError, match="3 masks for 2 key/value heads"):
        attention.attend(q, k, k, [CAUSAL] * 3)
