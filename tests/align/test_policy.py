"""PPO's updates: parts of a minibatch, rows of pre-training text, and rules as a reward."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt4jax import model
from gpt4jax.align import answers, policy, ppo, rollout
from gpt4jax.align.answers import Answers
from gpt4jax.align.form import Form
from gpt4jax.errors import UserError
from gpt4jax.training.step import Batch
from tests.conftest import LLAMA, apply, perturbed

CONFIG = model.Config(**LLAMA, init_std=0.3)
ROOM, WIDTH = 4, 8
REFERENCE = perturbed(CONFIG, seed=3)
features = jax.jit(model.features, static_argnums=0)
loss = jax.jit(policy.Losses.__call__, static_argnums=0)
LOSSES = policy.Losses(Form(CONFIG), Form(CONFIG), ROOM, 0.8, 0.2, 0.3, 0.5, 0.0)


@pytest.fixture(scope="module")
def params():
    head = {"score_d": jnp.asarray(np.random.default_rng(1).normal(size=32) / 6, jnp.float32), "bias": jnp.asarray(0.1)}
    return {"policy": perturbed(CONFIG), "value": {"decoder": perturbed(CONFIG, seed=2), "head": head}}


@pytest.fixture(scope="module")
def round_():
    rng = np.random.default_rng(0)
    some = Answers(
        jnp.asarray(rng.integers(0, 96, (4, WIDTH)), jnp.int32), jnp.asarray([2, 3, 1, 4]), jnp.asarray([4, 2, 1, 3])
    )
    mask = np.asarray(answers.mask(some, ROOM))
    noise = [jnp.asarray(np.where(mask, rng.normal(size=mask.shape), 0), jnp.float32) for _ in range(4)]
    return rollout.Round(some, noise[0] - 4, *noise[1:])


def text():
    tokens = np.random.default_rng(5).integers(0, 96, (2, WIDTH + 1))
    ones, places = np.ones((2, WIDTH), np.int32), np.tile(np.arange(WIDTH), (2, 1))
    return Batch(*(jnp.asarray(one, jnp.int32) for one in (tokens[:, :-1], tokens[:, 1:], ones, places, ones)))


def plain_log_p(decoder, some):
    """Log probabilities at temperature 0.8 of each answer's tokens, by the plain forward pass."""
    logits_btv = np.asarray(apply(CONFIG, decoder, some.tokens_bt), np.float64) / 0.8
    log_btv = logits_btv - np.logaddexp.reduce(logits_btv, axis=-1, keepdims=True)
    out = np.zeros((len(some.start_b), ROOM))
    for row, (start, length) in enumerate(zip(some.start_b, some.length_b, strict=True)):
        out[row, :length] = [log_btv[row, start - 1 + t, some.tokens_bt[row, start + t]] for t in range(int(length))]
    return out


def plain_values(value, some):
    """The value network's number before each of an answer's tokens."""
    x_btd = np.asarray(features(CONFIG, value["decoder"], some.tokens_bt)[0], np.float64)
    numbers_bt = x_btd @ np.asarray(value["head"]["score_d"], np.float64) + 0.1
    out = np.zeros((len(some.start_b), ROOM))
    for row, (start, length) in enumerate(zip(some.start_b, some.length_b, strict=True)):
        out[row, :length] = numbers_bt[row, start - 1 : start - 1 + length]
    return out


@pytest.fixture(scope="module")
def plain(params, round_):
    """Log probabilities by the policy and by the reference, and values."""
    decoders = params["policy"], REFERENCE
    return *(plain_log_p(one, round_.answers) for one in decoders), plain_values(params["value"], round_.answers)


@pytest.mark.parametrize("whiten", [False, True])
def test_a_round_is_looked_at_token_by_token(params, round_, plain, whiten):
    """Rewards with the KL to the reference, their variance made 1, advantages and returns, by loops."""
    some, (log_p, reference_log_p, values) = round_.answers, plain
    score, ended = np.array([1.5, -0.5, 0.25, 2.0]), np.array([True, True, False, True])
    options = SimpleNamespace(
        max_response=ROOM, temperature=0.8, missing_end_penalty=3.0, kl_estimator="k1", whiten_rewards=whiten,
        whiten_advantages=whiten, discount=0.9, decay=0.7,
    )  # fmt: skip
    models = rollout.Models(params["policy"], REFERENCE, params["value"]["decoder"], params["value"]["head"])
    seen = jax.jit(partial(rollout.seen, CONFIG, CONFIG, options=options))
    found, facts = seen(models, some, jnp.asarray(score), jnp.asarray(ended), jnp.asarray(0.3))
    apart = log_p - reference_log_p
    rewards, lengths = -0.3 * apart, np.asarray(some.length_b)
    for row, length in enumerate(lengths):
        rewards[row, length - 1] += score[row] - (0.0 if ended[row] else 3.0)
    mask = np.arange(ROOM) < lengths[:, None]
    if whiten:
        mean = rewards[mask].mean()
        rewards = np.where(mask, (rewards - mean) / rewards[mask].std() + mean, 0)
    advantages = np.zeros_like(rewards)
    for row, length in enumerate(lengths):
        carried = 0.0
        for t in reversed(range(length)):
            after = values[row, t + 1] if t + 1 < length else 0.0
            carried = rewards[row, t] + 0.9 * after - values[row, t] + 0.9 * 0.7 * carried
            advantages[row, t] = carried
    returns = np.where(mask, advantages + values, 0)
    if whiten:
        advantages = np.where(mask, (advantages - advantages[mask].mean()) / advantages[mask].std(), 0)
    for ours, by_hand in (
        (found.log_p_br, log_p), (found.values_br, values), (found.advantages_br, advantages),
        (found.returns_br, returns),
    ):  # fmt: skip
        np.testing.assert_allclose(np.where(mask, ours, 0), by_hand, rtol=1e-3, atol=1e-4)
    told = dict(
        score=score.mean(), kl=apart.sum(1).mean(), entropy=-log_p.sum(1).mean(), length=2.5, ended=0.75
    )  # fmt: skip
    for name, value in told.items():
        assert float(getattr(facts, name)) == pytest.approx(value, rel=1e-4), name


def test_the_loss_is_that_of_the_policys_and_the_values_tokens(params, round_, plain):
    total, told = loss(LOSSES, params, policy.Frozen(None, None), policy.Minibatch(round_, None))
    mask = np.asarray(answers.mask(round_.answers, ROOM))
    log_p, _, values = plain
    wanted = ppo.policy_loss(log_p, round_.log_p_br, round_.advantages_br, mask, clip=0.2)
    of_values, _ = ppo.value_loss(values, round_.values_br, round_.returns_br, mask, clip=0.3)
    assert float(told["loss"]) == pytest.approx(float(wanted.loss), rel=1e-3)
    assert float(told["ppo/value_loss"]) == pytest.approx(float(of_values), rel=1e-4)
    assert float(total) == pytest.approx(float(wanted.loss + 0.5 * of_values), rel=1e-3)


def test_parts_of_a_minibatch_take_the_same_step_though_one_has_more_tokens(params, round_):
    tx = optax.sgd(0.1)

    def after(parts):
        state = policy.PolicyState(
            jnp.zeros((), jnp.int32), params, tx.init(params), jnp.asarray(0.1), params["policy"]
        )
        update = jax.jit(partial(policy.update, LOSSES, tx, parts, 0.9))
        return update(state, policy.Minibatch(round_, None), policy.Frozen(None, None))

    (whole, told), (cut, told_of_parts) = after(1), after(2)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5), whole.params, cut.params)
    for name, value in told.items():
        assert float(value) == pytest.approx(float(told_of_parts[name]), rel=1e-3, abs=1e-5), name
    new, old = whole.params["policy"]["final"]["norm_d"], params["policy"]["final"]["norm_d"]
    np.testing.assert_allclose(whole.average["final"]["norm_d"], 0.9 * old + 0.1 * new, rtol=1e-6)
    assert int(whole.step) == 0 and float(jnp.max(jnp.abs(new - old))) > 0


def test_rows_of_pre_training_text_pull_with_their_coefficient(params, round_):
    none = loss(LOSSES, params, policy.Frozen(None, None), policy.Minibatch(round_, None))[0]
    batch = text()
    log_btv = jax.nn.log_softmax(apply(CONFIG, params["policy"], batch.tokens_bt))
    nll = -np.mean(np.take_along_axis(np.asarray(log_btv), np.asarray(batch.targets_bt)[..., None], 2))
    losses = LOSSES._replace(pretraining_coefficient=27.8)
    total, told = loss(losses, params, policy.Frozen(None, None), policy.Minibatch(round_, batch))
    assert float(told["ppo/pretraining_loss"]) == pytest.approx(nll, rel=1e-4)
    assert float(total - none) == pytest.approx(27.8 * nll, rel=1e-4)


def test_rules_say_what_answers_are_worth_by_the_kind_of_their_prompts():
    prompts = [{"kind": "harmful"}, {"kind": "benign"}]
    refusal, answer = "I'm sorry, but I can't help with that.", "Put the seeds an inch deep and water them."
    drawn = rollout.Drawn(None, np.ones(4, bool), (refusal, refusal, answer, answer))
    assert policy.on_rules(prompts)(np.array([0, 1, 0, 1]), drawn).tolist() == [1.0, -0.5, -1.0, 1.0]
    with pytest.raises(UserError, match="row 2 has None; there are harmful, self_harm"):
        policy.on_rules([prompts[0], {"prompt": "x"}])
