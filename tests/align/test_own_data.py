"""The job that lets a model write its own training data: flags and files in, demonstrations out."""

import dataclasses
import json
from types import SimpleNamespace

import pytest

from gpt4jax import job, model, weights
from gpt4jax.align import examples, own_data, toolformer
from gpt4jax.align.toolformer import Judged, Sampled
from gpt4jax.align.tools import Call
from gpt4jax.data.tokenizer import from_bytes
from gpt4jax.errors import UserError
from gpt4jax.evals import asking
from tests.align.test_hallucinations import World, passage
from tests.align.test_measure import TEMPLATE
from tests.conftest import SHAPES, perturbed
from tests.runs import here

BYTES = from_bytes()


class Sums:
    """In the engine's place: says the sum of a question rightly on so many of four paths, and another number else."""

    tokenizer = BYTES

    def generate(self, requests):
        for number, request in enumerate(requests):
            a, b = map(int, self.tokenizer.decode(request.prompt).rpartition("What is ")[2].split("?")[0].split("+"))
            right = number % 4 < (4 if a < 5 else 2)
            yield SimpleNamespace(text=f" The answer is {a + b if right else 90 + number}.", finish="stop")


def lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def no_model(monkeypatch):
    monkeypatch.setattr(
        job, "load_model", lambda flags: SimpleNamespace(chat_template=TEMPLATE, tokenizer=BYTES, source="W")
    )


@pytest.fixture
def sums(tmp_path, monkeypatch, no_model):
    monkeypatch.setattr(own_data, "_engine", lambda model, flags: Sums())
    questions = lines(tmp_path / "questions.jsonl", [{"question": f"What is {a}+1?"} for a in (2, 7)])
    exemplars = lines(tmp_path / "exemplars.jsonl", [{"question": "What is 1+1?", "path": "1+1=2. The answer is 2."}])
    return ["self_improve", "--weights", "W", "--questions", str(questions), "--exemplars", str(exemplars),
            "--paths", "4", "--out", str(tmp_path / "out.jsonl")]  # fmt: skip


def test_paths_that_agree_become_demonstrations(sums, tmp_path, capsys):
    assert own_data.main(sums) == 0
    rows = examples.read(tmp_path / "out.jsonl")
    assert len(rows) == 4 * (4 + 2)  # formats, and paths with the majority's answer
    assert {row["response"] for row in rows} == {" The answer is 3.", " The answer is 8."}
    assert "2 questions, 4 paths each; on average 75.0% of them reach the majority's answer; 6 paths kept" in (
        capsys.readouterr().out
    )
    assert own_data.main([*sums, "--least_confidence", "0.6"]) == 0
    assert {row["response"] for row in examples.read(tmp_path / "out.jsonl")} == {" The answer is 3."}
    (tmp_path / "out.jsonl").unlink()
    with pytest.raises(UserError, match="nothing was kept"):
        own_data.main([*sums, "--least_confidence", "1.1"])
    assert not (tmp_path / "out.jsonl").exists()


def test_what_cannot_be_read_is_said(sums, tmp_path):
    lines(tmp_path / "exemplars.jsonl", [{"question": "What is 1+1?"}])
    with pytest.raises(UserError, match=r'exemplars.jsonl, row 1: there is no text "path"'):
        own_data.main(sums)
    lines(tmp_path / "exemplars.jsonl", [{"question": "What is 1+1?", "path": "2."}])
    with pytest.raises(UserError, match='this path never says "The answer is N."'):
        own_data.main(sums)
    with pytest.raises(UserError, match="--rows is 0"):
        own_data.main([*sums, "--rows", "0"])
    with pytest.raises(UserError, match="is a folder"):  # before a model is loaded
        own_data.main([*sums, "--out", str(tmp_path)])


def test_texts_with_calls_that_help_become_demonstrations(tmp_path, monkeypatch, capsys, no_model):
    texts = lines(tmp_path / "texts.jsonl", [{"text": "3 and 4 make 7."}, {"text": "Nothing to count."}])
    asked = {}

    def annotate(engine, texts, available, settings, prompt):
        asked.update(tools=sorted(available), settings=settings, prompt=prompt(texts[0]))
        call = Judged(Sampled(0, 12, Call("Calculator", "3+4"), "7"), 3.0, 3.0, 1.0)
        return toolformer.Annotated([toolformer.insert(texts[0], [call]), None], [call], 9, 4, 1)

    monkeypatch.setattr(own_data, "_engine", lambda model, flags: None)
    monkeypatch.setattr(toolformer, "annotate", annotate)
    flags = ["toolformer", "--weights", "W", "--texts", str(texts), "--out", str(tmp_path / "out.jsonl")]
    assert own_data.main([*flags, "--today", "2024-02-29", "--least_gain", "0.25"]) == 0
    assert examples.read(tmp_path / "out.jsonl") == [
        {"prompt": "", "response": "3 and 4 make [Calculator(3+4) -> 7] 7."}
    ]
    assert "2 texts: 9 calls drawn, 4 different ones run, 1 kept (25.0%), in 1 texts" in capsys.readouterr().out
    assert asked["tools"] == ["Calculator", "Calendar"] and asked["settings"].least_gain == 0.25
    assert "[Calculator(3*4) -> 12]" in asked["prompt"]
    assert own_data.main([*flags, "--ask", "Call: "]) == 0
    assert asked["tools"] == ["Calculator"] and asked["prompt"] == "Call: "
    with pytest.raises(UserError, match="at least one position"):
        own_data.main([*flags, "--positions", "0"])
    with pytest.raises(SystemExit):
        own_data.main([*flags, "--today", "tomorrow"])


def test_what_a_model_found_in_its_own_responses_becomes_comparisons(tmp_path, monkeypatch, capsys, no_model):
    """With the world for a model: flags in, files out."""
    world = World(lambda number: number, lambda number: 1)
    monkeypatch.setattr(own_data, "_engine", lambda model, flags: None)
    monkeypatch.setattr(asking, "Asker", lambda *_: SimpleNamespace(ask=world.ask))
    prompts, out, everything = (tmp_path / name for name in ("prompts.jsonl", "out.jsonl", "all.jsonl"))
    lines(prompts, [passage(number) for number in range(4)])
    flags = ["hallucinations", "--weights", "W", "--prompts", str(prompts), "--out", str(out), "--all", str(everything)]
    assert own_data.main([*flags, "--limit", "3"]) == 0
    assert [row["rewrites"] for row in examples.read(out)] == [1, 2]
    assert [row["outcome"] for row in examples.read(everything)] == ["no_hallucination", "compared", "compared"]
    assert "no_hallucination 1, compared_after_1 1, compared_after_2 1" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"nothing was kept: .*other.jsonl is not written"):
        own_data.main([*flags, "--limit", "1", "--out", str(tmp_path / "other.jsonl")])
    assert not (tmp_path / "other.jsonl").exists()
    with pytest.raises(UserError, match="--limit is 0"):
        own_data.main([*flags, "--limit", "0"])


def test_a_model_that_knows_nothing_gives_nothing(tmp_path):
    """Weights that are loaded, and asked as a user does: random ones keep to no format."""
    config = model.Config(**SHAPES["llama"] | {"vocab_size": 257, "max_seq_len": 1024})
    weights.save(tmp_path / "W", config, perturbed(config), dataclasses.replace(BYTES, chat_template=TEMPLATE))
    lines(tmp_path / "prompts", [{"messages": [{"role": "user", "content": "2+2?"}]}])
    lines(tmp_path / "questions", [{"question": "What is 2+2?"}])
    lines(tmp_path / "exemplars", [{"question": "What is 1+1?", "path": "The answer is 2."}])
    lines(tmp_path / "texts", [{"text": "2 and 2 make 4."}])
    common = ["--weights", tmp_path / "W", "--out", tmp_path / "out", "--rows", 2]
    for what, told in (
        (["hallucinations", "--prompts", tmp_path / "prompts", "--max_tokens", 3], "cut_off 1"),
        (["self_improve", "--questions", tmp_path / "questions", "--exemplars", tmp_path / "exemplars", "--paths", 2,
          "--max_tokens", 3], "1 questions, 2 paths each; on average 0.0% of them reach"),
        (["toolformer", "--texts", tmp_path / "texts", "--positions", 2, "--calls", 1], "2 calls drawn, 0 different"),
    ):  # fmt: skip
        done = here("align.own_data", *what, *common, cache=tmp_path)
        assert done.returncode == 2 and told in done.stdout, done.stderr
        assert "nothing was kept" in done.stderr and not (tmp_path / "out").exists()
    done = here("align.own_data", *what, *common, "--max_len", 2000, cache=tmp_path)
    assert done.returncode == 2 and "this model's window has 1024 tokens" in done.stderr
