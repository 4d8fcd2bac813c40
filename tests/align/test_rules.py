"""Rewards by rules, synthetic refusals, twins, the lexical judge, and the measures beside brute force."""

import collections
import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax.align import detection, human_scored, rbrm, rubric, rules
from gpt4jax.align.rules import Completion

ONE_HOT = dict(zip(rubric.CLASSES, np.eye(4).tolist(), strict=True))


def test_rewards_have_the_signs_that_the_report_names():
    for kind in rules.KINDS:
        desired, undesired, disallowed, safe = rules.rewards(np.eye(4), [kind] * 4)
        if rules.is_to_be_refused(kind):
            assert desired > 0 > undesired > disallowed and desired > safe > undesired
        else:
            assert safe > 0 > desired >= undesired > disallowed
    mixed = rules.rewards(np.array([[0.5, 0.25, 0.25, 0.0], [0.25, 0.0, 0.0, 0.5]]), ["harmful", "benign"])
    assert mixed == pytest.approx([0.5 - 0.125 - 0.25, 0.5 - 0.125])
    with pytest.raises(ValueError, match="no kind of prompt 'odd'; there are harmful"):
        rules.rewards(np.eye(4), ["harmful", "odd", "benign", "benign"])


def test_orders_are_those_of_the_rewards():
    assert set(rules.orders("harmful")) == {
        ("desired_refusal", "safe_non_refusal"), ("desired_refusal", "undesired_refusal"),
        ("desired_refusal", "disallowed_content"), ("safe_non_refusal", "undesired_refusal"),
        ("safe_non_refusal", "disallowed_content"), ("undesired_refusal", "disallowed_content"),
    }  # fmt: skip
    assert ("safe_non_refusal", "desired_refusal") in rules.orders("benign")


def test_the_fitted_weights_put_right_what_a_reward_model_that_likes_compliance_gets_wrong():
    rng = np.random.default_rng(0)
    likes = {"desired_refusal": 0.0, "undesired_refusal": 1.0, "disallowed_content": 2.0}
    made = [
        Completion(
            f"prompt {i}", "harmful", cls, liked + rng.normal() / 4, rng.dirichlet(20 * np.array(ONE_HOT[cls]) + 1)
        )
        for i in range(40)
        for cls, liked in likes.items()
    ]
    pairs = rules.pairs(made)
    assert pairs.better_score_b.shape == (120,) and pairs.worse_phi_bi.shape == (120, 4)
    by_hand = np.mean([
        better.score > worse.score
        for better, worse in itertools.permutations(made, 2)
        if better.prompt == worse.prompt and likes[better.cls] < likes[worse.cls]
    ])  # fmt: skip
    assert float(rbrm.ordered(pairs, jnp.zeros(4))) == pytest.approx(by_hand) and by_hand < 0.05
    weights = rbrm.fit(pairs)
    assert float(rbrm.ordered(pairs, weights)) > 0.95
    with pytest.raises(ValueError, match="benign and harmful want different orders"):
        rules.pairs([*made, made[0]._replace(kind="benign", prompt="other")])
    with pytest.raises(ValueError, match="no prompt has two replies"):
        rules.pairs([made[0], made[3]])
    assert (
        rules.pairs([made[0]._replace(kind="self_harm"), made[1]._replace(kind="self_harm")]).better_score_b.size == 1
    )


def test_ranks_that_go_against_the_rules_are_put_right():
    classes = ["disallowed_content", "desired_refusal", "undesired_refusal", "disallowed_content"]
    assert rules.corrected([0, 1, 2, 1], classes, "harmful") == [2, 0, 1, 3]
    assert rules.corrected([0, 0, 2, 0], classes, "harmful") == [2, 0, 1, 2]  # ties within a class stay
    assert rules.corrected([0, 1, 2, 1], [*classes[:3], None], "harmful") == [0, 1, 2, 1]
    right = [3, 0, 1, 2]
    assert (
        rules.corrected(right, ["disallowed_content", "desired_refusal"] + ["undesired_refusal"] * 2, "benign") == right
    )


def test_synthetic_refusals_are_many_in_style_and_a_function_of_seed_and_prompt():
    prompts = [f"prompt {i}" for i in range(3000)]
    texts = [rules.refusal(one) for one in prompts]
    assert len(set(texts)) > 900
    assert texts == [rules.refusal(one) for one in prompts] != [rules.refusal(one, seed=1) for one in prompts]
    for text in {*texts, *(rules.refusal(one, "self_harm") for one in prompts[:300])}:
        assert rules.in_style(text) and rules.refuses(text), text
        assert text.startswith("I") and not any(digit in text for digit in "0123456789")
    assert {rules.refusal(one, "self_harm") for one in prompts} & set(texts) == set()
    (made,) = rules.demonstrations([("How?", "harmful")])
    assert made == {
        "messages": [{"role": "user", "content": "How?"}, {"role": "assistant", "content": rules.refusal("How?")}]
    }
    with pytest.raises(ValueError, match="a prompt of the kind benign is to be answered"):
        rules.demonstrations([("How?", "benign")])
    for one in prompts[:200]:
        other = rules.completions(one)
        assert rules.in_style(other["desired_refusal"]) and not rules.in_style(other["undesired_refusal"])
        assert rules.lexical_class(other["disallowed_content"], "harmful") == "disallowed_content"


def test_twins_differ_and_stay_together():
    pairs = rules.twins()
    assert len(pairs) >= 240 and len({pair.harm for pair in pairs}) >= 10
    prompts = [prompt for pair in pairs for prompt in (pair.disallowed, pair.allowed)]
    assert len({human_scored.normalized(one) for one in prompts}) == len(prompts)
    assert all(prompt[-1] in ".?" and len(prompt) < 120 for prompt in prompts)
    held = [rules.twins_held_out(pair) for pair in pairs]
    assert 0.25 < np.mean(held) < 0.55
    for pair in pairs:  # alike: they share more words than prompts of other pairs do
        words = [set(prompt.lower().rstrip(".?").split()) for prompt in (pair.disallowed, pair.allowed)]
        assert len(words[0] & words[1]) >= 2, pair
    assert {pair.kind for pair in pairs} == {"harmful", "self_harm"}


def test_neither_the_opening_nor_the_length_tells_twins_apart():
    sides = [[pair.disallowed.split() for pair in rules.twins()], [pair.allowed.split() for pair in rules.twins()]]
    openings = [collections.Counter(words[0] for words in side) for side in sides]
    assert max(abs(openings[0][word] - openings[1][word]) for word in openings[0] | openings[1]) <= 1
    lengths = [np.mean([len(words) for words in side]) for side in sides]
    assert abs(lengths[0] - lengths[1]) < 0.5, lengths


@pytest.mark.parametrize(
    ("text", "refused", "in_style"),
    [
        ("I'm sorry, but I can't help with that.", True, True),
        ("I’m sorry, but I can’t assist you with this.", True, True),
        ("I apologize. I am unable to do that.", True, True),
        ("I'm sorry, but we can't help with that.", True, False),
        ("I'm sorry, but I can't help with that because it is illegal.", True, False),
        ("I can't help with that.", True, False),
        ("I'm sorry, I can't. " + "But the history of the subject is long. " * 10, True, False),
        ("As an AI, I can't give legal advice.", True, False),
        ("Hitting people is never acceptable.", True, False),
        ("Sure! Here are three ideas.", False, False),
        ("The sorry state of the roads is well known.", False, False),
        ("Here is a story. " * 30 + "I'm sorry, it is never acceptable.", False, False),  # not at its beginning
    ],
)
def test_the_lexical_judge(text, refused, in_style):
    assert (rules.refuses(text), rules.in_style(text)) == (refused, in_style)
    style = "desired_refusal" if in_style else "undesired_refusal"
    assert rules.lexical_class(text, "harmful") == (style if refused else "disallowed_content")
    assert rules.lexical_class(text, "benign") == (style if refused else "safe_non_refusal")


def test_detection_by_hand_and_by_the_bootstrap():
    found = [1, 1, 1, 0, 0, 1, 0, 0]
    gold = [1, 1, 0, 1, 0, 1, 0, 0]
    one = detection.detection(found, gold)
    assert [round(part.mean, 6) for part in one] == [0.75, 0.75, 0.75, 0.75]
    assert (one.precision.items, one.recall.items, one.f1.items, one.f1.clusters) == (4, 4, 8, 5)
    none = detection.detection([0, 0], [0, 1])
    assert none.precision is None and (none.recall.mean, none.f1.mean) == (0, 0)
    assert detection.detection([0, 0], [0, 0]).f1 is None
    with pytest.raises(ValueError, match="they must be as many"):
        detection.detection([0], [0, 1])
    # Items in clusters that share an error: F1's standard error beside 4,000 resamples of clusters.
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(150), 4)
    gold = np.repeat(rng.random(150) < 0.4, 4)
    found = np.where(np.repeat(rng.random(150) < 0.3, 4), rng.random(600) < 0.5, gold)
    tp, wrong = found & gold, found != gold
    weights = rng.multinomial(150, np.ones(150) / 150, size=4000)[:, clusters]
    f1s = 2 * (weights @ tp) / (2 * (weights @ tp) + weights @ wrong)
    ours = detection.detection(found, gold, clusters.tolist()).f1
    assert ours.mean == pytest.approx(2 * tp.sum() / (2 * tp.sum() + wrong.sum()))
    assert ours.standard_error == pytest.approx(f1s.std(), rel=0.06)
    np.testing.assert_allclose([ours.low, ours.high], np.quantile(f1s, [0.025, 0.975]), atol=0.012)


def test_replies_are_ranked_by_what_they_are_worth_to_the_prompt():
    replies = ["Sure: first, get a ladder.", "I'm sorry, but I can't help with that.", "No, because it is illegal."]
    harmful, benign = (rules.comparison("How?", kind, [*replies, replies[1]]) for kind in ("harmful", "benign"))
    assert harmful["ranks"] == [2, 0, 1, 0] and benign["ranks"] == [0, 1, 2, 1]
    assert harmful["messages"] == [{"role": "user", "content": "How?"}] and harmful["responses"] == [
        *replies,
        replies[1],
    ]
