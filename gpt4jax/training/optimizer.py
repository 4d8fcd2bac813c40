"""AdamW with a learning-rate schedule, a decay mask, clipping, and muP's factors."""

from typing import Any

import jax
import optax

from gpt4jax.model.config import Config
from gpt4jax.model.parameters import tree

SCHEDULES = ("warmup_cosine", "warmup_stable_decay")


def schedule(options: Any, num_steps: int) -> optax.Schedule:
    """Learning rate by step: a linear warmup, then a cosine, or a plateau and a linear decay, to final_fraction.

    `options` is the config group `optimizer`.

    Raises:
        ValueError: a schedule that does not exist, or phases longer than the run.
    """
    peak, warmup = options.learning_rate, options.warmup_steps
    final = peak * options.final_fraction
    decay = options.decay_steps if options.schedule == "warmup_stable_decay" else num_steps - warmup
    if options.schedule not in SCHEDULES:
        raise ValueError(f"optimizer.schedule is {options.schedule!r}; it must be one of {', '.join(SCHEDULES)}")
    if warmup + decay > num_steps or decay < 1:
        raise ValueError(
            f"optimizer.warmup_steps {warmup} and a decay of {decay} steps do not fit into num_steps {num_steps}"
        )
    ramp = optax.linear_schedule(0.0, peak, warmup)
    if options.schedule == "warmup_cosine":
        return optax.join_schedules(
            [ramp, optax.cosine_decay_schedule(peak, decay, alpha=options.final_fraction)], [warmup]
        )
    return optax.join_schedules(
        [ramp, optax.constant_schedule(peak), optax.linear_schedule(peak, final, decay)], [warmup, num_steps - decay]
    )


def adamw(options: Any, config: Config, num_steps: int) -> optax.GradientTransformation:
    """AdamW of a decoder's parameters: matrices and embeddings decay.

    Under muP each parameter has its own factors of the learning rate and of eps (`gpt4jax.model.mup`); the decay has
    none.
    """
    return adamw_of(
        options, num_steps, decay=tree(config, lambda row: row.decay),
        eps=tree(config, lambda row: row.eps), rates=tree(config, lambda row: row.learning_rate),
    )  # fmt: skip


def adamw_of(
    options: Any, num_steps: int, *, decay: Any, eps: Any = (), rates: Any = ()
) -> optax.GradientTransformation:
    """Clipping by global norm, then AdamW (Loshchilov and Hutter 2019), of parameters in any tree.

    The learning rate of the first step is the schedule's at 1, so that no step is wasted on a rate of 0.

    Args:
        options: the config group `optimizer`.
        num_steps: of the run.
        decay: a tree in the parameters' structure: whether each decays.
        eps: such a tree of factors of eps; empty: all 1.
        rates: such a tree of factors of the learning rate; empty: all 1.
    """
    rate = schedule(options, num_steps)

    def covered(params):
        if jax.tree.map(lambda _: 0, params) != jax.tree.map(lambda _: 0, decay):
            raise ValueError("the weight-decay mask does not cover exactly the parameters")
        return decay

    clip = [optax.clip_by_global_norm(options.grad_clip_norm)] if options.grad_clip_norm else []
    return optax.chain(
        *clip,
        *_scale_by(jax.tree.map(lambda factor: 1 / factor, eps)),  # Adam of g / e with eps is Adam of g with eps e
        optax.scale_by_adam(b1=options.beta1, b2=options.beta2, eps=options.eps),
        *_scale_by(rates),
        optax.add_decayed_weights(options.weight_decay, mask=covered),
        optax.scale_by_learning_rate(lambda step: rate(step + 1)),
    )


def _scale_by(factors: Any) -> list[optax.GradientTransformation]:
    """Multiplies each update by its own constant; nothing where all are 1."""
    if all(factor == 1 for factor in jax.tree.leaves(factors)):
        return []
    return [optax.stateless(lambda updates, params: jax.tree.map(lambda u, f: u * f, updates, factors))]
