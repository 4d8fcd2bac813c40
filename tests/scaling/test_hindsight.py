"""Bets read back from their words: the label is the expected value's, and the outcome misleads."""

import json
import re

import jax
import numpy as np
import pytest

from gpt4jax import model, weights
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.scaling import hindsight, inverse
from tests.conftest import SHAPES, apply, perturbed

QUESTION = re.compile(
    r"chance of (\d+) percent it brings in (\d+) dollars, with a chance of (\d+) percent it costs (\d+) dollars"
    r".*?(wins and receives|does not win and pays) (\d+) dollars.*?Answer Y or N\.\nAnswer:( [YN])?",
    re.DOTALL,
)


def read(prompt: str) -> list[tuple[float, bool, str]]:
    """(expected value, won, answer or "") of each bet of a prompt, from its words alone."""
    out = []
    for found in QUESTION.finditer(prompt):
        win, gain, lose, loss = (int(found[i]) for i in (1, 2, 3, 4))
        assert win + lose == 100
        won = found[5].startswith("wins")
        assert int(found[6]) == (gain if won else loss)
        out.append((win / 100 * gain - lose / 100 * loss, won, found[7] or ""))
    return out


@pytest.fixture(scope="module")
def items():
    return hindsight.items(seed=0, count=316)


def test_shots_agree_and_items_disagree(items):
    for item in items:
        *shots, (value, won, answer) = read(item.prompt)
        assert len(shots) == 10 and answer == ""
        for shot_value, shot_won, shot_answer in shots:
            assert shot_won == (shot_value > 0)
            assert shot_answer == (" Y" if shot_value > 0 else " N")
        assert won == (value < 0)
        assert item.classes[item.answer_index] == (" Y" if value > 0 else " N")


def test_labels_and_shots_are_balanced(items):
    assert sum(item.answer_index for item in items) == 158
    *shots, _ = read(items[0].prompt)
    assert sum(answer == " Y" for _, _, answer in shots) == 5


def test_expected_values_are_clear(items):
    for item in items:
        found = list(QUESTION.finditer(item.prompt))[-1]
        win, gain, lose, loss = (int(found[i]) for i in (1, 2, 3, 4))
        assert max(win * gain, lose * loss) >= 2 * min(win * gain, lose * loss)


def test_no_bet_comes_twice(items):
    prompts = [item.prompt for item in items]
    questions = [prompt.split("\n\n")[-1] for prompt in prompts]
    shots = prompts[0].split("\n\n")[:-1]
    assert len(set(questions)) == 316 and len(set(shots)) == 10
    assert not {shot.removesuffix(" Y").removesuffix(" N") for shot in shots} & set(questions)
    seen: set = set()
    rng = np.random.default_rng(1)
    bets = [hindsight.draw(rng, right=True, agrees=False, seen=seen) for _ in range(200)]
    assert len(seen) == len({(bet.name, bet.percent, bet.gain, bet.loss) for bet in bets}) == 200


def test_a_bet_already_seen_is_not_drawn_again():
    first = hindsight.draw(np.random.default_rng(5), right=True, agrees=True, seen=(seen := set()))
    again = hindsight.draw(np.random.default_rng(5), right=True, agrees=True, seen=seen)
    assert (first.name, first.percent, first.gain, first.loss) != (again.name, again.percent, again.gain, again.loss)


def test_seeds_and_shots(items):
    assert hindsight.items(0, 5) == items[:5]
    assert hindsight.items(1, 5) != items[:5]
    (item,) = hindsight.items(0, 1, shots=0)
    assert len(read(item.prompt)) == 1 and item.prompt.startswith("Question:")
    assert hindsight.items(0, 0) == ()
    with pytest.raises(ValueError, match="count is -1"):
        hindsight.items(0, -1)


def test_expected_value_of_a_bet_by_hand():
    bet = hindsight.Bet("Ines", percent=20, gain=50, loss=10, won=False)  # 0.2 * 50 - 0.8 * 10
    assert bet.expected_value == 2 and bet.right and not bet.agrees


def test_who_goes_by_the_outcome_is_always_wrong(items):
    answers = [item.answer_index for item in items]
    won = [read(item.prompt)[-1][1] for item in items]
    outcome = [[-1.0, -2.0] if w else [-2.0, -1.0] for w in won]
    assert hindsight.accuracy(outcome, answers) == 0
    assert hindsight.accuracy(-np.array(outcome), answers) == 1
    assert hindsight.accuracy([[-1.0, -2.0]] * len(items), answers) == 0.5


def test_accuracy_by_hand_and_bad_input():
    assert hindsight.accuracy([[-1, -2], [-1, -2], [-3, -2], [-2, -2]], [0, 1, 1, 0]) == 0.75
    for scores, answers, match in (
        ([[-1.0, -2.0]], [0, 1], "shape"),
        ([], [], "shape"),
        (np.zeros((0, 2)), np.zeros(0), "an item at least"),
        ([[np.nan, -1.0]], [0], "not a number"),
        ([[-1.0, -2.0]], [2], "index"),
    ):
        with pytest.raises(ValueError, match=match):
            hindsight.accuracy(scores, answers)


def test_the_command_against_the_decoder_itself(tmp_path, capsys):
    """Accuracy by the full forward pass of each prompt with each answer, without the engine."""
    config = model.Config(**SHAPES["llama"] | dict(vocab_size=257, max_seq_len=1024))
    params, tok = perturbed(config), tokenizer.get("bytes", tmp_path, list, "")
    weights.save(tmp_path / "tiny", config, params, tok)
    flags = ["--weights", str(tmp_path / "tiny"), "--out", str(tmp_path / "out"), "--items", "6", "--shots", "1"]
    assert inverse.main(flags) == 0
    right = []
    for item in hindsight.items(0, 6, 1):
        scores = []
        for answer in item.classes:
            before, after = tok.prompt(item.prompt), tok.encode(answer)
            ids = np.array([before + after + [0] * (1024 - len(before + after))])  # one shape, and causal
            log_p = jax.nn.log_softmax(apply(config, params, ids)[0])
            scores.append(sum(float(log_p[len(before) + i - 1, t]) for i, t in enumerate(after)))
        right.append(int(np.argmax(scores)) == item.answer_index)
    report = json.loads((tmp_path / "out" / "inverse.json").read_text())
    (found,) = report["models"].values()
    assert found["accuracy"] == pytest.approx(np.mean(right)) and found["always_yes"] == 0.5
    assert f"accuracy {np.mean(right):.3f}" in capsys.readouterr().out
    assert (tmp_path / "out" / "figure3.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(UserError, match="has 1024 positions and bets take .*: lower --shots"):
        inverse.main([*flags[:-1], "10"])
