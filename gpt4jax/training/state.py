"""What a training run carries from step to step, and how it lies on a mesh."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gpt4jax import model
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import partition


class TrainState(NamedTuple):
    """The number of finished steps, the parameters, the optimizer's moments, and the memory of the rows, if any."""

    step: jax.Array
    params: Params
    moments: Any
    memory: model.Memory | None = None


def new_state(config: model.Config, optimizer: optax.GradientTransformation, seed: int, rows: int = 0) -> TrainState:
    """The state before the first step, a pure function of the seed; `rows` as in `started_from`."""
    return started_from(model.init(config, jax.random.key(seed)), config=config, optimizer=optimizer, rows=rows)


def started_from(
    params: Params, *, config: model.Config, optimizer: optax.GradientTransformation, rows: int = 0
) -> TrainState:
    """The state before the first step from given parameters. `rows`, those of a batch, is for a decoder with memory.

    Raises:
        ValueError: such a decoder without rows.
    """
    memory = None
    if config.memory_len:
        if not rows:
            raise ValueError("the memory of a decoder with memory_len is that of a batch: how many rows has it?")
        memory = model.init_memory(config, rows)
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), memory)


def abstract_state(config: model.Config, optimizer: optax.GradientTransformation, rows: int = 0) -> TrainState:
    """Shapes and types of the state; nothing is allocated."""
    return jax.eval_shape(lambda: new_state(config, optimizer, 0, rows))


def laid_out(abstract: Any, shardings: Any) -> Any:
    """Shapes and types with the shardings of a tree of the same structure."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), abstract, shardings
    )


def moment_shardings(optimizer: optax.GradientTransformation, abstract: Any, shardings: Any, mesh: Mesh) -> Any:
    """Shardings of the moments of parameters with such shapes and shardings: a moment lies like its parameter."""
    everywhere = partition.replicated(mesh)
    return optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, jax.eval_shape(optimizer.init, abstract), shardings,
        transform_non_params=lambda _: everywhere,
    )  # fmt: skip


def state_shardings(config: model.Config, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A TrainState of shardings, one for every leaf: a moment lies like its parameter, counters are on every device.

    A memory lies as the rows do.
    """
    shardings = partition.param_shardings(config, mesh)
    abstract = jax.eval_shape(lambda: model.init(config, jax.random.key(0)))
    moments = moment_shardings(optimizer, abstract, shardings, mesh)
    memory = partition.memory_sharding(mesh) if config.memory_len else None
    return TrainState(partition.replicated(mesh), shardings, moments, memory)  # type: ignore[arg-type]
