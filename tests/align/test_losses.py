"""The losses of comparisons beside loops in float64: reward model, DPO, the weights of rules."""

import itertools
import math

import jax
import numpy as np
import pytest

from gpt4jax.align import dpo, rbrm, reward

RANKS = np.array([[0, 1, 2, 3], [1, 1, 0, reward.ABSENT], [2, 0, reward.ABSENT, reward.ABSENT], [0, 0, 0, 1]])


def log_sigmoid(x):
    return -math.log1p(math.exp(-x))


def pairs_of(row):
    here = [k for k, rank in enumerate(row) if rank != reward.ABSENT]
    return [(a, b) for a, b in itertools.permutations(here, 2) if row[a] < row[b]]


def test_the_pairwise_loss_is_a_mean_over_prompts_of_means_over_pairs():
    scores = np.random.default_rng(0).normal(size=RANKS.shape) * 3
    by_hand = [
        np.mean([-log_sigmoid(row[a] - row[b]) for a, b in pairs_of(ranks)])
        for row, ranks in zip(scores, RANKS, strict=True)
    ]
    assert [len(pairs_of(ranks)) for ranks in RANKS] == [6, 2, 1, 3]  # ties dropped
    assert float(reward.pairwise_loss(scores, RANKS)) == pytest.approx(np.mean(by_hand), rel=1e-6)
    tied = np.concatenate([RANKS, [[1, 1, 1, 1]]])  # a prompt of ties weighs nothing
    more = np.concatenate([scores, [[9.0, -9.0, 3.0, 1.0]]])
    assert float(reward.pairwise_loss(more, tied)) == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_the_pairwise_loss_moves_no_score_that_is_in_no_pair_and_leaves_the_mean_open():
    scores = np.random.default_rng(1).normal(size=RANKS.shape)
    gradient = np.asarray(jax.grad(reward.pairwise_loss)(scores, RANKS))
    assert not gradient[RANKS == reward.ABSENT].any()
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-6)
    shifted = reward.pairwise_loss(scores + 5, RANKS)
    assert float(shifted) == pytest.approx(float(reward.pairwise_loss(scores, RANKS)), rel=1e-5)
    demonstrations = np.array([1.0, 2.0, 6.0])
    assert float(reward.bias(demonstrations)) == pytest.approx(-3.0)


def test_pairs_that_are_ordered_rightly():
    scores = np.array([[4.0, 3.0, 1.0, 2.0], [0.0, 0.0, 0.0, 9.0], [1.0, 0.0, 9.0, 9.0], [1.0, 2.0, 3.0, 2.0]])
    right, count = reward.right_pairs(scores, RANKS)
    assert right.tolist() == [5.0, 1.0, 0.0, 1.5]
    assert count.tolist() == [6, 2, 1, 3]


@pytest.mark.parametrize(
    ("ranks", "words"),
    [
        ([[0, 1], [0, reward.ABSENT]], r"prompt 1 has 1 ranked response\(s\): a comparison needs two"),
        ([[2, 2], [0, 1]], "prompt 0: all 2 responses are ranked alike"),
    ],
)
def test_rankings_that_say_nothing_are_refused(ranks, words):
    with pytest.raises(ValueError, match=words):
        reward.check_ranks(np.array(ranks))
    reward.check_ranks(RANKS)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_dpo(smoothing):
    rng = np.random.default_rng(2)
    chosen, rejected, chosen_reference, rejected_reference = rng.normal(size=(4, 9)) * 20 - 60
    found = dpo.loss(chosen, rejected, chosen_reference, rejected_reference, beta=0.1, smoothing=smoothing)
    losses, margins = [], []
    for a, b, c, d in zip(chosen, rejected, chosen_reference, rejected_reference, strict=True):
        margin = 0.1 * ((a - c) - (b - d))
        losses.append(-(1 - smoothing) * log_sigmoid(margin) - smoothing * log_sigmoid(-margin))
        margins.append(margin)
    expected = [np.mean(losses), np.mean(margins), np.mean(np.array(margins) > 0)]
    np.testing.assert_allclose(np.array(found), expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"below 0.5"):
        dpo.loss(chosen, rejected, chosen_reference, rejected_reference, smoothing=0.5)


def test_the_gradient_of_dpo_weighs_pairs_by_how_wrong_they_are():
    """Equation 8: beta sigmoid(rejected - chosen), up for the chosen answer and down for the other."""
    rng = np.random.default_rng(3)
    arrays = rng.normal(size=(4, 6)) * 5
    up, down = jax.grad(lambda a, b: dpo.loss(a, b, *arrays[2:], beta=0.3).loss, argnums=(0, 1))(*arrays[:2])
    margin = 0.3 * ((arrays[0] - arrays[2]) - (arrays[1] - arrays[3]))
    expected = -0.3 / (1 + np.exp(margin)) / 6
    np.testing.assert_allclose(up, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(down, -expected, rtol=1e-5, atol=1e-7)


def rules(seed, count=200):
    """Pairs whose reward model likes the worse one in most, and whose grader knows better."""
    rng = np.random.default_rng(seed)
    better, worse = rng.normal(0.0, 1.0, count), rng.normal(0.8, 1.0, count)
    good, bad = rng.dirichlet([8, 1, 1, 1], count), rng.dirichlet([1, 4, 4, 1], count)
    return rbrm.Pairs(better, worse, good, bad)


def test_the_hinge_loss_of_rules():
    pairs, weights = rules(0), np.array([1.0, -0.5, -2.0, 0.25])
    by_hand, right = [], []
    for b in range(200):
        ahead = pairs.better_score_b[b] + sum(weights[i] * pairs.better_phi_bi[b, i] for i in range(4))
        behind = pairs.worse_score_b[b] + sum(weights[i] * pairs.worse_phi_bi[b, i] for i in range(4))
        by_hand.append(max(0.0, 1.0 - (ahead - behind)))
        right.append(ahead > behind)
    assert float(rbrm.hinge_loss(pairs, weights)) == pytest.approx(np.mean(by_hand), rel=1e-6)
    assert float(rbrm.ordered(pairs, weights)) == pytest.approx(np.mean(right))


def test_fitted_weights_overcome_what_the_reward_model_prefers():
    """On pairs that they were not fitted on; and no other weights, searched by scipy, have a smaller loss."""
    from scipy import optimize

    pairs, held_out = rules(1), rules(2)
    weights = np.asarray(rbrm.fit(pairs, steps=3000))
    alone, both = float(rbrm.ordered(held_out, np.zeros(4))), float(rbrm.ordered(held_out, weights))
    assert alone < 0.4 and both > 0.95
    # The best there are, as a linear program: minimise the mean of z with z >= 0, z >= 1 - score - phi w.
    phi, score = pairs.better_phi_bi - pairs.worse_phi_bi, pairs.better_score_b - pairs.worse_score_b
    count = len(score)
    solved = optimize.linprog(
        np.r_[np.zeros(4), np.full(count, 1 / count)], A_ub=np.c_[-phi, -np.eye(count)], b_ub=score - 1,
        bounds=[(None, None)] * 4 + [(0, None)] * count,
    )  # fmt: skip
    assert float(rbrm.hinge_loss(pairs, weights)) <= solved.fun + 0.01
