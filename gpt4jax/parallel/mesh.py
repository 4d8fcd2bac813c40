"""The device mesh of a run: `data`, `fsdp`, `tensor` and `context` axes, over one slice or several."""

import math
from collections.abc import Mapping, Sequence

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from gpt4jax.model.axes import MESH_AXES


def mesh_shape(sizes: Mapping[str, int], devices: int) -> tuple[int, ...]:
    """The sizes of the mesh axes in order, with at most one -1 filled in from the number of devices.

    An axis without a size has 1.

    Raises:
        ValueError: sizes whose product is not the number of devices.
    """
    shape = [sizes.get(axis, 1) for axis in MESH_AXES]
    shown = ", ".join(f"{axis} {size}" for axis, size in zip(MESH_AXES, shape, strict=True))
    if any(size < 1 and size != -1 for size in shape) or shape.count(-1) > 1:
        raise ValueError(f"mesh ({shown}): sizes must be positive, at most one of them -1")
    if -1 in shape:
        shape[shape.index(-1)] = max(1, devices // -math.prod(shape))
    if math.prod(shape) != devices:
        raise ValueError(
            f"mesh ({shown}) does not fit {devices} device{'s' * (devices != 1)}: the sizes must multiply to that"
        )
    return tuple(shape)


def make_mesh(sizes: Mapping[str, int], devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices (or the given ones) with Auto axis types: XLA places what we don't constrain.

    Neighbours in the mesh lie on neighbouring chips as far as the slice allows it. Over several slices, which a slower
    network joins, the `data` axis goes, so that what passes between them is the sums of gradients alone;
    `sizes["slices"]` says how many there are (0 or none: the devices do).

    Raises:
        ValueError: sizes that do not fit the devices, or a `data` axis that does not divide over the slices.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(sizes, len(devices))
    found = {getattr(device, "slice_index", None) for device in devices}
    slices = sizes.get("slices", 0) or len(found)
    virtual = len(found) == 1 and devices[0].platform == "cpu"  # whose processes may stand for slices
    if slices != len(found) and not virtual:
        raise ValueError(f"mesh.slices is {slices}; the devices are those of {len(found)}")
    if shape[0] % slices:
        raise ValueError(f"mesh.data = {shape[0]} does not divide over {slices} slices, between which it must lie")
    if len(found) > 1:
        inner, outer = (shape[0] // slices, *shape[1:]), (slices, *(1 for _ in shape[1:]))
        placed = mesh_utils.create_hybrid_device_mesh(inner, outer, devices, allow_split_physical_axes=True)
    else:  # of one slice; of none there is only the order in which they come, and `data` is outermost
        placed = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    return Mesh(placed, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
