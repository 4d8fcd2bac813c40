"""Checkpoints in one process: round trips over meshes, damage, and a disk that fails."""

import time

import jax
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.parallel import mesh as meshes
from gpt4jax.training import checkpoint
from gpt4jax.training import optimizer as optimizers
from gpt4jax.training import state as states
from tests.conftest import SHAPES
from tests.training.test_step import options

CONFIG = model.Config(**SHAPES["gpt"])
OPTIMIZER = optimizers.adamw(options(), CONFIG, 20)


def abstract(mesh):
    shardings = states.state_shardings(CONFIG, OPTIMIZER, mesh)
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        states.abstract_state(CONFIG, OPTIMIZER),
        shardings,
    )


def on(data, fsdp, tensor):
    return meshes.make_mesh({"data": data, "fsdp": fsdp, "tensor": tensor})


@pytest.fixture(scope="module")
def state():
    made = jax.jit(lambda: states.new_state(CONFIG, OPTIMIZER, 0))()
    return made._replace(step=made.step + 5)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.fixture
def saved(tmp_path, state):
    """A workdir with steps 5 and 6."""
    checkpoints = checkpoint.Checkpoints(tmp_path, 2)
    for step in (4, 5, 6):
        checkpoints.save(state._replace(step=state.step * 0 + step))
    checkpoints.close()
    return tmp_path


def restore(workdir, mesh=None):
    said = []
    checkpoints = checkpoint.Checkpoints(workdir, 2)
    try:
        return checkpoints.restore(abstract(mesh or on(8, 1, 1)), said.append), said
    finally:
        checkpoints.close()


def test_round_trip_over_meshes(saved, state):
    for mesh in (on(8, 1, 1), on(2, 2, 2), on(1, 8, 1)):
        restored, said = restore(saved, mesh)
        assert int(restored.step) == 6 and not said and same(restored.params, state.params)
        assert same(restored.moments, state.moments)
        assert restored.params["layers"]["up_df"].sharding.mesh.shape == mesh.shape
    assert sorted(p.name for p in (saved / "checkpoints").iterdir()) == ["5", "6"]  # keep: 2


def test_parameters_alone(saved, state):
    step, params = checkpoint.load_params(saved, CONFIG, pytest.fail)
    assert step == 6 and same(params, state.params)


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


HARMS = {
    "bit": lambda folder: flip(largest(folder)),
    "truncated": lambda folder: largest(folder).write_bytes(b""),
    "missing": lambda folder: largest(folder).unlink(),
    "manifest": lambda folder: (folder / checkpoint.MANIFEST).write_text("{"),
    "extra": lambda folder: (folder / "params" / "extra").write_text("?"),
}


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_newest_gives_way(saved, state, harm):
    HARMS[harm](saved / "checkpoints" / "6")
    restored, said = restore(saved)
    assert int(restored.step) == 5 and same(restored.params, state.params)
    assert len(said) == 1 and "the checkpoint of step 6 is damaged" in said[0]
    assert (saved / "damaged" / "6").is_dir() and not (saved / "checkpoints" / "6").exists()


def test_all_damaged_is_an_error_and_nothing_is_deleted(saved):
    for step in ("5", "6"):
        flip(largest(saved / "checkpoints" / step))
    for _ in range(2):  # the second attempt finds none any more, and must not start over
        with pytest.raises(UserError, match="every checkpoint of .* is damaged"):
            restore(saved)
    assert sorted(p.name for p in (saved / "damaged").iterdir()) == ["5", "6"]


def test_nothing_saved_is_no_error(tmp_path):
    assert restore(tmp_path) == (None, [])


def test_what_a_kill_left_half_written_is_ignored(saved):
    (saved / "checkpoints" / "7.orbax-checkpoint-tmp-1").mkdir()
    restored, said = restore(saved)
    assert int(restored.step) == 6 and not said


def test_updates_after_a_save_do_not_reach_it(tmp_path, state):
    """The state is donated to the next step while the checkpoint is still being written."""
    update = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    checkpoints = checkpoint.Checkpoints(tmp_path, 2)
    moving = jax.tree.map(lambda x: x.copy(), state)
    for _ in range(3):
        expected = jax.device_get(jax.tree.map(lambda x: x.copy(), moving))
        checkpoints.save(moving)
        moving = update(moving)
    checkpoints.close()
    restored, _ = restore(tmp_path)
    assert same(restored, expected)


def poll(checkpoints):
    for _ in range(200):
        checkpoints.check()
        time.sleep(0.05)


def test_a_failed_save_is_found_while_training_goes_on(tmp_path, state, monkeypatch):
    checkpoints = checkpoint.Checkpoints(tmp_path, 2)
    for step in (4, 5):
        checkpoints.save(state._replace(step=state.step * 0 + step))
    checkpoints.wait()

    def full(folder, names):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.files, "checksums", full)
        checkpoints.save(state._replace(step=state.step * 0 + 6))
        with pytest.raises(UserError, match="No space left on device.*the one of step 5 is untouched"):
            poll(checkpoints)
    checkpoints.close()
    assert checkpoint.saved_steps(tmp_path) == [4, 5]
