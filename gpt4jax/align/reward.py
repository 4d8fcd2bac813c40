"""Reward models: losses and measures of scores of ranked responses. Ouyang et al. 2022 (InstructGPT), 3.5 and C.2.

A prompt has up to K responses; (P, K) arrays hold what belongs to each. Their ranks are whole numbers, the better the
smaller; responses of one rank are a tie, which says nothing; `ABSENT` stands where a prompt has fewer than K.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

ABSENT = -1


def check_ranks(ranks_pk: ArrayLike) -> None:
    """Checks that every prompt has something to learn from.

    Raises:
        ValueError: prompts with one response, or with nothing but ties.
    """
    for number, row in enumerate(np.asarray(ranks_pk)):
        here = row[row != ABSENT]
        if len(here) < 2:
            raise ValueError(f"prompt {number} has {len(here)} ranked response(s): a comparison needs two")
        if len(set(here.tolist())) == 1:
            raise ValueError(f"prompt {number}: all {len(here)} responses are ranked alike, which says nothing")


def better(ranks_pk: jax.Array) -> jax.Array:
    """Which pairs count, (P, K, K): the first response is there and better than the second, which is there."""
    here_pk = ranks_pk != ABSENT
    return (ranks_pk[:, :, None] < ranks_pk[:, None, :]) & here_pk[:, :, None] & here_pk[:, None, :]


def prompt_losses(scores_pk: jax.Array, ranks_pk: jax.Array) -> jax.Array:
    """-E[log sigmoid(better - worse)] over all pairs of each prompt, (P,); 0 for one that has none."""
    pairs_pkk = better(ranks_pk)
    apart_pkk = scores_pk[:, :, None] - scores_pk[:, None, :]
    loss_p = jnp.sum(jnp.where(pairs_pkk, jax.nn.softplus(-apart_pkk), 0), axis=(1, 2))
    return loss_p / jnp.maximum(jnp.sum(pairs_pkk, axis=(1, 2)), 1)


def has_pairs(ranks_pk: jax.Array) -> jax.Array:
    """Which prompts have a pair, (P,)."""
    return jnp.any(better(ranks_pk), axis=(1, 2))


def pairwise_loss(scores_pk: jax.Array, ranks_pk: jax.Array) -> jax.Array:
    """The mean of `prompt_losses` over the prompts that have any pair.

    So a prompt is one element of a batch, however many responses it has, and a response is read once (equation 1).
    """
    return jnp.sum(prompt_losses(scores_pk, ranks_pk)) / jnp.maximum(jnp.sum(has_pairs(ranks_pk)), 1)


def right_pairs(scores_pk: jax.Array, ranks_pk: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of each prompt, how many pairs the scores order rightly (equal scores: half a pair), and how many there are."""
    pairs_pkk = better(ranks_pk)
    sign_pkk = jnp.sign(scores_pk[:, :, None] - scores_pk[:, None, :])
    return jnp.sum(jnp.where(pairs_pkk, (1 + sign_pkk) / 2, 0), axis=(1, 2)), jnp.sum(pairs_pkk, axis=(1, 2))


def bias(demonstration_scores: jax.Array) -> jax.Array:
    """What is added to scores so that demonstrations have a mean of zero: the loss leaves it open (C.2)."""
    return -jnp.mean(demonstration_scores)
