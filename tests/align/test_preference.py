"""Win rates: which prompts are compared, blind and random order, verdicts of judges, and intervals by brute force."""

import dataclasses
import math

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from scipy import stats as distributions

from gpt4jax import model, weights
from gpt4jax.align import exports, preference, scorer
from gpt4jax.align.preference import FIRST, OUTSIDE, SECOND, TIE, UNREAD, Judged, Verdict
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.evals.asking import Asker, TooLong
from gpt4jax.evals.calls import Chosen, Generated
from gpt4jax.inference import Engine
from tests.conftest import SHAPES, apply, perturbed

PROMPTS = [f"Tell me about the number {i}, please" for i in range(600)]
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def test_prompts_are_filtered_and_each_is_counted_once():
    long = "How do I bake a loaf of bread?"
    common = ["What can you do for me?", "what can you do for me", "What can you do for me!"]
    personal = ["Write to jo.smith@example.org about the rent", "Please call +44 (0)20 7946 0018 for me"]
    numbers = "What happened in 1789 and 1848, in 1914 - 1918, and on 2024-02-29?"
    twice = ["Why is the sky blue?", "why is  the sky blue"]
    kept, left = preference.kept([long, "Hello, ChatGPT!", *common, *personal, numbers, *twice, "?"])
    assert kept == [long, numbers, twice[0]]
    assert left == {"personal": 2, "short": 2, "common": 3, "again": 1}
    assert preference.kept(common, most=3)[0] == common[:1]


def test_a_good_judge_finds_the_better_response_wherever_it_stands():
    ours, theirs = [f"good {i}" for i in range(600)], [f"bad {i}" for i in range(600)]
    seen = []

    def judge(some):
        seen.extend(some)
        return [Verdict(FIRST if shown.first.startswith("good") else SECOND) for shown in some]

    verdicts = preference.judged(PROMPTS, ours, theirs, judge)
    found = preference.win_rate(verdicts)
    assert found.win_rate.mean == 1 and found.counts["ours"] == 600 and found.counts["theirs"] == 0
    swapped = np.mean([one.swapped for one in verdicts])
    assert abs(swapped - 0.5) < 4 * 0.5 / math.sqrt(600) and found.first.mean == pytest.approx(1 - swapped)
    assert [one.first.startswith("bad") for one in seen] == [one.swapped for one in verdicts]
    assert preference.judged(PROMPTS, ours, theirs, judge) == verdicts  # again the same
    others = preference.judged(PROMPTS, ours, theirs, judge, seed=1)
    assert 200 < sum(a.swapped != b.swapped for a, b in zip(verdicts, others, strict=True)) < 400
    # Whoever is called ours: one minus the rate, and the judge is shown the same.
    back = preference.judged(PROMPTS, theirs, ours, judge)
    assert preference.win_rate(back).win_rate.mean == 0


def test_a_judge_of_places_wins_nothing_in_both_orders():
    ours, theirs = ["a"] * 600, ["b"] * 600
    verdicts = preference.judged(PROMPTS, ours, theirs, lambda some: [Verdict(FIRST)] * len(some), both_orders=True)
    found = preference.win_rate(verdicts)
    assert len(verdicts) == 1200 and found.win_rate.mean == 0.5 and found.win_rate.clusters == 600
    assert found.first.mean == 1 and found.agree.mean == 0
    assert found.win_rate.standard_error == 0  # each prompt has one win in its two verdicts


def test_orders_agree_where_somebody_was_asked():
    """A judge of places on one pair that is equal and two that are not: it agrees with itself nowhere."""
    judge = lambda some: [preference.Verdict(preference.FIRST) for _ in some]  # noqa: E731
    found = preference.win_rate(preference.judged("abc", ["x", "y", "z"], ["x", "1", "2"], judge, both_orders=True))
    assert found.agree.mean == 0 and found.agree.items == 2


def test_equal_responses_are_a_tie_that_nobody_is_asked_about():
    asked = []
    verdicts = preference.judged(
        PROMPTS[:2], ["same", "a"], ["same", "b"], lambda some: asked.extend(some) or [Verdict(OUTSIDE)]
    )
    assert len(asked) == 1 and [one.score for one in verdicts] == [0.5, None]
    found = preference.win_rate(verdicts)
    assert found.counts == {"ours": 0, "theirs": 0, TIE: 1, OUTSIDE: 1, UNREAD: 0}
    assert found.win_rate.items == 1 and found.first is None and found.agree is None
    assert preference.win_rate([verdicts[1]]).win_rate is None
    with pytest.raises(ValueError, match="was asked 1 times and gave 2 answers"):
        preference.judged(PROMPTS[:1], ["a"], ["b"], lambda some: [Verdict(FIRST)] * 2)
    with pytest.raises(ValueError, match="2 prompts, 1 responses of ours and 2 of theirs"):
        preference.judged(PROMPTS[:2], ["a"], ["b", "c"], lambda some: [])


def test_the_rate_and_its_interval_are_those_of_brute_force():
    rng = np.random.default_rng(0)
    answers = rng.choice([FIRST, SECOND, TIE, OUTSIDE, "something else"], 300, p=[0.4, 0.3, 0.1, 0.1, 0.1])
    swapped = rng.random(300) < 0.5
    prompts = [f"prompt {i % 120}" for i in range(300)]
    verdicts = [Judged(p, bool(s), Verdict(str(a))) for p, s, a in zip(prompts, swapped, answers, strict=True)]
    scores, clusters = [], []
    for prompt, turn, answer in zip(prompts, swapped, answers, strict=True):
        if answer in (FIRST, SECOND, TIE):
            mine = {FIRST: SECOND, SECOND: FIRST, TIE: TIE}[answer] if turn else answer
            scores.append({FIRST: 1.0, SECOND: 0.0, TIE: 0.5}[mine])
            clusters.append(prompt)
    mean = sum(scores) / len(scores)
    sums = {}
    for score, prompt in zip(scores, clusters, strict=True):
        sums[prompt] = sums.get(prompt, 0) + score - mean
    groups = len(sums)
    error = math.sqrt(groups / (groups - 1) * sum(one**2 for one in sums.values())) / len(scores)
    half = distributions.t.ppf(0.975, groups - 1) * error
    found = preference.win_rate(verdicts)
    np.testing.assert_allclose(
        [found.win_rate.mean, found.win_rate.standard_error, found.win_rate.low, found.win_rate.high],
        [mean, error, mean - half, mean + half], rtol=1e-12,
    )  # fmt: skip
    assert found.counts["something else"] == (answers == "something else").sum()
    assert sum(found.counts.values()) == 300
    assert found.first.mean == pytest.approx((answers == FIRST).sum() / np.isin(answers, (FIRST, SECOND)).sum())


SHOWN = [preference.Shown("Which one?", "left", "right"), preference.Shown("Which one?", "up", "down")]


def test_letters_are_compared_and_what_does_not_fit_is_not_read():
    nan = float("nan")
    every = ((-1.0, -2.0), (-3.0, -3.0), (-3.0, -1.0), (nan, -1.0))
    said = [Chosen(logprobs, (False, False), (1, 1)) for logprobs in every]
    outputs = [said[0], TooLong(99, 10), *said[1:]]
    judge = preference.by_letter(lambda calls: reversed(list(enumerate(outputs[: len(calls)]))))
    assert [one.answer for one in judge([*SHOWN * 2, SHOWN[0]])] == [FIRST, UNREAD, TIE, SECOND, UNREAD]


def test_what_is_written_counts_only_if_it_is_a_letter():
    texts = ["A", "(B)\nbecause", "Both are good", "a", "A or B", ""]

    def ask(calls):
        assert all("left" in str(call.prompt) and "[Response B]" in str(call.prompt) for call in calls)
        return [(i, Generated(text, "stop", 0.0)) for i, text in enumerate(texts)]

    found = preference.by_writing(ask, as_text=True)(SHOWN[:1] * 6)
    assert [one.answer for one in found] == [FIRST, SECOND, *[OUTSIDE] * 4]
    assert found[2].detail == {"written": texts[2]}


def test_scores_are_compared_and_a_response_without_one_is_not_read():
    scores = {"left": 1.0, "right": 0.5, "up": float("nan"), "down": 3.0}
    judge = preference.by_score(lambda pairs: np.array([scores[response] for _, response in pairs]))
    assert [one.answer for one in judge(SHOWN)] == [FIRST, UNREAD]
    assert judge(SHOWN)[0].detail == {"scores": [1.0, 0.5]}


def test_a_decoder_is_asked_for_real():
    config = model.Config(**SHAPES["llama"] | {"vocab_size": 257, "max_seq_len": 512})
    params = perturbed(config)
    engine = Engine(config, params, tokenizer=tokenizer.from_bytes(), rows=2)
    (verdict,) = preference.by_letter(Asker(engine, None, 2).ask)(SHOWN[:1])
    captured = []
    preference.by_letter(lambda calls: captured.extend(calls) or [(0, TooLong(0, 0))])(SHOWN[:1])
    text = tokenizer.from_bytes().prompt(captured[0].context)
    logits_tv = np.asarray(apply(config, params, np.array([[*text, *b" A"]]))[0], np.float64)
    logp_tv = logits_tv - np.logaddexp.reduce(logits_tv, axis=-1, keepdims=True)
    space = logp_tv[len(text) - 1, ord(" ")]
    wanted = [space + logp_tv[len(text), ord(letter)] for letter in "AB"]
    np.testing.assert_allclose(verdict.detail["logprobs"], wanted, atol=1e-4)
    assert verdict.answer == (FIRST if wanted[0] > wanted[1] else SECOND)


def test_a_reward_model_scores_what_its_head_says(tmp_path):
    config = model.Config(**SHAPES["llama"] | {"vocab_size": 257, "max_seq_len": 64})
    params = perturbed(config)
    named = dataclasses.replace(tokenizer.from_bytes(), chat_template=TEMPLATE)
    weights.save(tmp_path, config, params, named)
    with pytest.raises(UserError, match="is no reward model"):
        scorer.of_export(str(tmp_path))
    head = {"score_d": np.linspace(-1, 1, 32).astype(np.float32), "bias": np.float32(0.3)}
    save_file({name: np.asarray(value) for name, value in head.items()}, tmp_path / exports.HEAD)
    score = scorer.of_export(str(tmp_path), rows=2)
    pairs = [("hi", "there"), ("hi", ""), ("who?", "me"), ("hi", "x" * 60), ("hi", "you there")]
    found = score(pairs)
    assert np.isnan(found).tolist() == [False, True, False, True, False]
    said = [[*f"user: {prompt}".encode(), 256, *f"assistant: {text}".encode(), 256] for prompt, text in pairs]
    read = [said[i] for i in (0, 2, 4)]
    padded = np.array([[*tokens, *[0] * (64 - len(tokens))] for tokens in read])
    x_btd = np.asarray(jax.jit(model.features, static_argnums=0)(config, params, padded)[0], np.float64)
    wanted = [x_td[len(tokens) - 1] @ head["score_d"] + head["bias"] for x_td, tokens in zip(x_btd, read, strict=True)]
    np.testing.assert_allclose(found[[0, 2, 4]], wanted, atol=1e-4)
    alone = score(pairs[:1])
    assert alone[0] == pytest.approx(found[0], abs=1e-5)
