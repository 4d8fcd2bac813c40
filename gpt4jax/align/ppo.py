"""Proximal policy optimisation of a language model's answers: pure functions of a batch of rollouts.

An episode is an answer, its actions are the answer's tokens, and its state is the text before each. Arrays are (B, T):
T places of an answer, of which `mask_bt` shows those that are its tokens, the end of the text among them; they come
first, and every answer has at least one. Names follow the sources:

    Schulman et al. 2016    generalised advantage estimation
    Schulman et al. 2017    the clipped objective
    Ziegler et al. 2019     KL to a reference in the reward, its adaptive coefficient, clipped values, whitening
    Ouyang et al. 2022      InstructGPT, appendix C: coefficients
    Huang et al. 2024       "The N+ implementation details of RLHF with PPO"
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

Estimator = Literal["k1", "k2", "k3"]


class Divergence(NamedTuple):
    """Estimates of KL(policy || reference) from samples of the policy, one a token (Schulman 2020).

    With r = reference(a) / policy(a): `k1` = -log r, unbiased, of either sign; `k2` = (log r)^2 / 2, biased, with the
    gradient of the KL itself; `k3` = r - 1 - log r, unbiased, never negative.
    """

    k1: jax.Array
    k2: jax.Array
    k3: jax.Array


def divergence(log_p_bt: jax.Array, reference_log_p_bt: jax.Array) -> Divergence:
    """All three, of the log probabilities of the tokens that the policy drew, in nats."""
    log_r_bt = reference_log_p_bt - log_p_bt
    return Divergence(-log_r_bt, jnp.square(log_r_bt) / 2, jnp.expm1(log_r_bt) - log_r_bt)


def masked_mean(x_bt: jax.Array, mask_bt: jax.Array) -> jax.Array:
    """The mean over all tokens of all answers: a long answer weighs more than a short one."""
    return jnp.sum(jnp.where(mask_bt, x_bt, 0)) / jnp.sum(mask_bt)


def whitened(x_bt: jax.Array, mask_bt: jax.Array, *, shift: bool = True, eps: float = 1e-8) -> jax.Array:
    """Scaled to a variance of one over all tokens, and shifted to a mean of zero; 0 where there is no token.

    Without `shift` the mean stays as it was: rewards are whitened so, whose sign says something.
    """
    mean = masked_mean(x_bt, mask_bt)
    variance = masked_mean(jnp.square(x_bt - mean), mask_bt)
    white_bt = (x_bt - mean) * jax.lax.rsqrt(variance + eps)
    return jnp.where(mask_bt, white_bt if shift else white_bt + mean, 0)


def without_end(score_b: jax.Array, ended_b: jax.Array, penalty: float) -> jax.Array:
    """Scores less `penalty` for answers that do not end: the reward model has read no such text to its end."""
    return jnp.where(ended_b, score_b, score_b - penalty)


def token_rewards(
    score_b: jax.Array,
    log_p_bt: jax.Array,
    reference_log_p_bt: jax.Array,
    mask_bt: jax.Array,
    *,
    coefficient: float | jax.Array,
    estimator: Estimator = "k1",
) -> jax.Array:
    """The reward of each token (B, T): -coefficient * KL, and for the last of an answer its score too.

    That is r(x, y) - beta log(policy(y|x) / reference(y|x)), shared out over the tokens (Ziegler et al. 2019, 2.1).
    """
    kl_bt = getattr(divergence(log_p_bt, reference_log_p_bt), estimator)
    last_bt = jnp.arange(mask_bt.shape[1]) == jnp.sum(mask_bt, axis=1, keepdims=True) - 1
    return jnp.where(mask_bt, -coefficient * kl_bt, 0) + jnp.where(last_bt, score_b[:, None], 0)


def advantages(
    rewards_bt: jax.Array, values_bt: jax.Array, mask_bt: jax.Array, *, discount: float = 1.0, decay: float = 0.95
) -> tuple[jax.Array, jax.Array]:
    """Generalised advantage estimates and returns (their sum with the values), (B, T) each; 0 past an answer's end.

    A_t = d_t + discount * decay * A_{t+1}, d_t = r_t + discount * V_{t+1} - V_t; behind the last token V = A = 0. With
    `decay` 1 the return is the sum of the rewards to come; with 0 the advantage is one step's surprise.
    """
    rewards_bt, values_bt = jnp.where(mask_bt, rewards_bt, 0), jnp.where(mask_bt, values_bt, 0)
    next_bt = jnp.pad(values_bt[:, 1:], ((0, 0), (0, 1)))
    surprise_bt = rewards_bt + discount * next_bt - values_bt

    def back(later_b: jax.Array, surprise_b: jax.Array) -> tuple[jax.Array, jax.Array]:
        advantage_b = surprise_b + discount * decay * later_b
        return advantage_b, advantage_b

    _, advantage_tb = jax.lax.scan(back, jnp.zeros_like(surprise_bt[:, 0]), surprise_bt.T, reverse=True)
    advantage_bt = jnp.where(mask_bt, advantage_tb.T, 0)
    return advantage_bt, jnp.where(mask_bt, advantage_bt + values_bt, 0)


class PolicyLoss(NamedTuple):
    """What a step minimises, and what is watched beside it.

    Attributes:
        loss: -E[min(ratio A, clip(ratio) A)].
        clipped: share of tokens whose clipped term is the one that counts, so that they pull at nothing.
        kl: nats a token from the policy that drew the answers to this one, by `k3`.
        ratio: mean of this policy's probability over that one's.
    """

    loss: jax.Array
    clipped: jax.Array
    kl: jax.Array
    ratio: jax.Array


def policy_loss(
    log_p_bt: jax.Array,
    drawn_log_p_bt: jax.Array,
    advantages_bt: jax.Array,
    mask_bt: jax.Array,
    *,
    clip: float = 0.2,
) -> PolicyLoss:
    """The clipped surrogate objective (Schulman et al. 2017, equation 7), over all tokens of all answers.

    `drawn_log_p_bt` is of the policy that drew the answers, at the temperature they were drawn with.
    """
    log_ratio_bt = jnp.where(mask_bt, log_p_bt - drawn_log_p_bt, 0)
    ratio_bt = jnp.exp(log_ratio_bt)
    free_bt, held_bt = -advantages_bt * ratio_bt, -advantages_bt * jnp.clip(ratio_bt, 1 - clip, 1 + clip)
    kl_bt = divergence(drawn_log_p_bt, log_p_bt).k3
    return PolicyLoss(
        masked_mean(jnp.maximum(free_bt, held_bt), mask_bt),
        masked_mean(held_bt > free_bt, mask_bt),
        masked_mean(kl_bt, mask_bt),
        masked_mean(ratio_bt, mask_bt),
    )


def value_loss(
    values_bt: jax.Array, drawn_values_bt: jax.Array, returns_bt: jax.Array, mask_bt: jax.Array, *, clip: float = 0.2
) -> tuple[jax.Array, jax.Array]:
    """Half the squared error of the values, each held within `clip` of what it was when the answers were drawn.

    Of the two errors the larger counts (Ziegler et al.'s code; 0: never held). And the share of tokens that are held,
    so that they pull at nothing.
    """
    free_bt = jnp.square(values_bt - returns_bt)
    if not clip:
        return masked_mean(free_bt, mask_bt) / 2, jnp.zeros(())
    moved_bt = values_bt - drawn_values_bt
    near_bt = drawn_values_bt + jnp.clip(moved_bt, -clip, clip)
    held_bt = jnp.square(near_bt - returns_bt)
    count_bt = (jnp.abs(moved_bt) > clip) & (held_bt > free_bt)
    return masked_mean(jnp.maximum(free_bt, held_bt), mask_bt) / 2, masked_mean(count_bt, mask_bt)


def adapted(coefficient: float, kl: float, *, target: float, horizon: float, episodes: int) -> float:
    """The KL's coefficient after so many episodes that came to `kl` nats an answer (Ziegler et al. 2019, 2.2).

    It grows where the KL is above its target: by the relative error, of which no more than a fifth counts, in
    `horizon / episodes` steps.

    Raises:
        ValueError: a target or horizon that is not positive.
    """
    if target <= 0 or horizon <= 0:
        raise ValueError(f"a KL of {target} nats is to be held over a horizon of {horizon}: both must be positive")
    error = min(max(kl / target - 1, -0.2), 0.2)
    return coefficient * (1 + error * episodes / horizon)
