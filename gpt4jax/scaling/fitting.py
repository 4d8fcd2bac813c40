"""The minimiser that every law shares: robust least squares on the logs of losses, in float64."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

DELTA = 1e-3  # Hoffmann et al. 2022, section 3.3: residuals of log losses beyond it count linearly
_MAX_STEPS = 300
_PAD = 32  # numbers of points are rounded up to its multiples, so that few shapes are compiled


def huber(residual: ArrayLike, delta: ArrayLike = DELTA) -> jax.Array:
    """Huber's loss, elementwise: r^2 / 2 up to `delta`, and its tangent beyond. Huber 1964."""
    size = jnp.abs(residual)
    return jnp.where(size <= delta, size**2 / 2, delta * (size - delta / 2))


class _State(NamedTuple):
    params: jax.Array
    value: jax.Array
    damping: jax.Array
    step: jax.Array
    done: jax.Array


def minimize(
    log_model: Callable[[jax.Array], jax.Array],
    start: jax.Array,
    log_loss: jax.Array,
    weights: jax.Array,
    delta: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """Minimises sum_i w_i huber(log_loss_i - log_model(params)_i) from one start; to be vmapped over starts and data.

    A sum and not a mean, as in the replication of Hoffmann et al. by Besiroglu et al. 2024: a mean of
    terms this small meets most stopping rules at once. The step is Newton's with the curvature of the
    quadratic points alone, damped by the curvature that a majorant of Huber's loss has (weight delta / |r|
    where linear): undamped it converges quadratically, and enough damping always descends.

    Args:
        log_model: params (P,) -> logs of the predicted losses (n,).
        start: (P,).
        log_loss: (n,), logs of the measured losses.
        weights: (n,); a point of weight 0 counts for nothing.
        delta: in log units.

    Returns:
        params (P,) and the sum at them.
    """

    def value_at(params: jax.Array) -> jax.Array:
        return jnp.sum(weights * huber(log_loss - log_model(params), delta))

    def step(state: _State) -> _State:
        residual = log_loss - log_model(state.params)
        slopes = jax.jacfwd(log_model)(state.params)
        size = jnp.maximum(jnp.abs(residual), delta)
        gradient = slopes.T @ (weights * residual * delta / size)
        quadratic = slopes.T @ ((weights * (jnp.abs(residual) <= delta))[:, None] * slopes)
        majorant = slopes.T @ ((weights * delta / size)[:, None] * slopes)
        ridge = 1e-14 * jnp.trace(majorant) * jnp.eye(start.size)
        change = jnp.linalg.solve(quadratic + state.damping * majorant + ridge, gradient)
        change = jnp.where(jnp.isfinite(change), change, 0.0)
        trial = state.params + jnp.clip(change, -2.0, 2.0)
        value = value_at(trial)
        better = value < state.value
        small = jnp.max(jnp.abs(change) / (1 + jnp.abs(state.params))) < 1e-13
        damping = jnp.where(better, state.damping / 4, jnp.maximum(state.damping, 1e-8) * 8)
        return _State(
            jnp.where(better, trial, state.params),
            jnp.where(better, value, state.value),
            damping,
            state.step + 1,
            small | (damping > 1e12),
        )

    def unfinished(state: _State) -> jax.Array:
        return (~state.done) & (state.step < _MAX_STEPS)

    first = _State(start, value_at(start), jnp.ones(()), jnp.zeros((), int), jnp.zeros((), bool))
    last = jax.lax.while_loop(unfinished, step, first)
    return last.params, last.value


def padded(*columns: np.ndarray) -> tuple[jax.Array, ...]:
    """Arrays with zeros after their last axis up to a multiple of 32; a weight of zero then keeps them out."""
    extra = -columns[0].shape[-1] % _PAD
    return tuple(jnp.pad(jnp.asarray(column), [(0, 0)] * (column.ndim - 1) + [(0, extra)]) for column in columns)
