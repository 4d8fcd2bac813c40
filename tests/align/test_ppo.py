"""PPO's estimators and losses beside loops in float64, token by token, as the papers write them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax.align import ppo

B, T = 5, 7


@pytest.fixture(params=[0, 1, 2])
def rollout(request):
    """Log probabilities, values and scores of answers of 1 to T tokens; garbage where there is no token."""
    rng = np.random.default_rng(request.param)
    lengths = np.array([T, 1, *rng.integers(1, T + 1, B - 2)])
    mask = np.arange(T) < lengths[:, None]
    arrays = {name: rng.normal(size=(B, T)) for name in ("log_p", "drawn", "reference", "values", "drawn_values")}
    arrays |= {name: np.where(mask, array, 1e3) for name, array in arrays.items()}
    return lengths, mask, arrays, rng.normal(size=B)


def tokens(lengths):
    return [(b, t) for b, length in enumerate(lengths) for t in range(length)]


def assert_near(ours, by_hand):
    np.testing.assert_allclose(np.asarray(ours), by_hand, rtol=1e-6, atol=1e-6)


def gae_by_hand(rewards, values, lengths, discount, decay):
    """The sum over later surprises, each weighed by (discount * decay)^distance: equation 16 of the paper."""
    out = np.zeros((B, T))
    for b, t in tokens(lengths):
        for later in range(t, lengths[b]):
            after = values[b, later + 1] if later + 1 < lengths[b] else 0.0
            surprise = rewards[b, later] + discount * after - values[b, later]
            out[b, t] += (discount * decay) ** (later - t) * surprise
    return out


def test_estimates_of_the_kl_are_what_they_stand_for():
    """Their exact means over a distribution of six tokens: k1 and k3 give the KL, k2 its gradient."""
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        logits, reference = rng.normal(size=6), jax.nn.log_softmax(jnp.asarray(rng.normal(size=6)))

        def mean(logits, estimator, sampled):
            log_p = jax.nn.log_softmax(logits)
            weights = jax.lax.stop_gradient(jnp.exp(log_p)) if sampled else jnp.exp(log_p)
            return jnp.sum(weights * getattr(ppo.divergence(log_p, reference), estimator))

        log_p = jax.nn.log_softmax(jnp.asarray(logits))
        kl = float(jnp.sum(jnp.exp(log_p) * (log_p - reference)))
        for estimator in ("k1", "k3"):
            assert float(mean(jnp.asarray(logits), estimator, True)) == pytest.approx(kl, rel=1e-12)
        of_kl = jax.grad(lambda logits: mean(logits, "k1", False))(jnp.asarray(logits))
        of_k2 = jax.grad(lambda logits: mean(logits, "k2", True))(jnp.asarray(logits))
        np.testing.assert_allclose(of_k2, of_kl, rtol=1e-9, atol=1e-12)
        assert (np.asarray(ppo.divergence(log_p, reference).k3) >= 0).all()


def test_rewards_of_tokens(rollout):
    lengths, mask, arrays, score = rollout
    ours = ppo.token_rewards(score, arrays["drawn"], arrays["reference"], mask, coefficient=0.05)
    by_hand = np.zeros((B, T))
    for b, t in tokens(lengths):
        by_hand[b, t] = -0.05 * (arrays["drawn"][b, t] - arrays["reference"][b, t])
        if t == lengths[b] - 1:
            by_hand[b, t] += score[b]
    assert_near(ours, by_hand)
    whole = np.array([np.sum((arrays["drawn"] - arrays["reference"])[b, :n]) for b, n in enumerate(lengths)])
    assert_near(np.sum(np.asarray(ours), axis=1), score - 0.05 * whole)  # r - beta log ratio of the answer
    ended = np.array([True, False, True, False, True])
    assert_near(ppo.without_end(score, ended, 2.0), [s - 2 * (not e) for s, e in zip(score, ended, strict=True)])


@pytest.mark.parametrize(("discount", "decay"), [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (0.99, 0.0)])
def test_advantages(rollout, discount, decay):
    lengths, mask, arrays, _ = rollout
    rewards, values = arrays["log_p"], arrays["values"]
    advantages, returns = ppo.advantages(rewards, values, mask, discount=discount, decay=decay)
    by_hand = gae_by_hand(rewards, values, lengths, discount, decay)
    assert_near(advantages, by_hand)
    assert_near(returns, np.where(mask, by_hand + values, 0))
    if discount == decay == 1:  # then a return is what is still to come
        to_come = np.zeros((B, T))
        for b, t in tokens(lengths):
            to_come[b, t] = rewards[b, t : lengths[b]].sum()
        assert_near(returns, to_come)


def test_what_is_whitened(rollout):
    lengths, mask, arrays, _ = rollout
    flat = np.array([arrays["values"][at] for at in tokens(lengths)])
    for shift in (True, False):
        ours = np.asarray(ppo.whitened(arrays["values"], mask, shift=shift))
        white = (flat - flat.mean()) / math.sqrt(flat.var() + 1e-8) + (0 if shift else flat.mean())
        assert_near(np.array([ours[at] for at in tokens(lengths)]), white)
        assert not ours[~mask].any()


@pytest.mark.parametrize("clip", [0.2, 0.5])
def test_the_clipped_objective(rollout, clip):
    lengths, mask, arrays, _ = rollout
    log_p, drawn, advantage = (arrays[name] for name in ("log_p", "drawn", "values"))
    found = ppo.policy_loss(log_p, drawn, advantage, mask, clip=clip)
    loss, clipped, kl, ratios = [], [], [], []
    for at in tokens(lengths):
        ratio = math.exp(log_p[at] - drawn[at])
        held = min(max(ratio, 1 - clip), 1 + clip)
        loss.append(-min(ratio * advantage[at], held * advantage[at]))
        clipped.append(held * advantage[at] < ratio * advantage[at])
        kl.append(ratio - 1 - math.log(ratio))
        ratios.append(ratio)
    assert_near(found, [np.mean(loss), np.mean(clipped), np.mean(kl), np.mean(ratios)])


def test_where_the_policy_is_the_one_that_drew_the_gradient_is_reinforces(rollout):
    """The first update of a batch: clipping plays no part, and the ratio's gradient is that of the log probability."""
    _, mask, arrays, _ = rollout
    gradient = jax.grad(lambda log_p: ppo.policy_loss(log_p, arrays["drawn"], arrays["values"], mask).loss)
    assert_near(gradient(jnp.asarray(arrays["drawn"])), np.where(mask, -arrays["values"] / mask.sum(), 0))


@pytest.mark.parametrize("clip", [0.0, 0.2])
def test_the_loss_of_values(rollout, clip):
    lengths, mask, arrays, _ = rollout
    values, drawn, returns = (arrays[name] for name in ("values", "drawn_values", "reference"))
    loss, held = ppo.value_loss(values, drawn, returns, mask, clip=clip)
    errors, holds = [], []
    for at in tokens(lengths):
        free = (values[at] - returns[at]) ** 2
        near = drawn[at] + min(max(values[at] - drawn[at], -clip), clip) if clip else values[at]
        errors.append(max(free, (near - returns[at]) ** 2) / 2)
        holds.append(near != values[at] and abs(values[at] - drawn[at]) > clip and (near - returns[at]) ** 2 > free)
    assert_near([loss, held], [np.mean(errors), np.mean(holds)])


def test_the_adaptive_coefficient():
    """By hand: 5% above the target for 256 of 10,000 episodes; far above, a fifth counts."""
    step = dict(target=6.0, horizon=10_000, episodes=256)
    assert ppo.adapted(0.2, 6.3, **step) == pytest.approx(0.2 * (1 + 0.05 * 0.0256))
    assert ppo.adapted(0.2, 60.0, **step) == pytest.approx(0.2 * (1 + 0.2 * 0.0256))
    assert ppo.adapted(0.2, 0.0, **step) == pytest.approx(0.2 * (1 - 0.2 * 0.0256))
    with pytest.raises(ValueError, match="both must be positive"):
        ppo.adapted(0.2, 6.0, target=0.0, horizon=1.0, episodes=1)


def test_padding_changes_nothing(rollout):
    """Answers with more places behind them, whatever stands there: the same losses and gradients."""
    _, mask, arrays, score = rollout

    def all_of_it(mask, log_p, drawn, reference, values):
        rewards = ppo.token_rewards(score, drawn, reference, mask, coefficient=0.1)
        advantages, returns = ppo.advantages(rewards, values, mask)
        advantages = ppo.whitened(advantages, mask)
        policy = ppo.policy_loss(log_p, drawn, advantages, mask).loss
        return policy + ppo.value_loss(values, drawn, returns, mask)[0]

    names = ("log_p", "drawn", "reference", "values")
    wider = [np.pad(arrays[name], ((0, 0), (0, 3)), constant_values=50.0) for name in names]
    ours = jax.value_and_grad(all_of_it, argnums=(1, 4))(mask, *(arrays[name] for name in names))
    theirs = jax.value_and_grad(all_of_it, argnums=(1, 4))(np.pad(mask, ((0, 0), (0, 3))), *wider)
    assert_near(ours[0], theirs[0])
    for one, other in zip(ours[1], theirs[1], strict=True):
        assert np.isfinite(np.asarray(other)).all()
        assert_near(one, np.asarray(other)[:, :T])
