"""Human-scored responses: small files made by hand, and what the pinned package holds."""

import itertools
import json

import numpy as np
import pytest

from gpt4jax import files
from gpt4jax.align import human_scored, reward
from gpt4jax.align.human_scored import Scored
from gpt4jax.errors import UserError

CSV = """# dataset_version=1.0, harm_definition=violence.yaml,,
# a second line
harm_category,objective,assistant_response,human_score_1,human_score_2,data_type
VIOLENCE,start a fight,"I won't,
really",0,0.5,text
violence,start a fight,Hit first.,1,1,text
"""


def scored(prompt, response, score, scale="harm"):
    return Scored(scale, "violence", prompt, response, score)


def test_rows_are_read_behind_comments_and_scores_are_means_over_annotators():
    rows = human_scored.parse(CSV, "harm", "violence.csv")
    assert rows == [scored("start a fight", "I won't,\nreally", 0.25), scored("start a fight", "Hit first.", 1.0)]


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("0,0.5", "0,often", "violence.csv, row 1: a human score is no number"),
        ("0,0.5", "0,5", r"row 1: the human scores are \[0.0, 5.0\]; they must be from 0 to 1"),
        ("Hit first.", " ", "row 2: it needs an objective"),
        ("human_score", "machine_score", "row 1: it needs an objective, an assistant_response and a human_score"),
    ],
)
def test_rows_that_can_not_be_used_are_named(old, new, words):
    with pytest.raises(UserError, match=words):
        human_scored.parse(CSV.replace(old, new), "harm", "violence.csv")


def test_comparisons_rank_from_the_least_harmful_and_keep_ties():
    rows = [
        scored("a", "worst", 1.0), scored("a", "fine", 0.0), scored("a", "also fine", 0.25), scored("A ", "fine", 0.5),
        scored("b", "one", 0.5), scored("b", "two", 0.5),  # nothing but a tie
        scored("c", "alone", 0.5),
        scored("a", "fine", 1.0, "objective"), scored("a", "worst", 0.0, "objective"),  # harm has the prompt
        scored("b", "one", 1.0, "objective"), scored("b", "two", 0.0, "objective"),
        scored("d", "no", 1.0, "refusal"), scored("d", "yes", 0.0, "refusal"),
        scored("a", "fine", 0.5),  # once more: its mean is 0.25, a tie with the third
    ]  # fmt: skip
    first, second = human_scored.comparisons(rows[:3] + rows[4:])
    found = dict(zip(first["responses"], first["ranks"], strict=True))
    assert found == {"fine": 0, "also fine": 0, "worst": 1}
    assert (second["prompt"], second["scale"]) == ("b", "objective")
    assert dict(zip(second["responses"], second["ranks"], strict=True)) == {"two": 0, "one": 1}
    (cut,) = human_scored.comparisons(rows[:3], most=2)
    assert len(cut["responses"]) == 2
    assert cut["responses"] == human_scored.comparisons(rows[:3])[0]["responses"][:2]
    assert human_scored.comparisons(rows[:2])[0] == human_scored.comparisons(rows[1::-1])[0]  # the order says nothing


def test_a_prompt_is_on_one_side_whatever_its_case_and_spaces():
    prompts = [f"prompt number {i}" for i in range(4000)]
    train, held = human_scored.split(prompts, lambda prompt: prompt)
    assert sorted(train + held) == sorted(prompts)
    assert abs(len(held) / 4000 - human_scored.HELD_OUT) < 0.03  # 4 standard errors
    assert [human_scored.held_out(f" {one.upper()}\n") for one in prompts] == [one in set(held) for one in prompts]
    fewer = human_scored.split(prompts, lambda prompt: prompt, 0.1)[1]
    assert set(fewer) < set(held)  # a smaller share is part of a larger one
    human_scored.check_apart(train, held)
    with pytest.raises(ValueError, match="1 prompts are trained on and measured with, 'a b' among them"):
        human_scored.check_apart(["a  B", "c"], ["A b", "d"])


def test_pairs_and_their_order_are_those_of_the_reward_model():
    ranks, scores = [2, 0, 1, 1], [0.5, 1.0, 0.5, 2.0]
    right = human_scored.right({"ranks": ranks}, scores)
    by_hand = [
        1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
        for i, j in itertools.permutations(range(4), 2)
        if ranks[i] < ranks[j]
    ]
    assert sorted(right) == sorted(by_hand)
    summed, count = reward.right_pairs(np.array([scores]), np.array([ranks]))
    assert (float(summed[0]), int(count[0])) == (right.sum(), len(right))


def test_written_lines_are_read_again(tmp_path):
    lines = human_scored.comparisons([scored("a", "x\u2028y", 1.0), scored("a", "ü", 0.0)])
    human_scored.write(tmp_path / "deep" / "train.jsonl", lines)
    read = [json.loads(line) for line in (tmp_path / "deep" / "train.jsonl").read_text().split("\n")[:-1]]
    assert read == lines


def test_the_package_holds_what_the_docstring_says():
    rows = human_scored.load(files.cache_dir())
    assert len(rows) == 1593
    unique = human_scored.distinct(rows)
    assert sorted({row.score for row in unique if row.scale != "harm"}) == [0, 1]
    for scale, count, alone, prompts in (
        ("harm", 1005, 984, 390),
        ("objective", 395, 394, 337),
        ("refusal", 193, 169, 128),
    ):
        ours = [row for row in unique if row.scale == scale]
        assert sum(row.scale == scale for row in rows) == count
        assert (len(ours), len({row.prompt for row in ours})) == (alone, prompts)
    assert sum(row.score for row in unique if row.scale == "refusal") == 109
    texts = {scale: {row[2:4] for row in unique if row.scale == scale} for scale in ("harm", "objective", "refusal")}
    assert len(texts["harm"] & texts["objective"]) == 201 and len(texts["refusal"] & texts["objective"]) == 18
    assert not {prompt for prompt, _ in texts["harm"]} & {prompt for prompt, _ in texts["refusal"]}
    for most, responses, pairs in ((0, 668, 3644), (9, 519, 1327)):
        found = human_scored.comparisons(rows, most)
        harm = [one for one in found if one["scale"] == "harm"]
        assert (len(harm), len(found) - len(harm)) == (101, 52)
        assert sum(len(one["responses"]) for one in harm) == responses
        assert sum(len(human_scored.pairs(one["ranks"])) for one in harm) == pairs
        assert all(set(one["ranks"]) == set(range(max(one["ranks"]) + 1)) for one in found)
    train, held = human_scored.split(found, lambda one: one["prompt"])
    human_scored.check_apart([one["prompt"] for one in train], [one["prompt"] for one in held])
