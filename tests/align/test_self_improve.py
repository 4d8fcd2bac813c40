"""Votes, formats and rounds of self-improvement, counted by hand; no answer but the model's own is ever seen."""

import ast
import collections
import inspect
import pathlib
from types import SimpleNamespace

import numpy as np
import pytest

from gpt4jax.align import self_improve
from gpt4jax.align.self_improve import Exemplar, Sampling
from gpt4jax.data.tokenizer import from_bytes
from gpt4jax.errors import UserError
from gpt4jax.inference import Engine
from tests.conftest import SHAPES, perturbed

EXEMPLARS = [Exemplar("What is 1+1?", "1+1=2. The answer is 2."), Exemplar("What is 9-2?", "9-2=7. The answer is 7.")]


class Scripted:
    """In the engine's place: says what it is told to, whatever it is asked, and keeps what that was."""

    def __init__(self, say):
        self.tokenizer, self._say, self.asked = from_bytes(), say, []

    def generate(self, requests):
        requests = list(requests)
        self.asked += requests
        texts = [self._say(self.tokenizer.decode(request.prompt), request) for request in requests]
        return [SimpleNamespace(text=text, finish="stop") for text in texts]


def test_the_majority_by_brute_force():
    """Among random answers, some missing: the most votes, then the one that came first; confidence of all paths."""
    rng = np.random.default_rng(0)
    ties = 0
    for _ in range(500):
        drawn = rng.integers(-1, 5, rng.integers(1, 9))
        paths = ["no idea" if x < 0 else f"{x}+0={x}. The answer is {x}." for x in drawn]
        voted = self_improve.vote("?", paths)
        votes = {x: sum(y == x for y in drawn) for x in drawn if x >= 0}
        if not votes:
            assert voted.answer is None and voted.confidence == 0 and voted.kept == ()
            continue
        most = max(votes.values())
        first = next(x for x in drawn if x >= 0 and votes[x] == most)
        ties += list(votes.values()).count(most) > 1
        assert voted.answer == str(first) and voted.confidence == most / len(drawn)
        assert voted.kept == tuple(path for path, x in zip(paths, drawn, strict=True) if x == first)
    assert ties > 50


def test_the_four_formats():
    """As the paper's Table 2 shows them, letter by letter."""
    path = "2+3=5. The answer is 5."
    cot, standard, step, direct = self_improve.formats("What is 2+3?", f" {path}", EXEMPLARS)
    assert cot == {
        "prompt": "Q: What is 1+1?\nA: 1+1=2. The answer is 2.\n\nQ: What is 9-2?\nA: 9-2=7. The answer is 7.\n\n"
        "Q: What is 2+3?\nA:",
        "response": f" {path}",
    }
    assert standard == {
        "prompt": "Q: What is 1+1?\nA: The answer is 2.\n\nQ: What is 9-2?\nA: The answer is 7.\n\nQ: What is 2+3?\nA:",
        "response": " The answer is 5.",
    }
    assert step == {"prompt": "Q: What is 2+3?\nA: Let's think step by step.", "response": f" {path}"}
    assert direct == {"prompt": "Q: What is 2+3?\nA:", "response": " The answer is 5."}
    with pytest.raises(UserError, match="never says"):
        self_improve.formats("What is 2+3?", "2+3=5.", EXEMPLARS)
    with pytest.raises(UserError, match="never says"):
        self_improve.prompts("What is 2+3?", [Exemplar("?", "5")])


def test_demonstrations_are_all_paths_of_the_majority():
    sure = self_improve.vote("A?", ["a. The answer is 1.", "b. The answer is 1.", "a. The answer is 1.", "hm"])
    unsure = self_improve.vote("B?", ["c. The answer is 3.", "d. The answer is 4."])
    silent = self_improve.vote("C?", ["hm"])
    found = self_improve.demonstrations([sure, unsure, silent], EXEMPLARS)
    said = collections.Counter(one["response"] for one in found)
    # Of each kept path two formats show the path and two the answer.
    assert said == {
        " a. The answer is 1.": 4, " b. The answer is 1.": 2, " The answer is 1.": 6,
        " c. The answer is 3.": 2, " The answer is 3.": 2,
    }  # fmt: skip
    only = self_improve.demonstrations([sure, unsure, silent], EXEMPLARS, least_confidence=0.75)
    assert only == [one for one in found if "B?" not in one["prompt"]]


def test_nobody_tells_it_an_answer():
    """A model that is wrong throughout teaches itself what is wrong; and no module with answers is imported."""
    engine = Scripted(lambda prompt, request: " 2+2=5. The answer is 5.")
    taught = []

    def fine_tune(model, data, number):
        taught.append(data)
        return model + 1

    rounds = list(
        self_improve.improve(
            0, ["What is 2+2?"], EXEMPLARS, Sampling(paths=3), rounds=2, engine_of=lambda model: engine,
            fine_tune=fine_tune,
        )
    )  # fmt: skip
    assert [model for model, _ in rounds] == [1, 2]
    assert all(len(data) == 12 and all("5." in one["response"] for one in data) for data in taught)
    for name in ("ask", "improve", "demonstrations", "sample", "generate_questions", "vote"):
        assert not {"golds", "gold", "problems"} & set(inspect.signature(getattr(self_improve, name)).parameters)
    tree = ast.parse(pathlib.Path(self_improve.__file__).read_text())
    imported = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    imported |= {f"{node.module}.{name.name}" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)
                 for name in node.names}  # fmt: skip
    assert not any("arithmetic" in name for name in imported)


def test_rounds_draw_anew_and_later_ones_hotter():
    engine = Scripted(lambda prompt, request: " The answer is 5.")
    sampling = Sampling(paths=4, temperature=0.7, top_k=9, max_tokens=11, seed=6)
    rounds = self_improve.improve(
        "base", ["What is 2+2?", "What is 3+3?"], EXEMPLARS, sampling, rounds=3, engine_of=lambda model: engine,
        fine_tune=lambda model, data, number: f"{model}{number}",
    )  # fmt: skip
    assert [model for model, _ in rounds] == ["base0", "base01", "base012"]
    assert [request.temperature for request in engine.asked] == [0.7] * 8 + [1.2] * 16
    assert len({request.seed for request in engine.asked}) == 24
    assert {(request.top_k, request.max_tokens) for request in engine.asked} == {(9, 11)}
    prompts = [engine.tokenizer.decode(request.prompt) for request in engine.asked[:8]]
    assert prompts == [self_improve.prompts(f"What is {n}+{n}?", EXEMPLARS)["few_shot_cot"] for n in [2] * 4 + [3] * 4]
    nothing = self_improve.improve(
        0, ["?"], EXEMPLARS, sampling, rounds=1, engine_of=lambda model: Scripted(lambda *_: "hm"),
        fine_tune=lambda *_: 0,
    )  # fmt: skip
    with pytest.raises(UserError, match="of 1 questions none has an answer"):
        next(nothing)


def test_new_questions_are_none_of_the_old_and_none_twice():
    old = [f"What is {n}+1?" for n in range(6)]
    said = iter([" What is 7+1?\n", " What is 2+1?", " What is 7+1?", "", " What is 8+1?"])
    engine = Scripted(lambda prompt, request: next(said))
    assert self_improve.generate_questions(engine, old, 5, shown=3) == ["What is 7+1?", "What is 8+1?"]
    shown = [engine.tokenizer.decode(request.prompt).split("\n\n") for request in engine.asked]
    assert all(len(set(one)) == 4 and one[-1] == "Q:" for one in shown)
    assert all(set(one[:-1]) <= {f"Q: {question}" for question in old} for one in shown)
    assert len({tuple(one) for one in shown}) > 1
    with pytest.raises(UserError, match="6 questions are too few"):
        self_improve.generate_questions(engine, old, 1, shown=7)


def test_a_sampled_path_is_a_function_of_its_question_and_number(engine):
    some = self_improve.sample(engine, ["Q: a\nA:", "Q: b\nA:"], Sampling(3, 0.7, max_tokens=6, seed=1))
    alone = self_improve.sample(engine, ["Q: b\nA:"], Sampling(2, 0.7, max_tokens=6, seed=1))
    assert some[1][:2] == alone[0] and len({*some[0], *some[1]}) > 3
    assert self_improve.sample(engine, ["Q: b\nA:"], Sampling(2, 0.7, max_tokens=6, seed=2)) != alone
    with pytest.raises(UserError, match="paths are 0"):
        self_improve.sample(engine, ["Q: b\nA:"], Sampling(0))


@pytest.fixture(scope="module")
def engine():
    from gpt4jax import model

    config = model.Config(**next(iter(SHAPES.values())) | {"num_layers": 1, "max_seq_len": 64, "vocab_size": 257})
    return Engine(config, perturbed(config), tokenizer=from_bytes(), rows=3)


def test_measures_by_hand():
    voted = [
        self_improve.vote("A?", ["The answer is 1."] * 3 + ["The answer is 2."]),
        self_improve.vote("B?", ["The answer is 1.", "hm", "The answer is 2.", "The answer is 2."]),
        self_improve.vote("C?", ["hm"] * 4),
    ]
    found = self_improve.measure(voted, ["1", "1", "1"])
    assert found["single"].mean == pytest.approx((3 + 1 + 0) / 12) and found["single"].clusters == 3
    assert found["majority"].mean == pytest.approx(1 / 3)
    bins = self_improve.by_confidence(voted, ["1", "1", "1"], (0.0, 0.5, 0.75, 1.0))
    assert [(low, high, None if e is None else (e.mean, e.items)) for low, high, e in bins] == [
        (0.0, 0.5, (0.0, 1)), (0.5, 0.75, (1.0, 1)), (0.75, 1.0, None),
    ]  # fmt: skip
    with pytest.raises(ValueError, match="shorter"):
        self_improve.measure(voted, ["1"])
