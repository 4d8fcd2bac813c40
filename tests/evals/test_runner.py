"""Tasks through the runner on a tiny decoder: the same bits however they are asked, and nothing lost by a kill."""

import json
import random

import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.evals import asking, runner, stats, summary
from gpt4jax.evals.asking import Asker, TooLong
from gpt4jax.evals.calls import Choose, Chosen, Generate, Item, Malformed, Outcome, Task, hashed
from gpt4jax.inference import Engine
from gpt4jax.parallel.mesh import make_mesh
from tests.conftest import SHAPES, perturbed

CONFIG = model.Config(**SHAPES["llama"] | {"vocab_size": 257, "max_seq_len": 128})
TOKENIZER = tokenizer.from_bytes()


def engine(**options) -> Engine:
    return Engine(CONFIG, perturbed(CONFIG), tokenizer=TOKENIZER, rows=8, **options)


@pytest.fixture(scope="module")
def one_device():
    return engine()


def solve(item: Item):
    """Both kinds of call, and a second stage that depends on the first."""
    shots = ("one plus one is two. ", "two plus two is four. ")
    chosen, drawn = yield [
        Choose(f"{item.data} plus", (" one", " two and more", " three"), "Sums. ", shots),
        Generate(f"{item.data} minus", 6, temperature=0.9, shots=shots),
    ]
    best = chosen.logprobs.index(max(chosen.logprobs))
    (greedy,) = yield [Generate(f"{item.data} {best}{drawn.text}", 5, stop=("e",))]
    metrics = {"accuracy": float(best == 0), "length": float(len(greedy.text))}
    return Outcome(metrics, str(best) if best else None, {"said": [chosen, drawn, greedy]})


ITEMS = tuple(Item(f"item {i}", "abcdefghij"[i % 10] * (1 + i % 3), group="ab"[i % 2]) for i in range(20))
TASK = Task("sums", "accuracy", ITEMS, solve, (Malformed("row 7", "it asks nothing"),), 1 / 3, "made up")


def run(asker: Asker, path, items=ITEMS) -> dict:
    kept = runner.Kept(path, {"model": "tiny"})
    scored = runner.run(TASK, items, asker.ask, kept, lambda done, known, new: None)
    kept.close()
    return {one.item.id: one.outcome for one in scored}


@pytest.fixture(scope="module")
def expected(one_device, tmp_path_factory):
    return run(Asker(one_device, None, 8), tmp_path_factory.mktemp("all") / "answers.jsonl")


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_no_batch_size_and_no_order_changes_a_bit(one_device, expected, tmp_path, batch_size):
    items = list(ITEMS)
    random.Random(batch_size).shuffle(items)
    assert run(Asker(one_device, None, batch_size), tmp_path / "answers.jsonl", items) == expected


def test_the_first_answers_come_before_all_calls_are_put_into_tokens(one_device, monkeypatch):
    calls = [Choose(f"{i % 7} plus", (" one", " two"), "Sums. ", (f"shot {i % 4}. ",)) for i in range(40)]
    expected = dict(Asker(one_device, None, 8).ask(calls))
    monkeypatch.setattr(asking, "BATCH", 15)
    prepared, prepare = [], Asker.prepare
    monkeypatch.setattr(Asker, "prepare", lambda self, call: prepared.append(call) or prepare(self, call))
    answers = Asker(one_device, None, 8).ask(calls)
    first = next(answers)
    assert prepared == [call for i in (0, 1) for call in calls[i::4]]  # the groups of two of the shots
    assert dict([first, *answers]) == expected and len(prepared) == 40


def test_a_run_that_was_killed_goes_on_where_it_was(one_device, expected, tmp_path):
    path = tmp_path / "answers.jsonl"
    asker = Asker(one_device, None, 8)
    asked: list[int] = []

    def die(calls):
        asked.append(len(calls))
        for i, output in asker.ask(calls):
            if i == 9:
                raise KeyboardInterrupt
            yield i, output

    kept = runner.Kept(path, {"model": "tiny"})
    with pytest.raises(KeyboardInterrupt):
        runner.run(TASK, ITEMS, die, kept, lambda done, known, new: None)
    kept.close()
    there = len(path.read_bytes().splitlines()) - 1
    path.write_bytes(path.read_bytes() + b'{"key": "half a li')

    def count(calls):
        asked.append(len(calls))
        return asker.ask(calls)

    kept = runner.Kept(path, {"model": "tiny"})
    assert len(kept) == there > 0
    scored = runner.run(TASK, ITEMS, count, kept, lambda done, known, new: None)
    assert {one.item.id: one.outcome for one in scored} == expected
    assert asked[1] == asked[0] - there and all(json.loads(line) for line in path.read_text().splitlines())


def test_on_eight_devices_the_choices_are_the_same(expected, tmp_path):
    many = engine(mesh=make_mesh({"data": 8, "fsdp": 1, "tensor": 1}))
    for name, outcome in run(Asker(many, None, 8), tmp_path / "answers.jsonl").items():
        assert outcome.answer == expected[name].answer and outcome.metrics == expected[name].metrics
        for ours, theirs in zip(outcome.detail["said"], expected[name].detail["said"], strict=True):
            if isinstance(ours, Chosen):
                np.testing.assert_allclose(ours.logprobs, theirs.logprobs, atol=1e-5)
            else:
                assert ours.text == theirs.text and ours.logprob == pytest.approx(theirs.logprob, abs=1e-5)


def test_shots_that_do_not_fit_are_dropped_and_told(one_device):
    asker = Asker(one_device, None, 8)
    shots = ("x" * 50 + ".", "y" * 50 + ".", "z" * 50 + ".")
    (_, chosen), (_, drawn) = asker.ask([Choose("a", ("b", "c"), shots=shots), Generate("a", 3, shots=shots)])
    assert chosen.dropped == 1 and drawn.dropped == 1
    kept = dict(asker.ask([Choose("a", ("b", "c"), shots=shots[:2])]))[0]
    assert chosen.logprobs == kept.logprobs  # the last ones go
    assert dict(asker.ask([Choose("a" * 200, ("b",), shots=shots)])) == {0: TooLong(202, 128)}


def test_an_item_that_does_not_fit_is_named_and_not_scored(one_device, tmp_path):
    items = (*ITEMS[:3], Item("long", "q" * 140))
    kept = runner.Kept(tmp_path / "answers.jsonl", {})
    scored = runner.run(TASK, items, Asker(one_device, None, 8).ask, kept, lambda done, known, new: None)
    found = summary.summarise(TASK, scored)
    assert found["scored"] == 3 and found["items"] == 4 and found["metrics"]["accuracy"]["items"] == 3
    assert (
        found["unscored"]["count"] == 1
        and "do not fit the context window of 128" in found["unscored"]["first"][0]["reason"]
    )
    assert found["malformed"] == {"count": 1, "first": [{"id": "row 7", "reason": "it asks nothing"}]}
    assert "1 unscored, 1 malformed" in summary.words("sums", found)


def test_a_summary_is_the_mean_of_its_items(expected):
    scored = [runner.Scored(item, expected[item.id], dropped=i % 2) for i, item in enumerate(ITEMS)]
    found = summary.summarise(TASK, scored)
    right = [expected[item.id].metrics["accuracy"] for item in ITEMS]
    assert found["metrics"]["accuracy"] == stats.mean(right).as_dict()
    assert found["groups"]["a"]["accuracy"]["mean"] == np.mean(right[::2])
    assert found["unparsed"] == np.mean([expected[item.id].answer is None for item in ITEMS])
    assert found["shots_dropped"] == {"items": 10, "shots": 10} and json.dumps(found)


def test_trailing_spaces_belong_to_the_choice_and_an_empty_context_begins_with_the_end_of_text(one_device):
    asker = Asker(one_device, None, 8)
    one = asker.prepare(Choose("the sum is ", ("4",))).asked
    assert one.texts == ((256, *b"the sum is 4"),) and one.score_from == (11,)
    two = asker.prepare(Choose("the sum is: \n", ("4",))).asked
    assert two.texts == ((256, *b"the sum is: \n4"),) and two.score_from == (12,)
    assert asker.prepare(Choose("", ("ab", "c"))).asked.texts == ((256, 97, 98), (256, 99))


def test_answers_of_another_model_or_of_nothing_are_refused(tmp_path):
    path = tmp_path / "answers.jsonl"
    runner.Kept(path, {"parameters": "a", "seed": 0}).close()
    with pytest.raises(UserError, match=r"another run's answers \(parameters differ\)"):
        runner.Kept(path, {"parameters": "b", "seed": 0})
    path.write_text('{"parameters": "a", "seed": 0}\n{"key": "x", "output": ["pickled", []]}\n')
    with pytest.raises(UserError, match="line 2 of .* is no answer"):
        runner.Kept(path, {"parameters": "a", "seed": 0})
    assert "pickled" in path.read_text()  # nothing is lost


def test_a_sample_is_the_same_whatever_the_order():
    shuffled = random.Random(0).sample(ITEMS, len(ITEMS))
    assert {item.id for item in runner.sample(ITEMS, 7)} == {item.id for item in runner.sample(shuffled, 7)}
    assert [item.id for item in runner.sample(ITEMS, 20)] == [item.id for item in ITEMS]
    first = sorted(ITEMS, key=hashed)[:3]
    assert {item.id for item in runner.sample(ITEMS, 3)} == {item.id for item in first}


def test_more_at_once_than_there_are_rows_is_refused(one_device):
    with pytest.raises(UserError, match="from 1 to 8"):
        Asker(one_device, None, 9)
    with pytest.raises(UserError, match="no chat template"):
        list(Asker(one_device, None, 8).ask([Generate((("user", "hi"),), 3)]))
