"""One optimizer step must not depend on micro-batches, rematerialisation, layers' lowering or the mesh."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt4jax import config as configuration
from gpt4jax import model
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from gpt4jax.training import optimizer as optimizers
from gpt4jax.training import state as states
from gpt4jax.training.step import Batch, gradients, train_step
from tests.conftest import SHAPES

MESHES = [(8, 1, 1, 1), (1, 4, 2, 1), (2, 2, 1, 2), (1, 2, 2, 2), (1, 2, 1, 4), (1, 1, 1, 8)]
STEPS, ROWS, T = 20, 8, 16


def options(**changes):
    o = configuration.default().optimizer.copy_and_resolve_references()
    o.update(warmup_steps=5, learning_rate=3e-3, **changes)
    return o


def make_batch(seed: int) -> Batch:
    """Packed rows of documents of random lengths; rows 0 and 5 end in much padding, so that weights differ."""
    rng = np.random.default_rng(seed)
    segments, positions = np.zeros((ROWS, T), np.int32), np.zeros((ROWS, T), np.int32)
    for row in range(ROWS):
        at, document = 0, 0
        while at < (6 if row in (0, 5) else T):
            length = min(int(rng.integers(2, 9)), T - at)
            document += 1
            segments[row, at : at + length] = document
            positions[row, at : at + length] = np.arange(length)
            at += length
    tokens = rng.integers(0, 96, (ROWS, T + 1)).astype(np.int32)
    return Batch(tokens[:, :-1], tokens[:, 1:], segments, positions, (segments > 0).astype(np.int32))


def run(config, mesh_sizes=None, micro_batches=1, steps=STEPS):
    """Parameters after some steps on a mesh (None: one device), from the same seed and batches."""
    optimizer = optimizers.adamw(options(), config, STEPS)
    step = partial(
        train_step,
        config,
        optimizer,
        optimizers.schedule(options(), STEPS),
        seed=0,
        micro_batches=micro_batches,
        z_loss=1e-3,
    )
    init = partial(states.new_state, config, optimizer, 0)
    devices = jax.devices()[:1] if mesh_sizes is None else jax.devices()
    mesh = meshes.make_mesh(dict(zip(meshes.MESH_AXES, mesh_sizes or (1, 1, 1, 1), strict=False)), devices)
    partition.check(config, mesh, ROWS, micro_batches, T)
    shardings = states.state_shardings(config, optimizer, mesh)
    with jax.set_mesh(mesh):
        state = jax.jit(init, out_shardings=shardings)()
        jitted = jax.jit(
            step,
            in_shardings=(shardings, partition.batch_sharding(mesh)),
            out_shardings=(shardings, partition.replicated(mesh)),
            donate_argnums=0,
        )
        for i in range(steps):
            batch = jax.device_put(make_batch(i % 4), partition.batch_sharding(mesh))
            state, scalars = jitted(state, batch)
    return jax.device_get(state.params), jax.device_get(scalars)


def farthest(ours, theirs):
    """The largest difference of two sets of parameters, but for key biases.

    The true gradient of these is zero: Adam turns rounding into whole steps.
    """
    pairs = zip(jax.tree.leaves_with_path(ours), jax.tree.leaves(theirs), strict=True)
    return max(np.abs(a - b).max() for (path, a), b in pairs if "key_bias" not in jax.tree_util.keystr(path))


@pytest.fixture(scope="module")
def exact():
    """Parameters after 20 float64 steps on one device, by shape."""
    with jax.enable_x64(True):
        return {name: run(float64(name)) for name in SHAPES}


def float64(name):
    return model.Config(**SHAPES[name] | dict(dtype="float64", param_dtype="float64", attention=("dense", "banded:5")))


VARIANTS = {
    "micro-batches": (dict(), dict(micro_batches=4)),
    "remat full": (dict(remat="full"), {}),
    "remat dots, unrolled": (dict(remat="dots", layers="unroll"), {}),
    "chunked loss": (dict(loss_chunk_len=5), {}),
    "micro-batches on a mesh": (dict(), dict(micro_batches=2, mesh_sizes=(2, 2, 2, 1))),
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_train_to_the_same_parameters(exact, name, variant):
    changes, how = VARIANTS[variant]
    with jax.enable_x64(True):
        params, _ = run(dataclasses.replace(float64(name), **changes), **how)
    assert farthest(params, exact[name][0]) <= 1e-9


RING = dict(context_method="ring")
OTHERWISE = {  # than a GPT, its layers scanned, batches whole, context by all-gather
    (1, 4, 2, 1): ("llama", {}, 1),
    (2, 2, 1, 2): ("gpt", RING | dict(layers="unroll"), 2),
    (1, 2, 2, 2): ("llama", dict(loss_chunk_len=5, remat="full"), 2),
    (1, 2, 1, 4): ("llama", RING | dict(loss_chunk_len=5), 1),
}


@pytest.mark.parametrize("sizes", MESHES)
def test_meshes_train_to_the_same_parameters(exact, sizes):
    """A sample of `python -m tests.bench.meshes`."""
    name, changes, micro_batches = OTHERWISE.get(sizes, ("gpt", {}, 1))
    with jax.enable_x64(True):
        params, scalars = run(dataclasses.replace(float64(name), **changes), sizes, micro_batches)
    assert farthest(params, exact[name][0]) <= 1e-9
    assert scalars["loss"] == pytest.approx(float(exact[name][1]["loss"]), abs=1e-9)


def test_sharded_parameters_lie_as_the_table_says():
    config = model.Config(**SHAPES["gpt"])
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    shardings = states.state_shardings(config, optimizers.adamw(options(), config, STEPS), mesh)
    up = shardings.params["layers"]["up_df"]
    assert up.shard_shape((2, 32, 64)) == (2, 16, 32)
    assert up in jax.tree.leaves(shardings.moments)
    abstract = states.abstract_state(config, optimizers.adamw(options(), config, STEPS))
    total = sum(leaf.size * 4 for leaf in jax.tree.leaves(abstract.params))
    held = partition.bytes_per_device(abstract.params, shardings.params)
    assert total / 4 < held < total / 3  # most are in four parts; norms and a few biases are whole


@pytest.mark.parametrize("name", SHAPES)
def test_float32_gradients_agree(name):
    """First-step gradients of micro-batches, remat and meshes, against one device: norm-wise 1e-5."""
    config = model.Config(**SHAPES[name])
    params = model.init(config, jax.random.key(0))
    batch = make_batch(0)

    def grads(config, micro_batches=1):
        return jax.jit(partial(gradients, config, micro_batches=micro_batches))(params, batch)[0]

    base = grads(config)
    others = [grads(config, 4), grads(dataclasses.replace(config, remat="full", layers="unroll"))]
    for sizes in MESHES[1:3] if name == "gpt" else MESHES[4:5]:
        method = OTHERWISE.get(sizes, ("", {}, 1))[1].get("context_method", "gather")
        mesh = meshes.make_mesh(dict(zip(meshes.MESH_AXES, sizes, strict=True)))
        with jax.set_mesh(mesh):
            placed = jax.device_put(params, partition.param_shardings(config, mesh))
            rows = jax.device_put(batch, partition.batch_sharding(mesh))
            one = dataclasses.replace(config, context_method=method)
            others.append(jax.jit(partial(gradients, one))(placed, rows)[0])
    for other in others:
        difference = jax.tree.map(lambda a, b: np.asarray(a) - np.asarray(b), base, other)
        assert optax.tree.norm(difference) <= 1e-5 * optax.tree.norm(base)


@pytest.mark.parametrize(
    ("sizes", "method"), [((2, 2, 2, 1), "gather"), ((1, 2, 2, 2), "gather"), ((1, 2, 2, 2), "ring")]
)
def test_no_activation_is_replicated_to_be_resharded(capfd, sizes, method):
    """XLA says so on stderr when it finds no way between two shardings but the whole array on every device."""
    config = model.Config(**SHAPES["gpt"] | dict(loss_chunk_len=4, context_method=method))
    mesh = meshes.make_mesh(dict(zip(meshes.MESH_AXES, sizes, strict=True)))
    with jax.set_mesh(mesh):
        params = jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
            jax.eval_shape(lambda: model.init(config, jax.random.key(0))), partition.param_shardings(config, mesh),
        )  # fmt: skip
        row = jax.ShapeDtypeStruct((ROWS, T), jnp.int32, sharding=partition.batch_sharding(mesh))
        jax.jit(partial(gradients, config)).lower(params, Batch(row, row, row, row, row)).compile()
    assert "rematerialization" not in capfd.readouterr().err


def test_loss_is_normalised_by_all_target_tokens():
    """Ten padded rows weigh nothing: the loss is that of the tokens, whatever their shard."""
    config = model.Config(**SHAPES["gpt"])
    params = model.init(config, jax.random.key(0))
    batch = make_batch(0)
    logits = np.asarray(model.apply(config, params, batch.tokens_bt, segment_ids_bt=batch.segment_ids_bt,
                                    positions_bt=batch.positions_bt), np.float64)  # fmt: skip
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    keep = batch.segment_ids_bt > 0
    expected = -np.take_along_axis(log_p, batch.targets_bt[..., None], -1)[..., 0][keep]
    grads, totals, _ = gradients(config, params, batch, micro_batches=4)
    assert totals.tokens == keep.sum() == totals.bytes
    assert float(totals.nll) == pytest.approx(expected.sum(), rel=1e-6)

    def mean(params):
        logits = model.apply(config, params, batch.tokens_bt, segment_ids_bt=batch.segment_ids_bt,
                             positions_bt=batch.positions_bt)  # fmt: skip
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch.targets_bt)
        return jnp.sum(losses * keep) / keep.sum()

    plain = jax.jit(jax.grad(mean))(params)
    assert optax.tree.norm(jax.tree.map(jnp.subtract, grads, plain)) < 1e-5 * optax.tree.norm(plain)


@pytest.mark.parametrize(
    ("sizes", "rows", "words"),
    [
        ((1, 1, 8), 8, "axis of 4 does not divide over mesh axis tensor = 8"),
        ((8, 1, 1), 12, "batch_size 12 does not divide over the mesh's data x fsdp = 8 shards"),
    ],
)
def test_what_does_not_divide_is_said(sizes, rows, words):
    mesh = meshes.make_mesh(dict(zip(meshes.MESH_AXES, sizes, strict=False)))
    with pytest.raises(ValueError, match=words):
        partition.check(model.Config(**SHAPES["gpt"]), mesh, rows)


def test_schedules_by_hand():
    o = options(schedule="warmup_stable_decay", decay_steps=10, final_fraction=0.0)
    rate = optimizers.schedule(o, 40)
    assert [float(rate(i)) for i in (0, 1, 5, 20, 30, 35, 40)] == pytest.approx(
        [0, 6e-4, 3e-3, 3e-3, 3e-3, 1.5e-3, 0], abs=1e-9
    )
    cosine = optimizers.schedule(options(final_fraction=0.1), 25)
    assert [float(cosine(i)) for i in (5, 15, 25)] == pytest.approx([3e-3, 3e-3 * 0.55, 3e-4], rel=1e-5)
    with pytest.raises(ValueError, match="do not fit into num_steps 3"):
        optimizers.schedule(options(), 3)


def test_adamw_against_numpy():
    """Two steps by the paper's formulas: clipping, bias correction, and decay of matrices only."""
    config = model.Config(**SHAPES["gpt"])
    optimizer = optimizers.adamw(options(weight_decay=0.3, grad_clip_norm=0.5), config, STEPS)
    params = model.init(config, jax.random.key(0))
    moments = optimizer.init(params)
    keys = [jax.random.key(i) for i in (1, 2)]
    grads = [jax.tree.map(lambda p, key=key: jax.random.normal(key, p.shape), params) for key in keys]
    ours = params
    for g in grads:
        updates, moments = optimizer.update(g, moments, ours)
        ours = optax.apply_updates(ours, updates)
    for name, decay in (("up_df", 0.3), ("up_bias_f", 0.0)):
        p = np.asarray(params["layers"][name], np.float64)
        m = v = np.zeros_like(p)
        for i, g in enumerate(grads, 1):
            norm = np.sqrt(sum(np.sum(np.asarray(leaf, np.float64) ** 2) for leaf in jax.tree.leaves(g)))
            g = np.asarray(g["layers"][name], np.float64) * min(1, 0.5 / norm)
            m, v = 0.9 * m + 0.1 * g, 0.95 * v + 0.05 * g**2
            direction = m / (1 - 0.9**i) / (np.sqrt(v / (1 - 0.95**i)) + 1e-8) + decay * p
            p = p - 3e-3 * i / 5 * direction
        np.testing.assert_allclose(ours["layers"][name], p, atol=1e-6)


def test_decay_mask_must_cover_every_parameter():
    config = model.Config(**SHAPES["gpt"])
    params = dict(model.init(config, jax.random.key(0)))
    params["extra"] = {"new": jnp.zeros(3)}
    with pytest.raises(ValueError, match="does not cover"):
        optimizers.adamw(options(), config, STEPS).init(params)
