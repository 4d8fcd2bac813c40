"""The known world beside brute force: its answers, a policy's exact table, and the best policy at a KL."""

import itertools
import math

import jax
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.align import world
from tests.conftest import apply

CONFIG = model.Config(
    vocab_size=7, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32, max_seq_len=8,
    init_std=0.5,
)  # fmt: skip
END = 6


@pytest.fixture(scope="module")
def reference():
    return world.table(CONFIG, model.init(CONFIG, jax.random.key(0)), END, END)


def by_hand(prompt, answer, ended):
    """The docstring's formula, letter by letter."""
    total = sum(math.cos(2 * math.pi * ("abcdef".index(y) - "abcdef".index(prompt[t % 2])) / 6)
                for t, y in enumerate(answer))  # fmt: skip
    return total - abs(len(answer) - 3) / 2 - (not ended)


def test_all_answers_are_listed_once_and_their_gold_is_the_formula():
    every = world.answers()
    texts = ["".join("abcdef"[i] for i in row if i >= 0) for row in every.letter_yt]
    wanted = {"".join(t) for n in range(6) for t in itertools.product("abcdef", repeat=n)}
    assert len(texts) == len(wanted) == 9331 and set(texts) == wanted
    assert [len(text) < 5 for text in texts] == every.ended_y.tolist()
    gold = world.gold("be", every.letter_yt, every.ended_y)
    for i in np.random.default_rng(0).choice(9331, 200):
        assert gold[i] == pytest.approx(by_hand("be", texts[i], len(texts[i]) < 5), abs=1e-12)
    assert texts[int(np.argmax(gold))] == "bebe" and world.gold_of_text("be", "bebe", True) == pytest.approx(3.5)
    with pytest.raises(ValueError, match="'g' is none of the letters"):
        world.gold_of_text("be", "bg", True)


def test_a_policys_table_is_that_of_each_answer_read_alone(reference):
    params = model.init(CONFIG, jax.random.key(0))
    np.testing.assert_allclose(np.exp(reference.log_p_xy).sum(1), 1, rtol=1e-5)
    every, rng = world.answers(), np.random.default_rng(1)
    for i in [0, 3, 40, 300, 1600, *rng.choice(9331, 10)]:
        answer = [int(y) for y in every.letter_yt[i] if y >= 0]
        told = answer + ([END] if every.ended_y[i] else [])
        row = [END, 1, 4, *answer, *[0] * (world.LONGEST - len(answer))]  # of one length, for one program
        log_p_tv = jax.nn.log_softmax(apply(CONFIG, params, np.array([row]))[0])
        by_tokens = sum(float(log_p_tv[2 + t, y]) for t, y in enumerate(told))
        assert reference.log_p_xy[world.PROMPTS.index("be"), i] == pytest.approx(by_tokens, abs=1e-4)


def test_no_policy_has_more_gold_at_its_kl_than_the_best(reference):
    rng = np.random.default_rng(2)
    for beta, wrong in [(1.0, 0.3), (0.5, 0.1), (0.4, 1.0)]:
        # Nearly the best one, and others further off: tilted by a reward that is wrong here and there.
        log_p_xy = reference.log_p_xy + (reference.gold_xy + wrong * rng.normal(size=reference.gold_xy.shape)) / beta
        log_p_xy -= np.log(np.exp(log_p_xy).sum(1, keepdims=True))
        policy = world.standing(world.Table(log_p_xy, reference.gold_xy), reference)
        best = world.best_at(reference, policy.kl)
        assert best.kl == pytest.approx(policy.kl, abs=1e-6)
        assert policy.gold < best.gold < policy.gold + 2 * wrong
    tilted = world.best(reference, 0.5)
    assert world.best_at(reference, tilted.kl).gold == pytest.approx(tilted.gold, abs=1e-6)
    assert world.standing(reference, reference).kl == 0
    assert world.best_at(reference, 99).gold == pytest.approx(3.5, abs=1e-3)
    with pytest.raises(ValueError, match="the reference alone has none"):
        world.best_at(reference, 0)


def test_demonstrations_and_comparisons_have_the_distribution_that_is_said():
    every = world.answers()
    shown = world.demonstrations(36_000, seed=0)
    gold = {prompt: world.gold(prompt, every.letter_yt, every.ended_y) for prompt in world.PROMPTS}
    exact = []
    for prompt in world.PROMPTS:
        p = np.where(every.ended_y, np.exp(gold[prompt]), 0)
        exact.append((p / p.sum()) @ gold[prompt])
    seen = [by_hand(row["prompt"], row["response"], True) for row in shown]
    assert np.mean(seen) == pytest.approx(np.mean(exact), abs=4 * np.std(seen) / 36_000**0.5)
    # Of two answers the better one is preferred as often as a sigmoid of the difference says.
    z = []
    for row in world.comparisons(20_000, 3, seed=1):
        a, b, _ = row["responses"]
        apart = by_hand(row["prompt"], a, True) - by_hand(row["prompt"], b, True)
        p = 1 / (1 + math.exp(-apart))
        if a != b:
            z.append(((row["ranks"][0] < row["ranks"][1]) - p) / math.sqrt(p * (1 - p)))
    assert abs(np.mean(z)) < 4 / len(z) ** 0.5
    assert np.var(z) == pytest.approx(1, abs=0.1)
