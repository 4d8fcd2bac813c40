"""The blockwise lowering against the reference one: values, gradients, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax.model import attention, masks
from gpt4jax.model.attention import Where

B, T, K, H = 2, 45, 2, 4  # 45: four blocks of 12 (tests/conftest.py), the last one short


def packed(t):
    """Rows of a few documents each, the second row ending in padding."""
    segment = np.ones((B, t), np.int32)
    segment[0, t // 3 :] = 2
    segment[1, t // 2 :] = 2
    segment[1, -5:] = 0
    position = np.zeros((B, t), np.int32)
    for row in range(B):
        for i in range(1, t):
            position[row, i] = position[row, i - 1] + 1 if segment[row, i] == segment[row, i - 1] else 0
    return jnp.asarray(position), jnp.asarray(segment)


@pytest.mark.parametrize(
    ("pattern", "group", "soft_cap", "segments"),
    [
        ("dense", 1, 0.0, False),
        ("dense", 3, 2.0, True),
        ("banded:7", 3, 0.0, False),
        ("banded:7", 1, 2.0, True),
        ("induction", 3, 0.0, True),
    ],
)
def test_blockwise_equals_reference(pattern, group, soft_cap, segments):
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 4)
        q = 2 * jax.random.normal(keys[0], (B, T, K * group, H), jnp.float64)
        k, v = (jax.random.normal(key, (B, T, K, H), jnp.float64) for key in keys[1:3])
        weight = jax.random.normal(keys[3], q.shape, jnp.float64)
        position, segment = packed(T)
        alone = jnp.arange(T)[None]
        where = Where(position, position, segment, segment) if segments else Where(alone, alone)
        if pattern == masks.INDUCTION:
            before = jax.random.randint(keys[0], (B, T), -1, 5)
            where = where._replace(q_token_bt=before[:, ::-1], k_before_bs=before)
        mask = masks.from_pattern(pattern)

        def run(lowering):
            loss = lambda q, k, v: jnp.sum(weight * lowering(q, k, v, mask, where, soft_cap))  # noqa: E731
            return jax.jit(
                lambda q, k, v: (lowering(q, k, v, mask, where, soft_cap), jax.grad(loss, (0, 1, 2))(q, k, v))
            )(q, k, v)

        for ours, theirs in zip(
            jax.tree.leaves(run(attention.blockwise)), jax.tree.leaves(run(attention.reference)), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_blockwise_keeps_no_scores_for_the_backward_pass():
    """Of 128 tokens: nothing that lives between the passes is as large as the scores of one head."""
    t, heads = 128, 8
    row = jax.ShapeDtypeStruct((1, t, heads, 4), jnp.float32)
    where = Where(jnp.arange(t)[None], jnp.arange(t)[None])

    def largest_kept(lowering):
        def backward(q, k, v):
            return jax.vjp(lambda q, k, v: lowering(q, k, v, masks.causal(), where, 0.0), q, k, v)[1]

        return max(leaf.size for leaf in jax.tree.leaves(jax.eval_shape(backward, row, row, row)))

    assert largest_kept(attention.blockwise) < t * t < heads * t * t <= largest_kept(attention.reference)


def test_a_mask_that_is_not_causal_is_not_cut_at_the_diagonal():
    position = jnp.arange(T)[None]
    where = Where(position, position)
    q, k, v = (jax.random.normal(jax.random.key(i), (1, T, K, H)) for i in range(3))
    ours = attention.attend(q, k, v, masks.banded(7), where)
    np.testing.assert_array_equal(ours, attention.reference(q, k, v, masks.banded(7), where, 0.0))
    assert not np.allclose(ours, attention.blockwise(q, k, v, masks.banded(7), where, 0.0))
    assert (masks.causal() & masks.banded(2)).causal and not (masks.causal() | masks.banded(2)).causal
