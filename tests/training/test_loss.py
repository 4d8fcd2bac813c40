"""The chunked loss against float64 NumPy, and its gradient against plain differentiation."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt4jax import model
from gpt4jax.training.loss import summed_loss
from tests.conftest import perturbed

B, T, V = 2, 11, 96
Z = 0.01


@pytest.fixture
def case(shape):
    config = model.Config(**shape, logit_soft_cap=4.0)
    keys = jax.random.split(jax.random.key(0), 3)
    x_btd = jax.random.normal(keys[0], (B, T, config.embed_dim))
    targets_bt = jax.random.randint(keys[1], (B, T), 0, V)
    weights_bt = jax.random.bernoulli(keys[2], 0.7, (B, T))
    return config, perturbed(config), x_btd, targets_bt, weights_bt


def numpy_sums(config, params, x, targets, weights):
    table = params["embed"]["token_vd"] if config.tie_embeddings else params["final"]["unembed_vd"]
    logits = np.asarray(x, np.float64) @ np.asarray(table, np.float64).T
    logits = 4 * np.tanh(logits / 4)
    log_z = np.log(np.exp(logits).sum(-1))
    nll = log_z - np.take_along_axis(logits, np.asarray(targets)[..., None], -1)[..., 0]
    weights = np.asarray(weights)
    return (weights * (nll + Z * log_z**2)).sum(), (weights * nll).sum()


@pytest.mark.parametrize("chunk", [0, 1, 4, 11, 20])
def test_value_and_gradient(case, chunk):
    config, params, *arrays = case
    config = dataclasses.replace(config, loss_chunk_len=chunk)
    sums = summed_loss(config, params, *arrays, Z)
    objective, nll = numpy_sums(config, params, *arrays)
    assert float(sums.objective) == pytest.approx(objective, rel=1e-6)
    assert float(sums.nll) == pytest.approx(nll, rel=1e-6)

    x_btd, targets_bt, weights_bt = arrays

    def plain(params, x_btd):
        logits = model.unembed(config, params, x_btd)
        log_z = jax.nn.logsumexp(logits, -1)
        nll = log_z - jnp.take_along_axis(logits, targets_bt[..., None], -1)[..., 0]
        return 3 * jnp.sum(weights_bt * (nll + Z * log_z**2))

    ours = jax.grad(lambda p, x: 3 * summed_loss(config, p, x, targets_bt, weights_bt, Z).objective, (0, 1))
    theirs = jax.grad(plain, (0, 1))(params, x_btd)
    difference = jax.tree.map(jnp.subtract, ours(params, x_btd), theirs)
    assert optax.tree.norm(difference) < 1e-6 * optax.tree.norm(theirs)


def test_logits_of_a_whole_batch_never_exist(case):
    """With chunks, the largest temporary of the gradient's program is far below the logits of all rows."""
    config = dataclasses.replace(case[0], vocab_size=8192)

    def temporaries(chunk):
        cfg = dataclasses.replace(config, loss_chunk_len=chunk)
        params = jax.eval_shape(lambda: model.init(cfg, jax.random.key(0)))
        x = jax.ShapeDtypeStruct((4, 256, cfg.embed_dim), jnp.float32)
        ints = jax.ShapeDtypeStruct((4, 256), jnp.int32)
        run = jax.jit(jax.grad(lambda p, x, t, w: summed_loss(cfg, p, x, t, w).objective, (0, 1)))
        return run.lower(params, x, ints, ints).compile().memory_analysis().temp_size_in_bytes

    logits = 4 * 256 * 8192 * 4
    assert temporaries(0) > logits and temporaries(8) < 0.3 * logits
