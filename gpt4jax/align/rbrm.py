"""Rule-based reward models: the weights of a grader's classes beside the reward model's score.

OpenAI 2023, section 6, says that optimal weights were computed, and not how. This is the way of a later paper (Mu et
al. 2024, "Rule Based Rewards for Language Model Safety"): total = score + sum_i w_i phi_i, where phi_i is the
probability that the grader gives to class i, fitted to completions whose order is known.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax


class Pairs(NamedTuple):
    """Completions of the same prompt, of which one is known to be better.

    Attributes:
        better_score_b, worse_score_b: the reward model's.
        better_phi_bi, worse_phi_bi: the grader's probability of each class.
    """

    better_score_b: jax.Array
    worse_score_b: jax.Array
    better_phi_bi: jax.Array
    worse_phi_bi: jax.Array


def total(score_b: jax.Array, phi_bi: jax.Array, weights_i: jax.Array) -> jax.Array:
    """The reward of completions by both."""
    return score_b + phi_bi @ weights_i


def apart(pairs: Pairs, weights_i: jax.Array) -> jax.Array:
    """By how much the better completion's reward is above the other's."""
    ahead_b = total(pairs.better_score_b, pairs.better_phi_bi, weights_i)
    return ahead_b - total(pairs.worse_score_b, pairs.worse_phi_bi, weights_i)


def hinge_loss(pairs: Pairs, weights_i: jax.Array, *, margin: float = 1.0) -> jax.Array:
    """The mean of what each pair lacks of `margin`."""
    return jnp.mean(jax.nn.relu(margin - apart(pairs, weights_i)))


def ordered(pairs: Pairs, weights_i: jax.Array) -> jax.Array:
    """The share of pairs whose better completion has the larger reward; with weights of zero, of the score alone."""
    return jnp.mean(apart(pairs, weights_i) > 0)


def fit(
    pairs: Pairs, *, margin: float = 1.0, learning_rate: float = 1e-2, weight_decay: float = 0.0, steps: int = 1000
) -> jax.Array:
    """The weights after `steps` of AdamW on the hinge loss, from zero (the paper's settings)."""
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)
    weights_i = jnp.zeros_like(pairs.better_phi_bi[0])

    def step(carry, _):
        weights_i, state = carry
        gradient_i = jax.grad(lambda weights_i: hinge_loss(pairs, weights_i, margin=margin))(weights_i)
        updates_i, state = optimizer.update(gradient_i, state, weights_i)
        return (optax.apply_updates(weights_i, updates_i), state), None

    (weights_i, _), _ = jax.lax.scan(step, (weights_i, optimizer.init(weights_i)), length=steps)
    return weights_i
