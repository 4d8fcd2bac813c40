"""Silent corruption is found, and the device named, by flipping bits on one of eight virtual devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from gpt4jax.errors import MishapError, UserError
from gpt4jax.parallel import mesh as meshes
from gpt4jax.training import corruption
from gpt4jax.training.state import TrainState

P = PartitionSpec


@pytest.fixture(scope="module")
def held():
    """A state of three leaves: on four devices each, on two, and on one; its shardings and mesh."""
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = {"pairs": P("tensor"), "twins": P("fsdp", "tensor"), "alone": P(("data", "fsdp", "tensor"))}
    rng = np.random.default_rng(0)
    shardings = TrainState(NamedSharding(mesh, P()), {k: NamedSharding(mesh, s) for k, s in specs.items()}, None, None)
    values = TrainState(
        np.int32(6),
        {
            "pairs": rng.normal(size=(4, 6)).astype(np.float32),
            "twins": rng.normal(size=(4, 4)).astype(jnp.bfloat16),
            "alone": rng.normal(size=(16,)),
        },
        None,
        None,
    )
    with jax.enable_x64(True):
        return jax.device_put(values, shardings), shardings, mesh


def flipped(array, number, flat, bit):
    """The array, with one bit of what one device holds another."""
    shards = []
    for shard in array.addressable_shards:
        data = np.array(shard.data)
        if shard.device.id == number:
            raw = data.view(np.uint8).reshape(-1)
            raw[flat * data.dtype.itemsize + bit // 8] ^= 1 << bit % 8
        shards.append(jax.device_put(data, shard.device))
    return jax.make_array_from_single_device_arrays(array.shape, array.sharding, shards)


def growing(state, batch):
    return state._replace(step=state.step + 1, params=jax.tree.map(lambda p: p * 2, state.params)), batch


@pytest.fixture(scope="module")
def check(held):
    _, shardings, mesh = held
    return corruption.Check(growing, (shardings, NamedSharding(mesh, P())), mesh)


def test_on_gpus_it_asks_for_steps_that_are_the_same_each_time(held, monkeypatch):
    _, shardings, mesh = held
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setenv("XLA_FLAGS", "")
    with pytest.raises(UserError, match="XLA_FLAGS=--xla_gpu_deterministic_ops=true"):
        corruption.Check(growing, (shardings, NamedSharding(mesh, P())), mesh)
    monkeypatch.setenv("XLA_FLAGS", "--xla_gpu_deterministic_ops=true")
    corruption.Check(growing, (shardings, NamedSharding(mesh, P())), mesh)


def test_sound_copies_and_steps_pass(held, check):
    with jax.enable_x64(True):
        check.copies(held[0])
        check.step(held[0], jnp.zeros(()))


@pytest.mark.parametrize(
    ("leaf", "bit", "said"),
    [
        ("pairs", 0, r"device 5 of process 0 holds another copy of params/pairs"),
        ("pairs", 31, r"device 5 of process 0 holds another copy of params/pairs"),
        ("twins", 15, r"device 1 of process 0, device 5 of process 0 hold another copy of params/twins"),
    ],
)
def test_a_flipped_bit_is_found_and_its_device_named(held, check, leaf, bit, said):
    state, _, _ = held
    with jax.enable_x64(True):
        wrong = state._replace(params={**state.params, leaf: flipped(state.params[leaf], 5, 1, bit)})
        with pytest.raises(MishapError, match=rf"before step 7: {said}; the same command"):
            check.copies(wrong)


def test_a_checksum_sees_every_bit_and_every_place(held):
    """Of what is held once there is no copy, but the step computed twice compares its checksums."""
    state, shardings, mesh = held
    with jax.enable_x64(True):
        of = lambda tree: np.asarray(corruption.checksums(tree, shardings, mesh))  # noqa: E731
        sums = of(state)
        assert sums.shape == (4, 8) and sums.dtype == np.uint32
        for bit in (0, 31, 32, 63):
            other = of(state._replace(params={**state.params, "alone": flipped(state.params["alone"], 3, 1, bit)}))
            np.testing.assert_array_equal(np.argwhere(other != sums), [[1, 3]])  # leaves in the order of their names
        swapped = state.params["alone"].reshape(8, 2)[:, ::-1].reshape(16)
        assert (of(state._replace(params={**state.params, "alone": swapped}))[1] != sums[1]).all()
    shard = np.asarray(state.params["pairs"].addressable_shards[0].data).view(np.uint32).ravel().astype(object)
    assert sums[2, 0] == sum(int(word) * (2 * i + 1) for i, word in enumerate(shard)) % 2**32


def test_a_step_that_comes_out_different_is_replayed(held, check, monkeypatch):
    state, _, mesh = held
    sound, calls = check._next, []

    def sometimes(state, batch):
        calls.append(batch)
        wrong = state._replace(params={**state.params, "alone": flipped(state.params["alone"], 3, 1, 7)})
        return sound(wrong if len(calls) == 1 else state, batch)

    monkeypatch.setattr(check, "_next", sometimes)
    with jax.enable_x64(True), pytest.raises(MishapError, match="came out the same 3 times") as found:
        check.step(state, jnp.zeros(()))
    assert "step 7, computed 4 times" in str(found.value) and "no device fails the self-test" in str(found.value)
    assert "in what device 3 of process 0 hold" in str(found.value)
    tested = corruption.self_test(mesh)
    assert tested.shape == (8,) and len(set(tested.tolist())) == 1

    monkeypatch.setattr(corruption, "self_test", lambda mesh: np.array([1, 1, 1, 1, 1, 1, 9, 1]))
    calls.clear()
    with jax.enable_x64(True), pytest.raises(MishapError, match="device 6 of process 0 fail the self-test"):
        check.step(state, jnp.zeros(()))
