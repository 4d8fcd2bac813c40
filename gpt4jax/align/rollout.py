"""A round of answers: drawn by the cached sampler, and all that PPO's updates need to know of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import model
from gpt4jax.align import answers as of_answers
from gpt4jax.align import ppo
from gpt4jax.align.answers import Answers, Head
from gpt4jax.inference import Engine, Request
from gpt4jax.model.parameters import Params


class Drawn(NamedTuple):
    """Answers on the host, and which of them end; texts without the end."""

    answers: Answers
    ended_b: np.ndarray
    texts: tuple[str, ...]


def draw(
    engine: Engine, prompts: Sequence[Sequence[int]], *, seeds: np.ndarray, length: int, room: int, temperature: float
) -> Drawn:
    """An answer to each prompt, in up to `room` tokens with its end; rows of `length` tokens.

    Each is a function of the parameters, its prompt and its seed.
    """
    requests = [
        Request(prompt, room, temperature=temperature, seed=int(seed))
        for prompt, seed in zip(prompts, seeds, strict=True)
    ]
    results = engine.generate(requests)
    tokens_bt = np.zeros((len(prompts), length), np.int32)
    start_b, length_b = np.array([len(prompt) for prompt in prompts], np.int32), np.zeros(len(prompts), np.int32)
    for row, (prompt, result) in enumerate(zip(prompts, results, strict=True)):
        answer = [*result.tokens] + ([] if result.end is None else [result.end])
        tokens_bt[row, : len(prompt)] = prompt
        tokens_bt[row, len(prompt) : len(prompt) + len(answer)] = answer
        length_b[row] = len(answer)
    ended_b = np.array([result.end is not None for result in results])
    return Drawn(Answers(tokens_bt, start_b, length_b), ended_b, tuple(result.text for result in results))  # type: ignore[arg-type]


class Models(NamedTuple):
    """The decoders that look at a round of answers, and their heads."""

    policy: Params
    reference: Params
    value: Params
    value_head: Head


class Round(NamedTuple):
    """A round of answers as the updates take it; (B, R) belongs to the answers' tokens."""

    answers: Answers
    log_p_br: jax.Array  # by the policy that drew them
    values_br: jax.Array
    advantages_br: jax.Array
    returns_br: jax.Array


class Facts(NamedTuple):
    """What is told of a round, means over its answers: KL and entropy in nats an answer."""

    score: jax.Array
    kl: jax.Array
    entropy: jax.Array
    length: jax.Array
    ended: jax.Array


def seen(
    config: model.Config,
    value_config: model.Config,
    models: Models,
    answers: Answers,
    score_b: jax.Array,
    ended_b: jax.Array,
    coefficient: jax.Array,
    options: Any,
) -> tuple[Round, Facts]:
    """What the policy, the reference and the value network make of the answers, and their advantages.

    `score_b` is the reward model's; `options` are the config's group `ppo`, static.
    """
    room, temperature = options.max_response, options.temperature
    mask_br = of_answers.mask(answers, room)
    x_btd = of_answers.features(config, models.policy, answers)
    log_p_br = of_answers.log_probs(config, models.policy, answers, x_btd, room, temperature)
    x_btd = of_answers.features(config, models.reference, answers)
    reference_br = of_answers.log_probs(config, models.reference, answers, x_btd, room, temperature)
    x_btd = of_answers.features(value_config, models.value, answers)
    values_br = of_answers.values(models.value_head, answers, x_btd, room)
    penalized_b = ppo.without_end(score_b, ended_b, options.missing_end_penalty)
    rewards_br = ppo.token_rewards(
        penalized_b, log_p_br, reference_br, mask_br, coefficient=coefficient, estimator=options.kl_estimator
    )
    if options.whiten_rewards:
        rewards_br = ppo.whitened(rewards_br, mask_br, shift=False)
    advantages_br, returns_br = ppo.advantages(
        rewards_br, values_br, mask_br, discount=options.discount, decay=options.decay
    )
    if options.whiten_advantages:
        advantages_br = ppo.whitened(advantages_br, mask_br)
    kl_b = jnp.sum(ppo.divergence(log_p_br, reference_br).k1, axis=1)
    facts = Facts(
        jnp.mean(score_b), jnp.mean(kl_b), -jnp.mean(jnp.sum(log_p_br, axis=1)), jnp.mean(answers.length_b),
        jnp.mean(ended_b),
    )  # fmt: skip
    return Round(answers, log_p_br, values_br, advantages_br, returns_br), facts
