"""The stage of PPO: rounds of answers, scored, and the policy and its value network updated by them.

A round is one step of the run, and a function of (seed, step) and the state: prompts, draws and the order of
minibatches are. So it resumes to the same bits, like any other stage.
"""

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from gpt4jax.align import answers as of_answers
from gpt4jax.align import ppo, rollout, rules, supervised
from gpt4jax.align.answers import Answers
from gpt4jax.align.form import Form
from gpt4jax.align.rubric import CLASSES
from gpt4jax.errors import UserError
from gpt4jax.inference import Engine
from gpt4jax.model import Config
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import partition
from gpt4jax.training import step as steps


class PolicyState(NamedTuple):
    """What PPO carries from round to round.

    Attributes:
        step: finished rounds.
        params: {"policy": ..., "value": {"decoder": ..., "head": ...}}, each decoder in the form that is trained.
        moments: of the optimizer, over both.
        coefficient: of the KL in the reward.
        average: of the policy over its updates; None: it is not kept.
    """

    step: jax.Array
    params: Any
    moments: Any
    coefficient: jax.Array
    average: Any = None


class Frozen(NamedTuple):
    """The policy before PPO, which is the reference, and what the value network's adapters are added to."""

    reference: Params
    value_base: Params


class Scorer(Protocol):
    """What answers are worth: the numbers of their prompts, the answers, which of them end, and their texts."""

    def __call__(self, index_b: np.ndarray, drawn: rollout.Drawn) -> np.ndarray: ...


class Minibatch(NamedTuple):
    """Some answers of a round, and rows of pre-training text to go with them (None: there is none)."""

    answers: rollout.Round
    text: steps.Batch | None


class Losses(NamedTuple):
    """Of PPO's loss: its settings, static."""

    form: Form
    value_form: Form
    room: int
    temperature: float
    clip: float
    value_clip: float
    value_coefficient: float
    pretraining_coefficient: float

    def __call__(self, params: Any, frozen: Frozen, batch: Minibatch) -> tuple[jax.Array, dict[str, jax.Array]]:
        """The loss of a minibatch, a mean over its tokens, and what is told of it."""
        some = batch.answers
        mask_br = of_answers.mask(some.answers, self.room)
        policy = self.form.whole(params["policy"], frozen.reference)
        x_btd = of_answers.features(self.form.config, policy, some.answers)
        log_p_br = of_answers.log_probs(self.form.config, policy, some.answers, x_btd, self.room, self.temperature)
        of_policy = ppo.policy_loss(log_p_br, some.log_p_br, some.advantages_br, mask_br, clip=self.clip)
        value = self.value_form.whole(params["value"]["decoder"], frozen.value_base)
        x_btd = of_answers.features(self.value_form.config, value, some.answers)
        values_br = of_answers.values(params["value"]["head"], some.answers, x_btd, self.room)
        of_value, value_clipped = ppo.value_loss(
            values_br, some.values_br, some.returns_br, mask_br, clip=self.value_clip
        )
        total = of_policy.loss + self.value_coefficient * of_value
        told = {
            "loss": of_policy.loss, "ppo/value_loss": of_value, "ppo/clipped": of_policy.clipped,
            "ppo/value_clipped": value_clipped, "ppo/update_kl": of_policy.kl, "ppo/ratio": of_policy.ratio,
        }  # fmt: skip
        if batch.text is not None:
            sums, _ = steps.batch_loss(self.form.config, policy, batch.text)
            text_loss = sums.objective / jnp.sum(steps.is_target(self.form.config, batch.text))
            total = total + self.pretraining_coefficient * text_loss
            told["ppo/pretraining_loss"] = text_loss
        return total, told


def update(
    losses: Losses,
    optimizer: optax.GradientTransformation,
    micro_batches: int,
    average_decay: float,
    state: PolicyState,
    batch: Minibatch,
    frozen: Frozen,
) -> tuple[PolicyState, dict[str, jax.Array]]:
    """One optimizer step on a minibatch: the state, still of the same round, and what is told of it."""
    tokens = jnp.sum(batch.answers.answers.length_b)

    def one(micro: Minibatch, key: None) -> tuple[Any, dict[str, jax.Array]]:
        del key
        # Losses are means over tokens: a part counts by how many it has. Text is cut into parts of as many rows.
        share = jnp.sum(micro.answers.answers.length_b) / tokens

        def mean(params):
            total, told = losses(params, frozen, micro)
            return total * share, jax.tree.map(lambda x: x * share, told)

        return jax.grad(mean, has_aux=True)(state.params)

    grads, told = supervised.accumulated(one, batch, micro_batches)
    updates, moments = optimizer.update(grads, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    average = state.average
    if average is not None:
        average = jax.tree.map(lambda a, p: average_decay * a + (1 - average_decay) * p, average, params["policy"])
    new = state._replace(params=params, moments=moments, average=average)
    return new, {**told, "grad_norm": optax.tree.norm(grads)}


class Rounds:
    """The step of the run: from (state, a batch of prompts, frozen) to the next state and scalars.

    Args:
        config: of the stage.
        losses: with the forms of policy and value network.
        mesh: that all lies on.
        shardings: of the state.
        optimizer, schedule: over all updates of all rounds.
        scorer: what answers are worth.
        engine: that draws them.
        texts: rows of pre-training text, by their number; None: there are none.
    """

    def __init__(
        self, config, losses: Losses, mesh: Mesh, shardings, optimizer, schedule, scorer: Scorer, engine: Engine, texts
    ):  # fmt: skip
        self.config, self.options, self.losses, self.mesh = config, config.align, losses, mesh
        self.schedule, self.scorer, self.engine, self.texts = schedule, scorer, engine, texts
        rows, everywhere = partition.batch_sharding(mesh), partition.replicated(mesh)
        self._rows = rows
        self._whole = jax.jit(losses.form.whole)
        self._seen = jax.jit(self._looked_at, out_shardings=(rows, everywhere))
        self._update = jax.jit(
            partial(update, losses, optimizer, config.optimizer.micro_batches, self.options.average_decay),
            out_shardings=(shardings, everywhere), donate_argnums=0,
        )  # fmt: skip

    def _looked_at(self, params, frozen: Frozen, answers, score_b, ended_b, coefficient):
        losses = self.losses
        models = rollout.Models(
            losses.form.whole(params["policy"], frozen.reference), frozen.reference,
            losses.value_form.whole(params["value"]["decoder"], frozen.value_base), params["value"]["head"],
        )  # fmt: skip
        return rollout.seen(
            losses.form.config, losses.value_form.config, models, answers, score_b, ended_b, coefficient, self.options
        )

    def whole(self, policy: Any, frozen: Frozen) -> Params:
        """The decoder of a policy, in the form that is trained."""
        return self._whole(policy, frozen.reference)

    def answers(
        self, policy: Any, frozen: Frozen, prompts: Sequence[Sequence[int]], seeds: np.ndarray
    ) -> rollout.Drawn:
        """Answers of a policy, in the form that is trained."""
        self.engine.update(self.whole(policy, frozen))
        return rollout.draw(
            self.engine, prompts, seeds=seeds, length=self.config.data.seq_len, room=self.options.max_response,
            temperature=self.options.temperature,
        )  # fmt: skip

    def __call__(
        self, state: PolicyState, batch: Mapping[str, Any], frozen: Frozen
    ) -> tuple[PolicyState, dict[str, Any]]:
        """A round."""
        began, number = time.monotonic(), int(state.step)
        told = jax.device_get(dict(batch))
        prompts = [row[:start].tolist() for row, start in zip(told["tokens"], told["start"], strict=True)]
        seeds = np.random.default_rng((self.config.seed, number, 1)).integers(0, 2**32, len(prompts), np.uint32)
        drawn = self.answers(state.params["policy"], frozen, prompts, seeds)
        score_b = self.scorer(told["index"], drawn)
        rolled = time.monotonic() - began
        on_mesh = partial(jax.device_put, device=self._rows)
        arguments = on_mesh((drawn.answers, score_b.astype(np.float32), drawn.ended_b))
        round_, facts = self._seen(state.params, frozen, *arguments, state.coefficient)
        facts = {name: float(value) for name, value in jax.device_get(facts)._asdict().items()}
        self._check(number, facts)
        coefficient = float(state.coefficient)
        state, means = self._updates(state, round_, frozen, number)
        if self.options.kl_target:
            adapted = ppo.adapted(
                coefficient, facts["kl"], target=self.options.kl_target, horizon=self.options.kl_horizon,
                episodes=len(prompts),
            )  # fmt: skip
            like = state.coefficient
            state = state._replace(coefficient=jax.device_put(np.asarray(adapted, like.dtype), like.sharding))
        tokens = int(drawn.answers.length_b.sum())
        scalars = {
            **means, **{f"ppo/{name}": value for name, value in facts.items()},
            "ppo/kl_coefficient": coefficient, "ppo/rollout_tokens_per_second": tokens / rolled,
            "ppo/rollout_share": rolled / (time.monotonic() - began),
            "targets": tokens, "tokens": tokens + int(drawn.answers.start_b.sum()), "bytes": 0.0,
            "learning_rate": float(self.schedule((number + 1) * updates_per_round(self.options))),
        }  # fmt: skip
        return state._replace(step=state.step + 1), scalars

    def _updates(self, state: PolicyState, round_: rollout.Round, frozen: Frozen, number: int):
        """All optimizer steps of a round, and the means of what they tell."""
        options, count = self.options, len(round_.answers.length_b)
        size, found = count // options.minibatches, []
        for epoch in range(options.inner_epochs):
            order = np.random.default_rng((self.config.seed, number, 2, epoch)).permutation(count)
            for part in range(options.minibatches):
                # The whole round needs no order: its mean is the same in any.
                some = round_
                if options.minibatches > 1:
                    chosen = np.sort(order[part * size : (part + 1) * size])
                    some = jax.tree.map(lambda leaf, chosen=chosen: jax.device_put(leaf[chosen], self._rows), round_)
                text = None
                if self.texts is not None:
                    text = self.texts(number * updates_per_round(options) + epoch * options.minibatches + part)
                state, told = self._update(state, Minibatch(some, text), frozen)
                found.append(told)
        found = jax.device_get(found)
        return state, {name: float(np.mean([told[name] for told in found])) for name in found[0]}

    def _check(self, number: int, facts: Mapping[str, float]) -> None:
        if not all(map(np.isfinite, facts.values())):
            raise UserError(f"not finite in round {number + 1}: {facts}; the newest checkpoint is of a round before")
        if facts["kl"] > self.options.max_kl:
            raise UserError(
                f"the policy runs away: in round {number + 1} it is {facts['kl']:.1f} nats an answer from the policy "
                f"before PPO, and ppo.max_kl is {self.options.max_kl:g}. A larger ppo.kl_coefficient (or kl_target) or "
                "a smaller ppo.learning_rate holds it; the newest checkpoint is of a round before"
            )


def updates_per_round(options: Any) -> int:
    """Optimizer steps of a round."""
    return options.inner_epochs * options.minibatches


def on_answers(config: Config, params: Params, head: of_answers.Head, rows) -> Scorer:
    """A reward model as a scorer; `rows` is how a batch lies on the mesh."""

    @jax.jit
    def score(params, head, answers: Answers):
        return of_answers.scores(head, answers, of_answers.features(config, params, answers))

    def scorer(index_b: np.ndarray, drawn: rollout.Drawn) -> np.ndarray:
        del index_b
        return jax.device_get(score(params, head, jax.device_put(drawn.answers, rows)))

    return scorer


def on_rules(prompts: Sequence[Mapping[str, Any]]) -> Scorer:
    """Rules as a scorer: the worth of each answer's class, by its words (`rules.lexical_class`), to its kind of prompt.

    Raises:
        UserError: a prompt without a kind, or one that there is none of.
    """
    for number, prompt in enumerate(prompts, 1):
        if prompt.get("kind") not in rules.KINDS:
            raise UserError(
                f"ppo.rules needs the kind of each prompt, and row {number} has {prompt.get('kind')!r}; there are "
                f"{', '.join(rules.KINDS)}"
            )

    def scorer(index_b: np.ndarray, drawn: rollout.Drawn) -> np.ndarray:
        kinds = [prompts[i]["kind"] for i in index_b]
        classes = [rules.lexical_class(text, kind) for text, kind in zip(drawn.texts, kinds, strict=True)]
        phi_bi = np.array([[one == cls for one in CLASSES] for cls in classes], np.float64)
        return rules.rewards(phi_bi, kinds)

    return scorer
