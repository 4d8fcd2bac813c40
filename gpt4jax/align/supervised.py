"""Stages that learn from what people have said: demonstrations, a reward model, direct preferences.

Each has a loss of a batch as a sum, and a weight: how much the batch counts. So micro-batches and shards change
nothing.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from gpt4jax.align import answers as of_answers
from gpt4jax.align import dpo, reward
from gpt4jax.align.answers import Answers
from gpt4jax.align.form import Form
from gpt4jax.model.parameters import Params
from gpt4jax.training import step
from gpt4jax.training.state import TrainState

Sums = dict[str, jax.Array]
Scalars = dict[str, jax.Array]


class Frozen(NamedTuple):
    """Parameters that a stage reads and does not change: what adapters are added to, and DPO's reference."""

    base: Params | None = None
    reference: Params | None = None


class Objective(NamedTuple):
    """What a supervised stage minimises.

    Attributes:
        loss: from (trained, frozen, batch, dropout key) to a sum over the batch, and sums that say more.
        weight: of a batch: what its sum is divided by.
        tell: from the sums of any number of batches to scalars.
        size: of a batch: its tokens.
    """

    loss: Callable[[Any, Frozen, Any, jax.Array | None], tuple[jax.Array, Sums]]
    weight: Callable[[Any], jax.Array]
    tell: Callable[[Mapping[str, Any]], dict[str, Any]]
    size: Callable[[Any], jax.Array]


class Ranked(NamedTuple):
    """Prompts with up to K answers each: tokens (B, K, T), the rest (B, K); `ranks_bk` as `reward` has them."""

    tokens_bkt: jax.Array
    start_bk: jax.Array
    length_bk: jax.Array
    ranks_bk: jax.Array

    @classmethod
    def of(cls, arrays: Mapping[str, jax.Array]) -> "Ranked":
        """From the loader's names."""
        return cls(arrays["tokens"], arrays["start"], arrays["length"], arrays["ranks"])


class Pairs(NamedTuple):
    """Prompts with a better and a worse answer, in this order: (B, 2, T) and (B, 2). Without tokens: padding."""

    tokens_bkt: jax.Array
    start_bk: jax.Array
    length_bk: jax.Array

    @classmethod
    def of(cls, arrays: Mapping[str, jax.Array]) -> "Pairs":
        """From the loader's names."""
        return cls(arrays["tokens"], arrays["start"], arrays["length"])


def _flat(batch: Ranked | Pairs) -> Answers:
    """Each answer as a row of its own."""
    tokens_bkt = batch.tokens_bkt
    return Answers(
        tokens_bkt.reshape(-1, tokens_bkt.shape[-1]), batch.start_bk.reshape(-1), batch.length_bk.reshape(-1)
    )


def _tokens(batch: Ranked | Pairs) -> jax.Array:
    return jnp.sum(jnp.where(batch.length_bk > 0, batch.start_bk + batch.length_bk, 0))


def sft(form: Form, z_loss: float = 0.0) -> Objective:
    """Cross-entropy of the demonstrations' answers, a mean over their tokens."""
    config = form.config

    def loss(trained, frozen: Frozen, batch: step.Batch, key):
        params = form.whole(trained["decoder"], frozen.base)
        sums, _ = step.batch_loss(config, params, batch, z_loss=z_loss, dropout_key=key)
        weight = jnp.sum(step.is_target(config, batch))
        return sums.objective, {"nll": sums.nll, "targets": weight, "bytes": jnp.sum(batch.bytes_bt)}

    def tell(sums):
        return {
            "loss": sums["nll"] / sums["targets"],
            "align/bits_per_byte": sums["nll"] / (jnp.log(2) * jnp.maximum(sums["bytes"], 1)),
        }

    weight = lambda batch: jnp.sum(step.is_target(config, batch))  # noqa: E731
    return Objective(loss, weight, tell, lambda batch: jnp.sum(batch.segment_ids_bt > 0))


def scores_of(form: Form, trained: Any, frozen: Frozen, batch: Ranked, key: jax.Array | None = None) -> jax.Array:
    """The reward model's scores of ranked answers, (B, K): each answer is read once."""
    flat = _flat(batch)
    x_btd = of_answers.features(form.config, form.whole(trained["decoder"], frozen.base), flat, key)
    return of_answers.scores(trained["head"], flat, x_btd).reshape(batch.length_bk.shape)


def reward_model(form: Form) -> Objective:
    """The pairwise loss, a mean over prompts of means over their pairs."""

    def loss(trained, frozen: Frozen, batch: Ranked, key):
        scores_bk = scores_of(form, trained, frozen, batch, key)
        total = jnp.sum(reward.prompt_losses(scores_bk, batch.ranks_bk))
        right_b, pairs_b = reward.right_pairs(scores_bk, batch.ranks_bk)
        sums = {
            "loss": jax.lax.stop_gradient(total),
            "prompts": jnp.sum(reward.has_pairs(batch.ranks_bk)),
            "right": jnp.sum(right_b),
            "pairs": jnp.sum(pairs_b),
        }
        return total, sums

    def tell(sums):
        return {"loss": sums["loss"] / sums["prompts"], "align/pair_accuracy": sums["right"] / sums["pairs"]}

    return Objective(loss, lambda batch: jnp.sum(reward.has_pairs(batch.ranks_bk)), tell, _tokens)


def direct(form: Form, room: int, beta: float, smoothing: float) -> Objective:
    """DPO, a mean over pairs."""
    config = form.config

    def log_p(params: Params, batch: Pairs, key=None):
        flat = _flat(batch)
        x_btd = of_answers.features(config, params, flat, key)
        return jnp.sum(of_answers.log_probs(config, params, flat, x_btd, room), axis=1).reshape(-1, 2).T

    def loss(trained, frozen: Frozen, batch: Pairs, key):
        reference = frozen.base if frozen.reference is None else frozen.reference
        assert reference is not None
        chosen_b, rejected_b = log_p(form.whole(trained["decoder"], frozen.base), batch, key)
        chosen_reference_b, rejected_reference_b = jax.lax.stop_gradient(log_p(reference, batch))
        each = jax.vmap(partial(dpo.loss, beta=beta, smoothing=smoothing))(
            chosen_b, rejected_b, chosen_reference_b, rejected_reference_b
        )
        real_b = batch.length_bk[:, 0] > 0
        total, margin, right = (jnp.sum(jnp.where(real_b, one, 0)) for one in each)
        sums = {"loss": jax.lax.stop_gradient(total), "margin": margin, "right": right, "pairs": jnp.sum(real_b)}
        return total, sums

    def tell(sums):
        return {
            "loss": sums["loss"] / sums["pairs"],
            "align/margin": sums["margin"] / sums["pairs"],
            "align/pair_accuracy": sums["right"] / sums["pairs"],
        }

    return Objective(loss, lambda batch: jnp.sum(batch.length_bk[:, 0] > 0), tell, _tokens)


def train_step(
    objective: Objective,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: TrainState,
    batch: Any,
    frozen: Frozen,
    *,
    seed: int,
    micro_batches: int,
    dropout: bool,
) -> tuple[TrainState, Scalars]:
    """One optimizer step on a batch: the next state, and scalars."""
    weight = objective.weight(batch)
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step) if dropout else None

    def one(micro: Any, key: jax.Array | None) -> tuple[Any, Sums]:
        def mean(trained):
            total, sums = objective.loss(trained, frozen, micro, key)
            return total / jnp.maximum(weight, 1), sums

        return jax.grad(mean, has_aux=True)(state.params)

    grads, sums = accumulated(one, batch, micro_batches, dropout_key)
    updates, moments = optimizer.update(grads, state.moments, state.params)
    told = objective.tell(sums)
    scalars = {
        **told,
        "targets": weight,
        "tokens": objective.size(batch),
        "bytes": sums.get("bytes", jnp.zeros(())),
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step + 1)),
    }
    return TrainState(state.step + 1, optax.apply_updates(state.params, updates), moments), scalars


def accumulated(one: Callable[[Any, Any], Any], batch: Any, parts: int, key: jax.Array | None = None) -> Any:
    """The sum of `one(part of the batch, key)`, a tree, over equal parts that are computed one after another."""
    if parts == 1:
        return one(batch, key)
    micro = jax.tree.map(lambda a: step.split_rows(a, parts), batch)
    keys = None if key is None else jax.random.split(key, parts)
    first = jax.eval_shape(one, jax.tree.map(lambda a: a[0], micro), None if keys is None else keys[0])
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), first)
    add = lambda total, xs: (jax.tree.map(jnp.add, total, one(*xs)), None)  # noqa: E731
    return jax.lax.scan(add, zeros, (micro, keys))[0]
