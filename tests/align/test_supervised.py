"""Objectives of stages that learn from examples, worked out answer by answer; micro-batches change nothing."""

import math
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt4jax import model
from gpt4jax.align import examples, reward, supervised
from gpt4jax.align.form import Form
from gpt4jax.align.supervised import Frozen
from gpt4jax.training.state import TrainState
from gpt4jax.training.step import Batch
from tests.conftest import LLAMA, apply, perturbed

CONFIG = model.Config(**LLAMA, init_std=0.3)
FORM = Form(CONFIG)
RANKED = [
    examples.Ranked([3, 4], [[5, 2], [6, 7, 2], [2]], [1, 0, 2]),
    examples.Ranked([9], [[8, 2], [5, 5, 5, 2]], [0, 1]),
    examples.Ranked([1, 1, 1], [[4, 2], [4, 4, 2], [6, 2]], [0, 0, 1]),
    examples.Ranked([7], [[9, 2], [2]], [1, 1]),  # a tie alone: it counts for nothing
]
WIDTH = 9
features = jax.jit(model.features, static_argnums=0)


@pytest.fixture(scope="module")
def params():
    return perturbed(CONFIG)


@pytest.fixture(scope="module")
def head():
    return {"score_d": jnp.asarray(np.random.default_rng(3).normal(size=32), jnp.float32), "bias": jnp.asarray(0.5)}


def stacked(rows, batch_of):
    return batch_of({name: jnp.asarray(np.stack([row[name] for row in rows])) for name in rows[0]})


def row(tokens):
    """One row of the same length for all, so that they share a program: decoders do not look ahead."""
    return jnp.array([tokens + [0] * (WIDTH - len(tokens))])


def log_p(params, prompt, answer):
    """The log probability of an answer, by the plain forward pass."""
    logits_tv = np.asarray(apply(CONFIG, params, row(prompt + answer))[0], np.float64)
    log_tv = logits_tv - np.logaddexp.reduce(logits_tv, axis=-1, keepdims=True)
    return sum(log_tv[len(prompt) - 1 + t, token] for t, token in enumerate(answer))


def score(params, head, prompt, answer):
    x_td = np.asarray(features(CONFIG, params, row(prompt + answer))[0][0], np.float64)
    return x_td[len(prompt + answer) - 1] @ np.asarray(head["score_d"], np.float64) + float(head["bias"])


def _told(objective, trained, frozen, batch):
    total, sums = objective.loss(trained, frozen, batch, None)
    return total, objective.weight(batch), objective.tell(sums)


def told(objective, trained, frozen, batch):
    total, weight, found = jax.jit(_told, static_argnums=0)(objective, trained, frozen, batch)
    found = {name: float(value) for name, value in found.items()}
    assert float(total / weight) == pytest.approx(found["loss"], rel=1e-5)
    return found


def test_demonstrations_cost_what_their_answers_do(params):
    some = [
        examples.Encoded([3, 4, 5, 6, 2], [False, False, True, True, True]),
        examples.Encoded([9, 8], [False, True]),
    ]
    rows = examples.PackedDemonstrations(some, np.ones(96, np.int32), 8)
    batch = stacked([rows[0]], Batch.of)
    by_hand = -(log_p(params, [3, 4], [5, 6, 2]) + log_p(params, [9], [8])) / 4
    found = told(supervised.sft(FORM), {"decoder": params}, Frozen(), batch)
    assert found["loss"] == pytest.approx(by_hand, rel=1e-5)
    assert found["align/bits_per_byte"] == pytest.approx(by_hand / math.log(2), rel=1e-5)


def test_a_reward_model_is_asked_once_for_each_answer_and_each_pair_counts(params, head):
    batch = stacked([examples.ranked_row(one, 4, WIDTH) for one in RANKED], supervised.Ranked.of)
    losses, right, pairs = [], 0, 0
    for one in RANKED[:3]:
        scores = [score(params, head, one.prompt, answer) for answer in one.answers]
        apart = [
            scores[a] - scores[b]
            for a in range(len(scores)) for b in range(len(scores)) if one.ranks[a] < one.ranks[b]
        ]  # fmt: skip
        losses.append(np.mean([math.log1p(math.exp(-x)) for x in apart]))
        right, pairs = right + sum(x > 0 for x in apart), pairs + len(apart)
    found = told(supervised.reward_model(FORM), {"decoder": params, "head": head}, Frozen(), batch)
    assert found == pytest.approx({"loss": np.mean(losses), "align/pair_accuracy": right / pairs}, rel=1e-4)
    assert batch.ranks_bk[1].tolist() == [0, 1, reward.ABSENT, reward.ABSENT]


def test_direct_preferences_are_of_whole_answers_against_the_reference(params):
    reference = perturbed(CONFIG, seed=5)
    rows = [row for one in RANKED for row in examples.pair_rows(one, WIDTH)]
    padding = {name: np.zeros_like(array) for name, array in rows[0].items()}
    batch = stacked([*rows, padding], supervised.Pairs.of)
    margins = []
    for one in RANKED:
        gains = [log_p(params, one.prompt, a) - log_p(reference, one.prompt, a) for a in one.answers]
        margins += [
            0.3 * (gains[a] - gains[b])
            for a in range(len(gains)) for b in range(len(gains)) if one.ranks[a] < one.ranks[b]
        ]  # fmt: skip
    assert len(rows) == len(margins) == 6
    found = told(supervised.direct(FORM, 5, 0.3, 0.0), {"decoder": params}, Frozen(reference=reference), batch)
    assert found["loss"] == pytest.approx(np.mean([math.log1p(math.exp(-m)) for m in margins]), rel=1e-4)
    assert found["align/margin"] == pytest.approx(np.mean(margins), rel=1e-3)
    assert found["align/pair_accuracy"] == pytest.approx(np.mean([m > 0 for m in margins]))
    # Before training the policy is the reference, and says nothing of either answer.
    same = told(supervised.direct(FORM, 5, 0.3, 0.0), {"decoder": params}, Frozen(reference=params), batch)
    assert same["loss"] == pytest.approx(math.log(2), rel=1e-6)


def test_micro_batches_take_the_same_step(params, head):
    objective, tx = supervised.reward_model(FORM), optax.sgd(0.1)
    batch = stacked([examples.ranked_row(one, 4, WIDTH) for one in RANKED], supervised.Ranked.of)
    trained = {"decoder": params, "head": head}

    def after(parts):
        state = TrainState(jnp.zeros((), jnp.int32), trained, tx.init(trained))
        step = partial(
            supervised.train_step, objective, tx, optax.constant_schedule(0.1), seed=0, micro_batches=parts,
            dropout=False,
        )  # fmt: skip
        return jax.jit(step)(state, batch, Frozen())

    (whole, said), (parts, said_of_parts) = after(1), after(2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), whole.params, parts.params)
    assert float(said["loss"]) == pytest.approx(float(said_of_parts["loss"]), rel=1e-5)
    assert float(said["tokens"]) == sum(len(one.prompt) + len(a) for one in RANKED for a in one.answers)
    # What was taken off the head is 0.1 times the slope of the mean loss, by a finite difference along it.
    slope = jax.tree.map(lambda before, now: (before - now) / 0.1, head, whole.params["head"])
    ends = [jax.tree.map(lambda h, g, e=e: h + e * g, head, slope) for e in (0.05, -0.05)]
    up, down = (told(objective, {"decoder": params, "head": end}, Frozen(), batch)["loss"] for end in ends)
    assert (up - down) / 0.1 == pytest.approx(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(slope)), rel=1e-2)
