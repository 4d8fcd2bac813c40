"""Direct preference optimisation: the loss of pairs of answers, without a reward model. Rafailov et al. 2023."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class PreferenceLoss(NamedTuple):
    """What a step minimises, and what is watched beside it.

    Attributes:
        loss: the mean over pairs.
        margin: mean of the implicit reward, beta log(policy / reference), of the chosen over the rejected answer.
        accuracy: share of pairs whose chosen answer has the larger one.
    """

    loss: jax.Array
    margin: jax.Array
    accuracy: jax.Array


def loss(
    chosen_log_p_b: jax.Array,
    rejected_log_p_b: jax.Array,
    chosen_reference_b: jax.Array,
    rejected_reference_b: jax.Array,
    *,
    beta: float = 0.1,
    smoothing: float = 0.0,
) -> PreferenceLoss:
    """-E[log sigmoid(beta (chosen log ratio - rejected log ratio))], equation 7.

    Each array is of whole answers: the sum of their tokens' log probabilities under the policy or the reference, nats.
    With `smoothing` so large a share of the labels is taken to be the wrong way round (Mitchell 2023).

    Raises:
        ValueError: a share that is not in [0, 0.5).
    """
    if not 0 <= smoothing < 0.5:
        raise ValueError(f"a share of {smoothing} of wrong labels; it must be at least 0 and below 0.5")
    apart_b = beta * ((chosen_log_p_b - chosen_reference_b) - (rejected_log_p_b - rejected_reference_b))
    loss_b = (1 - smoothing) * jax.nn.softplus(-apart_b) + smoothing * jax.nn.softplus(apart_b)
    return PreferenceLoss(jnp.mean(loss_b), jnp.mean(apart_b), jnp.mean(apart_b > 0))
