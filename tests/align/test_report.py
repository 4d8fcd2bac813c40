"""The page of a job of alignment."""

import json
import re

import numpy as np
import pytest

from gpt4jax.align import report
from gpt4jax.errors import UserError


def known(kl, gain):
    """Evaluations in the known world, of policies whose gain is half of what is possible."""
    return [
        {"step": step, "eval/align/gold": 1 + one, "eval/align/gold_before": 1.0, "eval/align/score": 3 * step,
         "eval/align/kl": at, **({"eval/align/gold_best": 1 + 2 * one} if at > 1e-3 else {})}
        for step, (at, one) in enumerate(zip(kl, gain, strict=True))
    ]  # fmt: skip


def test_the_law_of_over_optimisation_is_found_again():
    kl = np.array([0.0, 0.25, 1.0, 2.25, 4.0, 9.0])
    d = np.sqrt(kl)
    gain = np.where(d > 0, d * (0.8 - 0.3 * np.log(np.maximum(d, 1e-9))), 0)
    words = report.gain_words(known(kl, gain))
    assert f"Gold gained {gain[-1]:.3f} at the end, at a KL of 9.00 nats an answer: 50.0% of" in words
    assert "Fitted to 5 policies: d (0.800 -0.300 log d), largest at" in words
    peak = np.exp(2 * (0.8 / 0.3 - 1))
    assert f"largest at a KL of {peak:.2f} nats, root mean squared error 0.000; " in words
    assert f"the largest gain measured is {gain.max():.3f}." in words
    assert "(0.800 +0.300 log d), which only grows" in report.gain_words(known(kl, d * 1.6 - gain))
    few = report.gain_words(known(kl[:4], gain[:4]))
    assert "Fitted" not in few  # the law has two parameters
    drawn = {line.get_label(): line for line in report.gain_figure(known(kl, gain)).axes[0].lines}
    np.testing.assert_allclose(drawn["gold"].get_xydata(), np.stack([d, gain], axis=1))
    np.testing.assert_allclose(drawn["gold of the best policy at this KL"].get_ydata(), 2 * gain)
    law = drawn["d (0.80 -0.30 log d)"].get_xydata()
    np.testing.assert_allclose(law[1:, 1], law[1:, 0] * (0.8 - 0.3 * np.log(law[1:, 0])), rtol=1e-9)


def test_a_stage_is_drawn_by_what_it_said(tmp_path):
    (tmp_path / "sft").mkdir()
    lines = [{"step": 1, "train/loss": 2.5}, {"step": 2, "train/loss": 1.5}, {"step": 2, "eval/heldout/loss": 1.75}]
    (tmp_path / "sft" / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawn = {line.get_label(): line.get_xydata() for line in report.curves("sft", lines).axes[0].lines}
    np.testing.assert_array_equal(drawn["trained on"], [[1, 2.5], [2, 1.5]])
    np.testing.assert_array_equal(drawn["held out"], [[2, 1.75]])
    html = report.write(tmp_path).read_text()
    assert re.findall("<h2>(.*?)</h2>", html) == ["sft"] and "not done yet" in html
    (tmp_path / "sft" / "done.json").write_text(json.dumps({"num_steps": 2, "eval/heldout/loss": 1.75, "sha256": {}}))
    html = report.write(tmp_path).read_text()
    assert "<td>heldout/loss</td><td>1.7500</td>" in html and "2 steps" in html and "sha256" not in html
    with pytest.raises(UserError, match="has no stage of an alignment with metrics"):
        report.write(tmp_path / "sft")
