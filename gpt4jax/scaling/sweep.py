"""Sweeps over learning rates, widths, depths and seeds in one process: the config they share, and one short run."""

import dataclasses
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from gpt4jax import config as configuration
from gpt4jax import files, model
from gpt4jax.data import text
from gpt4jax.data.loader import shuffled
from gpt4jax.errors import UserError
from gpt4jax.model import mup
from gpt4jax.training import optimizer, state, step
from gpt4jax.training.step import Batch


def default() -> ml_collections.ConfigDict:
    """The config of a run with the group `sweep`; every key and its meaning."""
    c = configuration.default().unlock()
    c.sweep = s = ml_collections.ConfigDict()
    s.widths = (32, 64, 128, 256, 512)  # embed_dim, at the config's depth
    s.depths = (2, 4, 8, 16)  # num_layers, at the config's width
    s.learning_rates = tuple(2.0 ** (-k / 2) for k in range(20, 8, -2))  # peaks that are tried
    s.grow = "head_dim"  # what grows with embed_dim: "head_dim" (as many heads), or "num_heads"
    s.seeds = 3  # of each: other first parameters, and the rows in another order
    s.tail = 0.1  # fraction of the steps, the last, whose mean training loss is a run's result
    s.coordinate_widths = (32, 64, 128, 256, 512, 1024, 2048)  # of the coordinate check
    s.coordinate_steps = 10  # ... and how many steps it takes
    return c.lock()


class Options(NamedTuple):
    """The config group `optimizer` with a learning rate that may be traced."""

    fixed: Any
    learning_rate: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.fixed, name)


def load(config: Any, say: Callable[[str], None]) -> text.TextData:
    """The data of the config."""
    return text.load(config.data, config.model.vocab_size, files.shared_cache(config.data.cache_dir), say)


def shapes(config: Any, sizes: Iterable[tuple[int, int]]) -> dict[tuple[str, int, int], model.Config]:
    """The decoders of (width, depth) pairs, by (parametrisation, width, depth).

    Raises:
        UserError: a size or a number of seeds that can't be.
    """
    configuration.check_values(config)
    configuration.check_packed(config, "a sweep")
    if config.sweep.seeds < 1 or config.sweep.grow not in ("head_dim", "num_heads"):
        raise UserError("sweep.seeds is at least 1, and sweep.grow head_dim or num_heads")
    base = configuration.model_config(config)
    try:
        return {
            (name, *size): mup.grow(dataclasses.replace(base, parametrization=name), *size, by=config.sweep.grow)
            for name in ("mup", "standard")
            for size in sorted(set(sizes))
        }
    except ValueError as error:
        raise UserError(str(error)) from error


def batches(rows: Any, config: Any, num_steps: int, seed: int) -> Batch:
    """The rows of a run's steps, (steps, batch, T): those that `gpt4jax.train` reads with that seed, in its order."""
    order = shuffled(rows, seed)
    each = [order[i] for i in range(num_steps * config.batch_size)]
    stacked = {name: np.stack([row[name] for row in each]) for name in each[0]}
    shape = num_steps, config.batch_size, -1
    return Batch.of({name: jnp.asarray(array.reshape(shape)) for name, array in stacked.items()})


@lru_cache(maxsize=4)
def _programs(config: model.Config, fixed: ml_collections.FrozenConfigDict, num_steps: int):
    """A new state from a seed, and a step with a learning rate: compiled once for all rates and seeds."""

    def train(now, batch, learning_rate):
        options = Options(fixed, learning_rate)
        tx, schedule = optimizer.adamw(options, config, num_steps), optimizer.schedule(options, num_steps)
        now, scalars = step.train_step(config, tx, schedule, now, batch, seed=0)
        return now, scalars["loss"]

    tx = optimizer.adamw(fixed, config, num_steps)
    return jax.jit(lambda seed: state.new_state(config, tx, seed)), jax.jit(train, donate_argnums=0)


def losses(config: model.Config, options: Any, batches: Batch, learning_rate: float, seed: int) -> np.ndarray:
    """The training loss of every step of one run, nats per token, (steps,).

    `options` is the config group `optimizer`, whose learning rate is not used; `seed` is of the first parameters.
    """
    num_steps = batches.tokens_bt.shape[0]
    new, train = _programs(config, ml_collections.FrozenConfigDict(options), num_steps)
    now, out = new(seed), []
    for i in range(num_steps):
        now, loss = train(now, jax.tree.map(lambda leaf, i=i: leaf[i], batches), learning_rate)
        out.append(loss)
    return np.asarray(jax.device_get(out))
