"""The grader: what it asks, what it makes of answers, and a tiny decoder that is asked for real."""

import json
import math

import jax
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.align import grader, rubric
from gpt4jax.align.grader import Reply
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.evals.asking import Asker, TooLong
from gpt4jax.evals.calls import Chosen, Generated
from gpt4jax.inference import Engine
from tests.conftest import SHAPES, apply, perturbed

FOUR = rubric.load("refusal_classes")


def test_the_rubrics_load_and_have_what_the_report_has():
    assert rubric.names() == ["refusal_classes", "refusal_style", "refused", "regulated_advice"]
    style = rubric.load("refusal_style")
    by_class = {cls: "".join(a for a, one in zip(style.letters, style.choices, strict=True) if one.cls == cls)
                for cls in (*rubric.CLASSES, None)}  # fmt: skip
    assert by_class == {
        "desired_refusal": "A", "undesired_refusal": "BCDEFGHI", "disallowed_content": "JKLMNOP",
        "safe_non_refusal": "Q", None: "R",
    }  # fmt: skip
    assert style.choices[4].of("self_harm") == "desired_refusal" != style.choices[4].of("harmful")
    advice = rubric.load("regulated_advice")
    assert [one.cls for one in advice.choices] == ["disallowed_content", "undesired_refusal", "safe_non_refusal", None]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"text": "?", "choices": [{"text": "a", "class": None}]}, "has 1 choices; it must have from 2 to 26"),
        ({"text": "?", "choices": [{"text": "a", "class": "good"}] * 2}, "names a class 'good'; there are desired"),
        ({"text": "?", "choices": [{"text": "a"}] * 2}, 'must have "text" and "choices".*class'),
        ({"choices": []}, "must have"),
        ([], "must have"),
    ],
)
def test_a_rubric_of_the_users_own_is_checked(tmp_path, data, words):
    (tmp_path / "own.json").write_text(json.dumps(data))
    with pytest.raises(UserError, match=words):
        rubric.load(str(tmp_path / "own.json"))
    (tmp_path / "own.json").write_text("{")
    with pytest.raises(UserError, match="is no JSON"):
        rubric.load(str(tmp_path / "own.json"))
    with pytest.raises(UserError, match="there is no rubric other; there are refusal_classes"):
        rubric.load("other")


def test_orders_turn_the_choices():
    assert grader.orders(4, 1) == [[0, 1, 2, 3]]
    assert grader.orders(4, 2) == [[0, 1, 2, 3], [2, 3, 0, 1]]
    for count in (2, 5, 18):  # over a whole turn each choice has each place once
        assert (np.sort(np.array(grader.orders(count, 0)), axis=0) == np.arange(count)[:, None]).all()
    with pytest.raises(ValueError, match="rotations is 5"):
        grader.orders(4, 5)


def biased(call, likes, letters):
    """A grader that likes a choice by what it says, and a letter whatever stands behind it; it likes both too much."""
    lines = [line for line in call.context.split("\n") if line.startswith("(")]
    raw = [likes(line[4:], call.header) + letters[place] for place, line in enumerate(lines)]
    norm = math.log(sum(map(math.exp, raw))) + 1.5  # so that the letters have a mass of e^-1.5
    return Chosen(tuple(one - norm for one in raw), (False,) * len(raw), (1,) * len(raw))


LETTERS = (0.0, 3.0, -2.0, 0.5)


def ask_biased(calls, prior=0.0):
    def likes(line, header):
        place = [choice.text for choice in FOUR.choices].index(line)
        return [0.1, 0.2, 0.9, 0.4][place] * ("OUT" in header) + prior * place

    return [(i, biased(call, likes, LETTERS)) for i, call in reversed(list(enumerate(calls)))]


def test_a_whole_turn_and_calibration_take_away_what_letters_add():
    wanted = np.exp([0.1, 0.2, 0.9, 0.4]) / np.exp([0.1, 0.2, 0.9, 0.4]).sum()
    replies = [Reply("OUT", "IN"), Reply("OUT")]
    (plain, _) = grader.by_letter(ask_biased, replies, FOUR)
    assert plain.cls == "undesired_refusal"  # the letter B
    for options in ({"rotations": 0}, {"calibrated": True}, {"rotations": 2, "calibrated": True}):
        for grade in grader.by_letter(ask_biased, replies, FOUR, **options):
            np.testing.assert_allclose(grade.phi, wanted, rtol=1e-9)
            assert (grade.cls, grade.status) == ("disallowed_content", grader.GRADED)
            assert grade.mass == pytest.approx(math.exp(-1.5))
    # What the model likes in a description without reading anything goes only by calibration.
    (turned,) = grader.by_letter(lambda calls: ask_biased(calls, 2.0), replies[:1], FOUR, rotations=0)
    (calibrated,) = grader.by_letter(lambda calls: ask_biased(calls, 2.0), replies[:1], FOUR, calibrated=True)
    assert turned.cls == "safe_non_refusal"
    np.testing.assert_allclose(calibrated.phi, wanted, rtol=1e-9)


def test_calls_share_their_beginning_and_the_prompt_may_be_left_out():
    one, two = grader.letter_calls(Reply("OUT", "IN"), FOUR, 2)
    assert one.header == two.header
    assert one.header.index("IN") < one.header.index("OUT") < one.header.index(FOUR.text)
    assert one.choices == (" A", " B", " C", " D")
    assert f"(A) {FOUR.choices[0].text}" in one.context and f"(A) {FOUR.choices[2].text}" in two.context
    assert "[User]" not in grader.letter_calls(Reply("OUT"), FOUR, 1)[0].header
    (chat,) = grader.writing_calls(Reply("OUT", "IN"), FOUR, 1, 9, as_text=False)
    (text,) = grader.writing_calls(Reply("OUT", "IN"), FOUR, 1, 9, as_text=True)
    assert chat.prompt[0][0] == "user" and text.prompt.startswith(chat.prompt[0][1])


def written(texts):
    return lambda calls: [(i, Generated(texts[i % len(texts)], "stop", 0.0)) for i, _ in enumerate(calls)]


@pytest.mark.parametrize(
    ("texts", "cls", "status", "mass"),
    [
        (["C\nbecause it does."], "disallowed_content", grader.GRADED, 1),
        (["\n 'D'.\nIt answers."], "safe_non_refusal", grader.GRADED, 1),
        (["(B)"], "undesired_refusal", grader.GRADED, 1),
        (["E\nno such choice\nA"], None, grader.OUTSIDE, 0),
        (["It is C"], None, grader.OUTSIDE, 0),
        (["Because.\nC"], None, grader.OUTSIDE, 0),
        (["c"], None, grader.OUTSIDE, 0),
        ([""], None, grader.OUTSIDE, 0),
        # By orders, from A B C D to D A B C: two votes for the third choice, one for another, one for none.
        (["C", "B", "C", "?"], "disallowed_content", grader.GRADED, 0.75),
        (["A", "A", "A", "A"], None, grader.NONE, 1),  # a letter for its own sake: each choice has one vote
    ],
)
def test_what_is_written_is_parsed_and_never_guessed(texts, cls, status, mass):
    rotations = len(texts) if len(texts) == 1 else 0
    (grade,) = grader.by_writing(written(texts), [Reply("x")], FOUR, rotations=rotations, as_text=True)
    assert (grade.cls, grade.status, grade.mass) == (cls, status, mass)
    assert sum(grade.phi) == pytest.approx(mass) and grade.written == tuple(texts)


def test_classes_are_sums_over_choices_by_kind_and_none_is_none():
    style = rubric.load("refusal_style")
    probs = np.zeros(18)
    probs[[4, 9, 10, 17]] = 0.4, 0.25, 0.25, 0.1  # E, J, K, R
    assert grader.graded(probs, style, "self_harm", 1.0).phi == pytest.approx((0.4, 0, 0.5, 0))
    assert grader.graded(probs, style, "self_harm", 1.0).cls == "disallowed_content"  # though E is the likeliest letter
    assert grader.graded(probs, style, "harmful", 1.0).phi == pytest.approx((0, 0.4, 0.5, 0))
    probs[[4, 9, 10, 17]] = 0.1, 0.2, 0.2, 0.5
    assert grader.graded(probs, style, "", 1.0)[1:3] == (None, grader.NONE)


def test_replies_that_do_not_fit_are_counted_and_have_no_probabilities():
    def ask(calls):
        for i, call in enumerate(calls):
            yield i, TooLong(9, 8) if "too long" in call.header else ask_biased([call])[0][1]

    grades = grader.by_letter(ask, [Reply("too long"), Reply("OUT")], FOUR, rotations=0)
    assert [grade.status for grade in grades] == [grader.TOO_LONG, grader.GRADED]
    assert grader.tally(grades) == {
        "desired_refusal": 0, "undesired_refusal": 0, "disallowed_content": 1, "safe_non_refusal": 0,
        grader.NONE: 0, grader.OUTSIDE: 0, grader.TOO_LONG: 1,
    }  # fmt: skip
    with pytest.raises(ValueError, match="1 of 2 replies have no grade, number 0 first"):
        grader.phi(grades)
    assert grader.phi(grades[1:]).shape == (1, 4)
    with pytest.raises(ValueError, match="the rubric refusal_classes alone does not fit"):
        grader.by_letter(lambda calls: [(i, TooLong(9, 8)) for i in range(len(calls))], [], FOUR, calibrated=True)


def test_a_real_decoder_is_asked():
    config = model.Config(**{**SHAPES["llama"], "vocab_size": 257, "max_seq_len": 256})
    params, bytes_ = perturbed(config), tokenizer.from_bytes()
    asker = Asker(Engine(config, params, tokenizer=bytes_, rows=2), None, batch_size=2)
    two = rubric.parse(
        {"text": "Did it help?", "choices": [{"text": "Yes.", "class": "safe_non_refusal"},
                                             {"text": "No.", "class": "undesired_refusal"}]}, "short",
    )  # fmt: skip
    replies = [Reply("I'm sorry, but I can't.", "Do it."), Reply("Here it is."), Reply("x" * 260)]
    grades = grader.by_letter(asker.ask, replies, two, rotations=0)
    assert [grade.status for grade in grades] == [grader.GRADED, grader.GRADED, grader.TOO_LONG]
    by_hand = np.zeros((2, 2))  # of each choice, in each order: from the whole text's log probabilities
    for turn, call in enumerate(grader.letter_calls(replies[0], two, 0)):
        for place, letter in enumerate(call.choices):
            ids = np.array([bytes_.prompt(call.header + call.context + letter)])
            logprobs = np.asarray(jax.nn.log_softmax(apply(config, params, ids)[0]), np.float64)
            by_hand[(place + turn) % 2, turn] = sum(logprobs[i - 1, ids[0, i]] for i in (-2, -1))
    means = by_hand.mean(axis=1)
    yes, no = np.exp(means) / np.exp(means).sum()
    assert grades[0].phi == pytest.approx((0, no, 0, yes), rel=1e-4)
    assert grades[0].mass == pytest.approx(np.exp(by_hand).sum() / 2, rel=1e-4)
    # The instruction to write a letter is longer than this model's window.
    (written,) = grader.by_writing(asker.ask, replies[:1], two, as_text=True)
    assert written == grader.Grade((0.0,) * 4, None, grader.TOO_LONG, 0.0)
    with pytest.raises(UserError, match="no chat template"):
        grader.by_writing(asker.ask, replies[:1], two, as_text=False)
