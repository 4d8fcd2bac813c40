"""Shardings of parameters and batches, from the parameter table and the one table of rules."""

import math
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt4jax.model import axes, context
from gpt4jax.model.config import Config
from gpt4jax.model.parameters import Parameter, table, tree
from gpt4jax.model.transformer_xl import MEMORY_AXES, Memory


def check(config: Config, mesh: Mesh, batch_size: int, micro_batches: int = 1, seq_len: int = 0) -> None:
    """Checks that every parameter and the batch, of rows of `seq_len` tokens (0: not known), divide over the mesh.

    Raises:
        ValueError: in words, naming the array, its axis and the mesh axis.
    """
    check_parameters(config, mesh)
    if mesh.shape[context.AXIS] > 1:
        if config.position == "transformer_xl":
            raise ValueError(
                f"model.position 'transformer_xl' keeps tokens as a memory, which mesh axis {context.AXIS} = "
                f"{mesh.shape[context.AXIS]} does not divide; it must be 1"
            )
        context.check(seq_len, mesh.shape[context.AXIS])
    if batch_size % micro_batches:
        raise ValueError(f"batch_size {batch_size} is not a multiple of optimizer.micro_batches {micro_batches}")
    shards = math.prod(mesh.shape[axis] for axis in axes.RULES["act_batch"])
    if (batch_size // micro_batches) % shards:
        of = f"a micro-batch of {batch_size // micro_batches} rows" if micro_batches > 1 else f"batch_size {batch_size}"
        raise ValueError(f"{of} does not divide over the mesh's data x fsdp = {shards} shards")


def check_parameters(config: Config, mesh: Mesh) -> None:
    """Checks that every parameter divides over the mesh.

    Raises:
        ValueError: in words, naming the parameter, its axis and the mesh axis.
    """
    for row in table(config):
        _check_parameter(row, mesh)


def _check_parameter(row: Parameter, mesh: Mesh) -> None:
    axes.spec(row.axes)
    for axis, size in zip(row.axes, row.shape, strict=True):
        over = axes.RULES[axis]
        shards = math.prod(mesh.shape[mesh_axis] for mesh_axis in over)
        if size % shards:
            raise ValueError(
                f"parameter {row.group}/{row.name}: its {axis} axis of {size} does not divide over "
                f"mesh axis {' x '.join(over)} = {shards}"
            )


def param_shardings(config: Config, mesh: Mesh) -> dict[str, dict[str, NamedSharding]]:
    """A tree of shardings in the parameters' structure.

    Raises:
        ValueError: a parameter whose axes have no rule or collide.
    """
    return tree(config, lambda row: NamedSharding(mesh, axes.spec(row.axes)))


def replicated(mesh: Mesh) -> NamedSharding:
    """The whole array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Rows over data and fsdp: of any array whose first axis is the batch.

    All shards of a row have it as a whole: it is integers, which attention asks for every key.
    """
    return NamedSharding(mesh, axes.spec(("act_batch",)))


def memory_sharding(mesh: Mesh) -> Memory:
    """A memory of shardings: its rows where the batch's are."""
    return Memory(NamedSharding(mesh, axes.spec(MEMORY_AXES)), batch_sharding(mesh))  # type: ignore[arg-type]


def bytes_per_device(tree_of_shapes: Any, shardings: Any) -> int:
    """Bytes that one device holds of a tree of arrays under a tree of shardings."""
    sizes = jax.tree.map(
        lambda leaf, sharding: math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        tree_of_shapes,
        shardings,
    )
    return sum(jax.tree.leaves(sizes))
