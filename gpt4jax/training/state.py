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
    """The number of finished steps, the parameters and the optimizer's moments."""

    step: jax.Array
    params: Params
    moments: Any


def new_state(config: model.Config, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    """The state before the first step, a pure function of the seed."""
    return started_from(model.init(config, jax.random.key(seed)), optimizer)


def started_from(params: Params, optimizer: optax.GradientTransformation) -> TrainState:
    """The state before the first step from given parameters."""
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params))


def abstract_state(config: model.Config, optimizer: optax.GradientTransformation) -> TrainState:
    """Shapes and types of the state; nothing is allocated."""
    return jax.eval_shape(lambda: new_state(config, optimizer, 0))


def state_shardings(config: model.Config, optimizer: optax.GradientTransformation, mesh: Mesh) -> Any:
    """A TrainState of shardings, one for every leaf: a moment lies like its parameter, counters are on every device."""
    shardings = partition.param_shardings(config, mesh)
    everywhere = partition.replicated(mesh)
    moments = optax.tree_utils.tree_map_params(
        optimizer,
        lambda _, sharding: sharding,
        abstract_state(config, optimizer).moments,
        shardings,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, shardings, moments)  # type: ignore[arg-type]
