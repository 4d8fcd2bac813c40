"""Between the parameter table and tensors in Hugging Face's layout: names, shapes, slices, and placing on devices."""

import math
from collections.abc import Callable, Mapping
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Sharding, SingleDeviceSharding

from gpt4jax import model
from gpt4jax.model.parameters import Parameter, Params, table, tree


class Tensors(Protocol):
    """The tensors of some file or folder, by their names and in their shapes in Hugging Face's layout."""

    stored: str  # "bfloat16" if all of them are, else "float32"

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """The shape of every tensor."""
        ...

    def read(self, name: str) -> np.ndarray:
        """One tensor; best a view of the memory-mapped file, which costs nothing until it is indexed."""
        ...


def _two_sides(row: Parameter) -> tuple[int, ...]:
    """One layer's parameter as a matrix (in, out) or a vector: the embed axis is one whole side of a matrix."""
    shape, axes = row.shape, row.axes
    if axes[0] == "layers":
        shape, axes = shape[1:], axes[1:]
    if row.role == "vector":
        return (math.prod(shape),)
    split = 1 if axes[0] == "embed" else len(shape) - 1
    return math.prod(shape[:split]), math.prod(shape[split:])


def expected(config: model.Config) -> dict[str, list[tuple[Parameter, int]]]:
    """For every tensor of a decoder's weights, the parameters and their layer that it holds, in order."""
    out: dict[str, list[tuple[Parameter, int]]] = {}
    rows = table(config)
    for row in (row for row in rows if row.group in ("embed", "shared")):
        out[row.hf_name] = [(row, 0)]
    for layer in range(config.num_layers):
        for row in (row for row in rows if row.group == "layers"):
            out.setdefault(row.hf_name.format(layer=layer), []).append((row, layer))
    for row in (row for row in rows if row.group == "final"):
        out[row.hf_name] = [(row, 0)]
    return out


def hf_shape(row: Parameter) -> tuple[int, ...]:
    """The shape of the tensor that a parameter is in."""
    sides = _two_sides(row)
    if row.hf_part is not None:
        sides = (*sides[:-1], sum(row.hf_part[1]))
    return sides[::-1] if row.hf_transposed else sides


def from_hf(row: Parameter, tensor: np.ndarray) -> np.ndarray:
    """One layer's parameter in our shape: a view of the tensor that holds it."""
    if row.hf_transposed:
        tensor = tensor.T
    if row.hf_part is not None:
        index, sizes = row.hf_part
        start = sum(sizes[:index])
        tensor = tensor[..., start : start + sizes[index]]
    return tensor.reshape(row.shape[1:] if row.group == "layers" else row.shape)


def to_hf(parts: list[tuple[Parameter, np.ndarray]]) -> np.ndarray:
    """The tensor of one layer's parameters that share it; the inverse of `from_hf`."""
    joined = np.concatenate([array.reshape(_two_sides(row)) for row, array in parts], axis=-1)
    return np.ascontiguousarray(joined.T if parts[0][0].hf_transposed else joined)


def place(config: model.Config, tensors: Tensors, shardings=None) -> Params:
    """Parameters in `config.param_dtype` on devices, read shard by shard.

    On the host there is never more than one shard of one parameter (and one tensor, where a tensor has to be
    computed, as GGUF's); equal shards, which are copies, are read once.

    Args:
        config: the decoder.
        tensors: those of a file or a folder, of the right names and shapes.
        shardings: a tree in the parameters' structure, such as `partition.param_shardings`; None: one device.
    """
    one = SingleDeviceSharding(jax.local_devices()[0])
    dtype = jnp.dtype(config.param_dtype)

    def read(row: Parameter) -> jax.Array:
        sharding = one if shardings is None else shardings[row.group][row.name]
        return _array(row.shape, sharding, lambda index: _shard(row, tensors, index, dtype))

    return tree(config, read)


def _array(shape: tuple[int, ...], sharding: Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]) -> jax.Array:
    # Not jax.make_array_from_callback, which holds the shards of all devices on the host before it moves one.
    devices: dict[tuple, list[jax.Device]] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        bounds = tuple(part.indices(size)[:2] for part, size in zip(index or (), shape, strict=True))
        devices.setdefault(bounds, []).append(device)
    arrays = []
    for bounds, copies in devices.items():
        shard = read(tuple(slice(*bound) for bound in bounds))
        # Left alone, jax on a CPU may use the array where it lies: copies would share it, and steps update them.
        arrays += [jax.device_put(shard, device, may_alias=False) for device in copies]
        jax.block_until_ready(arrays)
    return jax.make_array_from_single_device_arrays(shape, sharding, arrays)


def _shard(row: Parameter, tensors: Tensors, index: tuple[slice, ...], dtype: np.dtype) -> np.ndarray:
    out = np.empty([part.stop - part.start for part in index], dtype)
    if row.group != "layers":
        out[...] = from_hf(row, tensors.read(row.hf_name))[index]
        return out
    for i, layer in enumerate(range(index[0].start, index[0].stop)):
        out[i] = from_hf(row, tensors.read(row.hf_name.format(layer=layer)))[index[1:]]
    return out
