"""The device mesh of a run: `data`, `fsdp` and `tensor` axes."""

import math
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from gpt4jax.model.axes import MESH_AXES


def mesh_shape(sizes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """The sizes of the mesh axes in order, with at most one -1 filled in from the number of devices.

    Raises:
        ValueError: sizes whose product is not the number of devices.
    """
    shape = [sizes[axis] for axis in MESH_AXES]
    shown = ", ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise ValueError(f"mesh ({shown}): sizes must be positive, at most one of them -1")
    if -1 in shape:
        shape[shape.index(-1)] = max(1, devices // -math.prod(shape))
    if math.prod(shape) != devices:
        raise ValueError(f"mesh ({shown}) does not fit {devices} device{'s' * (devices != 1)}")
    return tuple(shape)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None, *, arranged: bool = True) -> Mesh:
    """A mesh over all devices (or the given ones) with Auto axis types: XLA places what we don't constrain.

    `arranged` puts neighbours in the mesh on neighbouring chips; without it they lie as they come.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    if not arranged:
        return Mesh(np.reshape(devices, shape), MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    return jax.make_mesh(shape, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES), devices=devices)
