"""One optimizer step and one evaluation step, as pure functions to be jitted."""

import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt4jax import model
from gpt4jax.model.axes import constrain
from gpt4jax.model.parameters import Params
from gpt4jax.training.loss import LossSums, summed_loss
from gpt4jax.training.state import TrainState


class Batch(NamedTuple):
    """Packed rows, all (B, T) integers. Segment 0 is padding; `bytes_bt` is the length of each target in bytes."""

    tokens_bt: jax.Array
    targets_bt: jax.Array
    segment_ids_bt: jax.Array
    positions_bt: jax.Array
    bytes_bt: jax.Array

    @classmethod
    def of(cls, arrays: Mapping[str, jax.Array]) -> "Batch":
        """From the loader's names, which carry no axes."""
        return cls(**{f"{name}_bt": array for name, array in arrays.items()})


class Totals(NamedTuple):
    """Sums over the target tokens of some rows: nats, tokens and bytes."""

    nll: jax.Array
    tokens: jax.Array
    bytes: jax.Array


def bits_per_byte(nll: float, num_bytes: float) -> float:
    """Bits per byte of text from a sum of nats over all its tokens (each document's end among them)."""
    return nll / (math.log(2) * num_bytes)


def batch_loss(
    config: model.Config, params: Params, batch: Batch, z_loss: float = 0.0, dropout_key: jax.Array | None = None
) -> LossSums:
    """The summed loss of a batch: features, then the chunked cross-entropy; padding weighs nothing."""
    x_btd, _ = model.features(
        config,
        params,
        batch.tokens_bt,
        segment_ids_bt=batch.segment_ids_bt,
        positions_bt=batch.positions_bt,
        dropout_key=dropout_key,
    )
    return summed_loss(config, params, x_btd, batch.targets_bt, batch.segment_ids_bt > 0, z_loss)


def gradients(
    config: model.Config,
    params: Params,
    batch: Batch,
    *,
    micro_batches: int = 1,
    z_loss: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[Params, Totals]:
    """The gradient of the mean loss per target token of the whole batch, and the batch's totals.

    Every micro-batch is divided by the count of target tokens in the whole (global) batch, so that
    neither micro-batches nor shards with more padding change a token's weight.
    """
    totals_of = (jnp.sum(batch.segment_ids_bt > 0), jnp.sum(batch.bytes_bt))
    scale = 1 / totals_of[0].astype(config.stable_dtype)

    def one(micro: Batch, key: jax.Array | None) -> tuple[Params, jax.Array]:
        def mean(p):
            sums = batch_loss(config, p, micro, z_loss, key)
            return sums.objective * scale, sums.nll

        return jax.grad(mean, has_aux=True)(params)

    if micro_batches == 1:
        grads, nll = one(batch, dropout_key)
        return grads, Totals(nll, *totals_of)

    keys = None if dropout_key is None else jax.random.split(dropout_key, micro_batches)
    micro = jax.tree.map(lambda a: _split_rows(a, micro_batches), batch)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, config.stable_dtype), (params, jnp.zeros(())))

    def add(sums, xs):
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), sums, one(*xs)), None

    (grads, nll), _ = jax.lax.scan(add, zeros, (micro, keys))
    return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), Totals(nll, *totals_of)


def _split_rows(a_bt: jax.Array, n: int) -> jax.Array:
    """(B, T) -> (n, B / n, T), each part with rows of every shard, so that no row changes its device."""
    parts = a_bt.reshape(a_bt.shape[0] // n, n, *a_bt.shape[1:]).swapaxes(0, 1)
    return jax.vmap(lambda part: constrain(part, "act_batch", "act_len"))(parts)


def train_step(
    config: model.Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: TrainState,
    batch: Batch,
    *,
    seed: int,
    micro_batches: int = 1,
    z_loss: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step: the next state, and scalars, the loss in nats per token among them."""
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step) if config.dropout else None
    grads, totals = gradients(
        config, state.params, batch, micro_batches=micro_batches, z_loss=z_loss, dropout_key=dropout_key
    )
    updates, moments = optimizer.update(grads, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    scalars = {
        "loss": totals.nll / totals.tokens,
        "tokens": totals.tokens,
        "bytes": totals.bytes,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step + 1)),
    }
    return TrainState(state.step + 1, params, moments), scalars


def eval_step(config: model.Config, params: Params, batch: Batch) -> Totals:
    """The totals of a batch, padding left out; dropout off."""
    sums = batch_loss(config, params, batch)
    return Totals(sums.nll, jnp.sum(batch.segment_ids_bt > 0), jnp.sum(batch.bytes_bt))
