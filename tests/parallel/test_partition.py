"""What a mesh divides, and what it cannot."""

import dataclasses

import pytest

from gpt4jax import model
from gpt4jax.model import axes
from gpt4jax.model.parameters import table
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from tests.conftest import SHAPES


def mesh_of(*sizes):
    return meshes.make_mesh(dict(zip(meshes.MESH_AXES, sizes, strict=True)))


@pytest.mark.parametrize("name", SHAPES)
def test_every_parameter_has_a_rule_and_shards_of_rows_share_them(name):
    """Devices that hold other tokens of the same rows hold other parts of the matrices too."""
    config = model.Config(**SHAPES[name])
    shardings = partition.param_shardings(config, mesh_of(1, 2, 2, 2))
    parts = {"embed": 4} | dict.fromkeys(("vocab", "mlp", "heads", "kv_heads"), 2)
    for row in table(config):
        shard = shardings[row.group][row.name].shard_shape(row.shape)
        assert shard == tuple(size // parts.get(axis, 1) for size, axis in zip(row.shape, row.axes, strict=True))


def test_a_batch_lies_by_rows_and_whole_on_every_shard_of_a_row():
    assert partition.batch_sharding(mesh_of(1, 2, 1, 4)).shard_shape((8, 16)) == (4, 16)


@pytest.mark.parametrize(
    ("sizes", "changes", "words"),
    [
        ((1, 1, 1, 8), dict(embed_dim=36), "its embed axis of 36 does not divide over mesh axis fsdp x context = 8"),
        ((1, 2, 1, 4), {}, "rows of 20 tokens do not divide over mesh axis context = 4.*a multiple of 8"),
        ((4, 1, 1, 2), dict(position="transformer_xl"), "'transformer_xl' keeps tokens as a memory.*context = 2"),
    ],
)
def test_what_a_mesh_cannot_divide_is_said(sizes, changes, words):
    config = dataclasses.replace(model.Config(**SHAPES["gpt"]), **changes)
    with pytest.raises(ValueError, match=words):
        partition.check(config, mesh_of(*sizes), 8, seq_len=20)


def test_axes_collide_in_words():
    with pytest.raises(ValueError, match="collide: mesh axis 'context' would shard more than one of them"):
        axes.spec(("embed", "act_len"))
    with pytest.raises(ValueError, match="logical axis 'length' has no sharding rule"):
        axes.spec(("length",))
