"""muP: the table by hand, the standard parametrisation at the base shape, and the same function after folding."""

import dataclasses
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt4jax import model
from gpt4jax.model import mup, parameters
from gpt4jax.training import optimizer
from tests.conftest import GPT, LLAMA, apply, perturbed

BASE = dict(parametrization="mup", base_embed_dim=32, base_num_layers=2, base_head_dim=8)
TOKENS = jax.random.randint(jax.random.key(1), (2, 24), 0, 96)


def options(**changes) -> types.SimpleNamespace:
    fields = dict(
        learning_rate=0.1, schedule="warmup_cosine", warmup_steps=0, decay_steps=0, final_fraction=1.0, beta1=0.9,
        beta2=0.95, eps=1e-3, weight_decay=0.0, grad_clip_norm=0.0,
    )  # fmt: skip
    return types.SimpleNamespace(**fields | changes)


def test_table_by_hand():
    """Four times as wide, three times as deep: each role's numbers, worked out from the papers' tables."""
    fields = LLAMA | dict(embed_dim=128, num_heads=16, num_kv_heads=8, mlp_dim=256, num_layers=6)
    config = model.Config(**fields, **BASE)
    rows = {row.name: row for row in parameters.table(config)}
    for name, std, rate, eps in (
        ("token_vd", 0.02, 1, 1 / 4),
        ("query_dnh", 0, 1 / 4, 1 / 12),
        ("key_dkh", 0.02 / 2, 1 / 4, 1 / 12),
        ("up_df", 0.02 / 2, 1 / 4, 1 / 12),
        ("out_nhd", 0.02 / 2 / math.sqrt(4), 1 / 4, 1 / 12),
        ("down_fd", 0.02 / 2 / math.sqrt(4), 1 / 4, 1 / 12),
        ("attention_norm_d", 0, 1, 1 / 12),
        ("norm_d", 0, 1, 1 / 4),
        ("unembed_vd", 0.02, 1, 1 / 4),
    ):
        row = rows[name]
        np.testing.assert_allclose((row.std, row.learning_rate, row.eps), (std, rate, eps), rtol=1e-12, err_msg=name)
    assert mup.multipliers(config) == (1 / 3, 1 / 4, 1.0)
    wide_heads = dataclasses.replace(config, num_heads=4, num_kv_heads=4, head_dim=32)
    # 1 / d against 1 / sqrt(d): heads four times as wide take half as much of what 1 / sqrt(d) leaves
    assert mup.multipliers(wide_heads).attention == 0.5


@pytest.mark.parametrize("fields", [GPT, LLAMA], ids=["gpt", "llama"])
def test_the_base_shape_is_the_standard_parametrisation(fields):
    """Same function of the parameters, same initial spread but for zero queries, same optimizer."""
    standard, mu = model.Config(**fields), model.Config(**fields, **BASE)
    params = perturbed(standard)
    np.testing.assert_array_equal(apply(standard, params, TOKENS), apply(mu, params, TOKENS))
    for ours, theirs in zip(parameters.table(mu), parameters.table(standard), strict=True):
        assert (ours.learning_rate, ours.eps) == (1, 1)
        assert ours.std == (0 if ours.role == "query" else theirs.std), ours.name


@pytest.mark.parametrize("qk_norm", [False, True])
@pytest.mark.parametrize("fields", [GPT, LLAMA], ids=["gpt", "llama"])
def test_folded_parameters_compute_the_same(fields, qk_norm):
    grown = dict(fields, embed_dim=64, num_layers=4, head_dim=16, mlp_dim=128)
    config = model.Config(**grown, **BASE, qk_norm=qk_norm)
    params = perturbed(config)
    standard, folded = mup.fold(config, params)
    assert standard.parametrization == "standard"
    ours = apply(config, params, TOKENS)
    np.testing.assert_allclose(ours, apply(standard, folded, TOKENS), atol=2e-5 * float(jnp.abs(ours).max()))
    unfolded = apply(standard, params, TOKENS)  # the multipliers do something
    assert float(jnp.abs(unfolded - ours).max()) > 0.1 * float(jnp.abs(ours).max())


def test_adam_with_a_rate_and_eps_of_each_parameter_against_numpy():
    """Two steps in float64 NumPy, eps large enough to matter and decay untouched by the factors."""
    config = model.Config(**LLAMA | dict(embed_dim=64, num_heads=8, num_kv_heads=4, mlp_dim=128, num_layers=4), **BASE)
    tx = optimizer.adamw(options(weight_decay=0.3), config, 10)
    params = perturbed(config)
    rng = np.random.default_rng(0)
    moments = tx.init(params)
    start, m, v = jax.tree.map(np.float64, params), {}, {}
    for t in (1, 2):
        grads = jax.tree.map(lambda p: jnp.asarray(rng.normal(0, 1e-3, p.shape), p.dtype), params)
        updates, moments = tx.update(grads, moments, params)
        params = optax.apply_updates(params, updates)
        for row in parameters.table(config):
            key, g = (row.group, row.name), np.float64(grads[row.group][row.name])
            m[key], v[key] = 0.9 * m.get(key, 0) + 0.1 * g, 0.95 * v.get(key, 0) + 0.05 * g * g
            adam = m[key] / (1 - 0.9**t) / (np.sqrt(v[key] / (1 - 0.95**t)) + 1e-3 * row.eps)
            old = start[row.group][row.name]
            start[row.group][row.name] = old - 0.1 * (row.learning_rate * adam + 0.3 * row.decay * old)
    for row in parameters.table(config):
        np.testing.assert_allclose(params[row.group][row.name], start[row.group][row.name], rtol=2e-4, atol=2e-5)
    assert {row.learning_rate for row in parameters.table(config)} == {1.0, 0.5}
    assert {row.eps for row in parameters.table(config)} == {0.5, 0.25}


def test_grow():
    config = model.Config(**LLAMA, **BASE)
    wider = mup.grow(config, 128, 6)
    assert (wider.num_heads, wider.num_kv_heads, wider.head_dim, wider.mlp_dim) == (16, 8, 8, 256)
    wide_heads = mup.grow(config, 128, 2, by="head_dim")
    assert (wide_heads.num_heads, wide_heads.num_kv_heads, wide_heads.head_dim) == (4, 2, 32)
    odd = dataclasses.replace(config, embed_dim=896, num_heads=14, num_kv_heads=14)
    assert mup.grow(odd, 1856, 2).num_heads == 29  # 1856 / 896 * 14 is 29.000000000000004 in floats
    with pytest.raises(ValueError, match="no whole num_heads at embed_dim 36"):
        mup.grow(config, 36, 2)
