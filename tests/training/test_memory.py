"""Training with a memory: carried from step to step, the same on any mesh and in any number of micro-batches."""

import dataclasses
from functools import partial
from types import SimpleNamespace

import jax
import numpy as np
import optax
import pytest

from gpt4jax import config as configuration
from gpt4jax import model
from gpt4jax.data import cache
from gpt4jax.data.stream import Streams
from gpt4jax.errors import UserError
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from gpt4jax.training import evaluation, step
from gpt4jax.training import optimizer as optimizers
from gpt4jax.training import state as states
from tests.conftest import LLAMA, perturbed
from tests.data.test_rows import TOK, build
from tests.training.test_step import ROWS, STEPS, make_batch, options

CONFIG = model.Config(**LLAMA | dict(position="transformer_xl", memory_len=20, init_std=0.3))


def batch_of(i: int) -> step.Batch:
    """Step i of 8 streams: the documents of its row go on at the end of the row before."""
    batch = make_batch(i)
    first = np.arange(ROWS) % 3  # the first document of some rows goes on, of others it is a new one
    segments = batch.segment_ids_bt + 10 * i - np.where((batch.segment_ids_bt == 1) & (first[:, None] > 0), 8, 0)
    return batch._replace(segment_ids_bt=np.where(batch.segment_ids_bt > 0, segments, 0).astype(np.int32))


def run(mesh_sizes=(1, 1, 1), micro_batches=1):
    """(gradients, totals, memory) of three batches, each behind the memory of those before; and of the third alone."""
    mesh = meshes.make_mesh(dict(zip(meshes.MESH_AXES, mesh_sizes, strict=False)), jax.devices()[: np.prod(mesh_sizes)])
    params, memory = perturbed(CONFIG), model.init_memory(CONFIG, ROWS)
    one = jax.jit(partial(step.gradients, CONFIG, micro_batches=micro_batches))
    out = []
    with jax.set_mesh(mesh):
        params = jax.device_put(params, partition.param_shardings(CONFIG, mesh))
        nothing = memory = jax.device_put(memory, partition.memory_sharding(mesh))
        for i in range(3):
            batch = jax.device_put(batch_of(i), partition.batch_sharding(mesh))
            out.append(one(params, batch, memory))
            memory = jax.device_put(out[-1][2], partition.memory_sharding(mesh))
        without = one(params, batch, nothing)
    return jax.device_get(out), jax.device_get(without)


@pytest.fixture(scope="module")
def alone():
    return run()


def test_a_step_reads_and_leaves_the_memory(alone):
    steps, without = alone
    with_memory, memory = steps[2][1], steps[2][2]
    assert with_memory.tokens == without[1].tokens
    assert abs(with_memory.nll - without[1].nll) > 1e-3 * with_memory.nll
    segments = np.concatenate([batch_of(i).segment_ids_bt for i in range(3)], axis=1)
    assert np.array_equal(memory.segment_bm, segments[:, -20:])  # longer than a row of 16
    assert np.array_equal(memory.h_lbmd[:, :, :4], steps[1][2].h_lbmd[:, :, -4:])


def test_meshes_and_micro_batches_carry_the_same_memory(alone):
    for ours, theirs in zip(run((2, 2, 2), micro_batches=2)[0], alone[0], strict=True):
        difference = jax.tree.map(np.subtract, ours[0], theirs[0])
        assert optax.tree.norm(difference) <= 1e-5 * optax.tree.norm(theirs[0])
        assert ours[1].nll == pytest.approx(theirs[1].nll, rel=1e-5)
        np.testing.assert_allclose(ours[2].h_lbmd, theirs[2].h_lbmd, atol=1e-4)
        assert np.array_equal(ours[2].segment_bm, theirs[2].segment_bm)


def test_evaluation_carries_the_memory_from_batch_to_batch(tmp_path):
    documents = cache.documents(build(tmp_path), TOK, 32)
    config = configuration.default()
    mesh = meshes.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    seen = []

    def eval_step(params, batch, memory):
        seen.append(memory)
        return step.Totals(*np.ones(4)), memory + 1

    data = SimpleNamespace(of=lambda split: documents, asked={})
    measure = evaluation.of_text(config, mesh, data, eval_step, None, lambda: 5)
    measure(None, SimpleNamespace(poll=lambda: False))
    assert seen == [5 + i for i in range(Streams(documents, config.batch_size, None).steps_per_epoch)] and seen[3:]


def test_the_memory_lies_as_the_rows_do():
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    held = states.state_shardings(CONFIG, optimizers.adamw(options(), CONFIG, STEPS), mesh).memory
    assert held.h_lbmd.shard_shape((2, ROWS, 20, 32)) == (2, 2, 20, 32)
    assert held.segment_bm.shard_shape((ROWS, 20)) == (2, 20)


def test_a_state_with_memory_needs_the_rows_of_a_batch():
    optimizer = optimizers.adamw(options(), CONFIG, STEPS)
    with pytest.raises(ValueError, match="how many rows has it"):
        states.abstract_state(CONFIG, optimizer)
    assert states.abstract_state(dataclasses.replace(CONFIG, memory_len=0), optimizer).memory is None
    assert states.abstract_state(CONFIG, optimizer, 4).memory.segment_bm.shape == (4, 20)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data.layout": "packed"}, "it needs data.layout=stream"),
        ({"data.layout": "packed", "model.memory_len": 0, "eval.memory_len": 9}, "it needs data.layout=stream"),
        ({"data.layout": "river"}, "data.layout is 'river'; it must be 'packed' or 'stream'"),
        ({"model.position": "rope", "eval.memory_len": -1}, "eval.memory_len -1 needs model.position=transformer_xl"),
        ({"eval.memory_len": -2}, "eval.memory_len is -2; it must be at least -1"),
        ({"eval.num_rows": 8}, "which a stream has not"),
    ],
)
def test_what_does_not_go_together_is_said(changes, words):
    config = configuration.default()
    config.update_from_flattened_dict(
        {"model.position": "transformer_xl", "model.memory_len": 8, "data.layout": "stream"} | changes
    )
    with pytest.raises(UserError, match=words):
        configuration.check_values(config)


def test_jobs_that_read_single_rows_refuse_streams():
    config = configuration.default()
    config.data.layout = "stream"
    with pytest.raises(UserError, match="a sweep reads single rows: it needs data.layout=packed"):
        configuration.check_packed(config, "a sweep")
