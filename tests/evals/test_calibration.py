"""Calibration on synthetic truth, and by hand."""

import math

import numpy as np
import pytest

from gpt4jax.evals import calibration
from tests.bench import calibration as bench


def test_the_plug_in_by_hand():
    confidence, correct = [0.05, 0.15, 0.15, 0.95, 1.0], [0, 1, 0, 1, 1]
    # bins: |0 - .05| of one, |.5 - .15| of two, |1 - .975| of two
    expected = (0.05 + 2 * 0.35 + 2 * 0.025) / 5
    assert calibration.expected_calibration_error(confidence, correct) == pytest.approx(expected)
    one_bin = calibration.expected_calibration_error(confidence, correct, bins=1)
    assert one_bin == pytest.approx(abs(3 / 5 - np.mean(confidence)))


def test_bins_of_equal_mass_have_equally_many():
    confidence = np.random.default_rng(0).random(103) ** 4
    found = calibration.reliability(confidence, confidence < 0.5, equal_mass=True)
    assert set(found.count_b.tolist()) == {10, 11} and found.weight_b @ found.confidence_b == pytest.approx(
        confidence.mean()
    )


def test_noise_is_that_of_outcomes_drawn_again():
    """Of independent pairs as the formula has it; of questions beside 300 draws of their right choices."""
    rng = np.random.default_rng(3)
    p_qc = calibration.softmax(rng.normal(size=(4000, 4)))
    question = np.repeat(np.arange(4000), 4)
    correct_dqc = rng.random((300, 4000, 1)) > p_qc.cumsum(axis=1)
    right_dq = np.minimum(correct_dqc.sum(axis=-1), 3)
    found = [
        calibration.reliability(p_qc.ravel(), (np.arange(4) == right[:, None]).ravel(), question=question, bins=4)
        for right in right_dq
    ]
    drawn_bb = np.cov(np.array([one.accuracy_b for one in found]).T)
    estimated_bb = np.mean([one.noise_bb for one in found], axis=0)
    sd_b = np.sqrt(np.diag(drawn_bb))
    np.testing.assert_allclose(np.diag(estimated_bb) / sd_b**2, 1, atol=0.25)  # 300 draws: 3 standard errors
    np.testing.assert_allclose(estimated_bb / np.outer(sd_b, sd_b), drawn_bb / np.outer(sd_b, sd_b), atol=0.25)
    alone = calibration.reliability(p_qc.ravel(), rng.random(p_qc.size) < p_qc.ravel(), bins=4)
    a_b, n_b = alone.accuracy_b, alone.count_b
    np.testing.assert_allclose(alone.noise_bb, np.diag(a_b * (1 - a_b) / (n_b - 1)), atol=1e-12)


def test_questions_that_lie_in_one_bin_have_no_noise():
    confidence, question = np.full(400, 0.25), np.repeat(np.arange(100), 4)
    correct = np.tile([0, 0, 1, 0], 100)
    found = calibration.reliability(confidence, correct, question=question, equal_mass=True)
    assert calibration.squared_error(found) == 0 and calibration.squared_error_interval(found) == (0, 0)


@pytest.mark.parametrize("name", ["calibrated", "too sure", "0.05 too high", "questions, calibrated"])
def test_the_debiased_error_has_no_bias_and_its_interval_covers(name):
    rows = bench.simulate(name, 1000, 40, seed=1)
    ece, plug_in, debiased, truth, inside = rows.mean(axis=0)
    assert abs(debiased - truth) < 0.002 and inside >= 0.85
    assert plug_in - truth > 0.001  # what the debiased one is without
    if name == "calibrated":
        assert 0.025 < ece < 0.037


def test_the_temperature_that_was_applied_is_found():
    rng = np.random.default_rng(4)
    logprob = rng.normal(size=(20000, 4)) * 2
    p = calibration.softmax(logprob)
    gold = np.array([rng.choice(4, p=row) for row in p])
    t = calibration.temperature(logprob * 3, gold)
    assert t == pytest.approx(3, rel=0.05)
    confidence, correct = calibration.softmax(logprob * 3, t).ravel(), (np.arange(4) == gold[:, None]).ravel()
    assert calibration.expected_calibration_error(confidence, correct) < 0.01
    assert calibration.expected_calibration_error(calibration.softmax(logprob * 3).ravel(), correct) > 0.05


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: calibration.reliability([0.5], [2]), "neither 0 nor 1"),
        (lambda: calibration.reliability([1.5], [1]), r"not in \[0, 1\]"),
        (lambda: calibration.reliability([], []), "pairs"),
        (lambda: calibration.reliability([0.5], [1], bins=0), "0 bins"),
        (lambda: calibration.squared_error(calibration.reliability([0.5, 0.95, 0.96], [1, 1, 0])), "one question only"),
        (lambda: calibration.temperature([[5.0, 0.0]] * 3, [0, 0, 0]), "no temperature"),
        (lambda: calibration.temperature([[math.nan, 0.0]], [0, 0]), "don't fit"),
    ],
)
def test_what_can_not_be_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
