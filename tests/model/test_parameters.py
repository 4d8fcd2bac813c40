"""The parameter table: exact sizes of published models, and what reads the table."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.model import axes, parameters

LLAMA = dict(norm="rmsnorm", position="rope", activation="swiglu", use_bias=False)
FULL_SIZE = {
    "gpt2_1.5b": (model.Config(50257, 48, 1600, 25, 25, 64, 6400, 1024), 1_557_611_200),
    "gpt3_175b": (model.Config(50257, 96, 12288, 96, 96, 128, 49152, 2048), 174_604_259_328),
    "llama3_70b": (
        model.Config(128256, 80, 8192, 64, 8, 128, 28672, 8192, tie_embeddings=False, **LLAMA),
        70_553_706_496,
    ),
    "smollm2_135m": (model.Config(49152, 30, 576, 9, 3, 64, 1536, 2048, rope_theta=1e5, **LLAMA), 134_515_008),
}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_shapes_without_allocating(name):
    config, published = FULL_SIZE[name]
    abstract = jax.eval_shape(lambda key: model.init(config, key), jax.random.key(0))
    shapes = [math.prod(leaf.shape) for leaf in jax.tree.leaves(abstract)]
    print(f"{name}: {sum(shapes):,}")
    assert sum(shapes) == published == parameters.count(config)["total"]


def test_count_by_group_by_hand():
    config = model.Config(10, 2, 4, 2, 1, 2, 5, 7, tie_embeddings=False, **LLAMA)
    # attention: q 4*2*2, k and v 4*1*2 each, out 2*2*4; mlp: three 4*5; norms: two a layer and one of width 4
    assert parameters.count(config) == {
        "embed": 40,
        "attention": 2 * (16 + 8 + 8 + 16),
        "mlp": 2 * 60,
        "norm": 5 * 4,
        "unembed": 40,
        "total": 40 + 96 + 120 + 20 + 40,
    }
    gpt = dataclasses.replace(config, norm="layernorm", position="learned", activation="gelu", use_bias=True)
    assert parameters.count(gpt) == {
        "embed": 40 + 28,
        "attention": 2 * (48 + 4 + 2 + 2 + 4),
        "mlp": 2 * (40 + 5 + 4),
        "norm": 5 * 8,
        "unembed": 40,
        "total": 68 + 120 + 98 + 40 + 40,
    }


def test_init_follows_the_table(shape):
    config = model.Config(**shape, qk_norm=True)
    params = model.init(config, jax.random.key(3))
    rows = parameters.table(config)
    assert len(rows) == len(jax.tree.leaves(params))
    for row in rows:
        leaf = np.asarray(params[row.group][row.name])
        assert leaf.shape == row.shape and len(row.axes) == leaf.ndim
        if row.std:
            assert leaf.std() == pytest.approx(row.std, rel=0.15) and abs(leaf.mean()) < row.std
        else:
            assert (leaf == row.fill).all()
        assert row.decay == (row.role != "vector")
    residual = {row.name: row.std for row in rows if row.name in ("out_nhd", "down_fd")}
    assert residual == pytest.approx(dict.fromkeys(residual, 0.3 / math.sqrt(4)))


def test_a_parameters_values_do_not_depend_on_the_others(shape):
    tied = model.init(model.Config(**{**shape, "tie_embeddings": True}), jax.random.key(0))
    untied = model.init(model.Config(**{**shape, "tie_embeddings": False}), jax.random.key(0))
    assert "unembed_vd" in untied["final"] and "unembed_vd" not in tied["final"]
    for name, leaf in tied["layers"].items():
        assert jnp.array_equal(leaf, untied["layers"][name])
    assert not jnp.array_equal(tied["layers"]["key_dkh"], tied["layers"]["value_dkh"])


def test_parameters_of_another_shape_are_refused(shape):
    config = model.Config(**shape)
    params = model.init(config, jax.random.key(0))
    with pytest.raises(Exception, match="up_df|layers"):
        model.apply(dataclasses.replace(config, mlp_dim=16), params, jnp.zeros((1, 4), jnp.int32))


def test_every_axis_of_the_table_has_a_rule(shape):
    for row in parameters.table(model.Config(**shape, qk_norm=True)):
        assert len(axes.spec(row.axes)) == len(row.shape)


def test_unknown_and_colliding_axes_are_errors():
    with pytest.raises(ValueError, match="'mpl' has no sharding rule"):
        axes.spec(("embed", "mpl"))
    with pytest.raises(ValueError, match="collide: mesh axis 'tensor'"):
        axes.spec(("mlp", "heads"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"norm": "batchnorm"}, "model.norm is 'batchnorm'; it must be one of layernorm, rmsnorm"),
        ({"num_kv_heads": 3}, "num_heads 4 is not a multiple of num_kv_heads 3"),
        ({"attention": ("dense",) * 3}, "cycle of 3 patterns"),
        ({"embed_dim": 0}, "model.embed_dim is 0"),
        ({"dropout": 1.0}, "dropout"),
        ({"position": "rope", "head_dim": 7}, "odd"),
    ],
)
def test_impossible_configs_say_why(shape, change, words):
    with pytest.raises(ValueError, match=words):
        model.Config(**{**shape, **change})
