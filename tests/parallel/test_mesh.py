"""Meshes: sizes that fit or are refused in words, and slices between which `data` alone lies."""

import types

import jax
import pytest

from gpt4jax.parallel import mesh as meshes


def test_sizes_with_one_left_to_the_devices():
    assert meshes.mesh_shape({"data": -1, "fsdp": 2, "tensor": 2}, 8) == (2, 2, 2, 1)
    assert meshes.mesh_shape({"fsdp": 2, "context": -1}, 8) == (1, 2, 1, 4)
    for sizes in ({"data": 3}, {"data": -1, "fsdp": 3}, {"data": -1, "context": -1}, {"data": 0, "fsdp": 8}):
        with pytest.raises(ValueError, match="mesh \\(data"):
            meshes.mesh_shape(sizes, 8)
    with pytest.raises(ValueError, match="does not fit 8 devices"):
        meshes.make_mesh({"data": 4})


def test_slices_must_be_those_of_the_devices_and_divide_data():
    assert meshes.make_mesh({"data": 4, "tensor": 2, "slices": 2}).devices.ravel().tolist() == jax.devices()
    with pytest.raises(ValueError, match="data = 1 does not divide over 2 slices"):
        meshes.make_mesh({"fsdp": 8, "slices": 2})


class Chip(types.SimpleNamespace):
    """As much of a TPU's device as a mesh asks for."""

    __hash__ = object.__hash__


def chips(slices: int) -> list[Chip]:
    """2 x 2 chips a slice, slice by slice."""
    return [
        Chip(id=4 * s + 2 * y + x, slice_index=s, coords=(x, y, 0), core_on_chip=0, platform="tpu", process_index=s,
             device_kind="TPU v5 lite")
        for s in range(slices) for y in range(2) for x in range(2)
    ]  # fmt: skip


def placed(monkeypatch, sizes, devices):
    """The array of devices that `make_mesh` arranges."""
    monkeypatch.setattr(meshes, "Mesh", lambda array, names, axis_types: array)
    return meshes.make_mesh(sizes, devices)


def test_between_slices_lies_data_alone(monkeypatch):
    array = placed(monkeypatch, {"data": 4, "fsdp": -1}, chips(2))
    assert array.shape == (4, 2, 1, 1)
    assert [{chip.slice_index for chip in part.ravel()} for part in array] == [{0}, {0}, {1}, {1}]
    with pytest.raises(ValueError, match="slices is 4; the devices are those of 2"):
        placed(monkeypatch, {"data": 4, "fsdp": -1, "slices": 4}, chips(2))
    with pytest.raises(ValueError, match="data = 1 does not divide over 2 slices"):
        placed(monkeypatch, {"fsdp": 8}, chips(2))


def test_a_mesh_that_no_torus_has_is_arranged_all_the_same(monkeypatch):
    array = placed(monkeypatch, {"data": 1, "fsdp": 4}, chips(1))
    assert sorted(chip.id for chip in array.ravel()) == [0, 1, 2, 3]
