"""OpenAI Evals: a registry of a few files, the library's rules as it recorded them, and its log."""

import datetime
import json
import random

import pytest

from gpt4jax import files
from gpt4jax.errors import UserError
from gpt4jax.evals import oai_log, oai_scoring, oai_tasks, registry, runner
from gpt4jax.evals.calls import Generate, Generated, Item, Outcome
from tests.bench import oaievals as bench

EVALS = """
sums:
  id: sums.dev.v0
  description: Small sums.
  metrics: [accuracy]
sums.dev.v0:
  class: evals.elsuite.basic.match:Match
  args: {samples_jsonl: sums/samples.jsonl, num_few_shot: 1, few_shot_jsonl: sums/few.jsonl}
other-name: sums
round: {id: about}
about: round
nothing: {description: neither class nor id}
strange: {class: "evals.elsuite.chess:Chess", args: {samples_jsonl: sums/samples.jsonl}}
japanese:
  class: evals.elsuite.modelgraded.classify:ModelBasedClassify
  args: {samples_jsonl: sums/graded.jsonl, modelgraded_spec: good, eval_type: cot_classify_jp}
lost: {class: "evals.elsuite.basic.match:Match", args: {samples_jsonl: sums/lost.jsonl}}
graded.dev.v0:
  class: evals.elsuite.modelgraded.classify:ModelBasedClassify
  args: {samples_jsonl: sums/graded.jsonl, modelgraded_spec: good, eval_type: cot_classify}
"""
GRADERS = """
good:
  prompt: "Question: {input}\\nAnswer: {completion}\\nIs it like {ideal}?"
  choice_strings: [Yes, No]
  choice_scores: {"Yes": 1.0, "No": 0.25}
  input_outputs: {input: completion}
""".replace("[Yes, No]", '["Yes", "No"]')
ROWS = [
    {"input": [{"role": "system", "content": "Add."}, {"role": "user", "content": f"{i}+{i}"}], "ideal": [str(2 * i)]}
    for i in range(9)
]


@pytest.fixture
def folder(tmp_path):
    for name in ("evals", "eval_sets", "modelgraded", "data/sums"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "evals" / "sums.yaml").write_text(EVALS)
    (tmp_path / "evals" / "broken.yaml").write_text("a: [1,")
    (tmp_path / "modelgraded" / "good.yaml").write_text(GRADERS)
    (tmp_path / "eval_sets" / "all.yaml").write_text("all: {evals: [sum*.v0, graded.*]}")
    lines = [*map(json.dumps, ROWS), "{", json.dumps({"input": "x"}), json.dumps({"input": "x", "ideal": 4})]
    (tmp_path / "data/sums/samples.jsonl").write_text("\n".join(lines))
    shot = [{"role": "system", "name": "example_user", "content": "1+2"},
            {"role": "system", "name": "example_assistant", "content": "3"}]  # fmt: skip
    (tmp_path / "data/sums/few.jsonl").write_text(json.dumps({"sample": shot}) + "\n")
    (tmp_path / "data/sums/graded.jsonl").write_text(json.dumps({"input": ROWS[1]["input"], "ideal": "2"}) + "\n")
    return tmp_path


def solved(task, item, *stages):
    """The calls of each stage, and the outcome."""
    solve, calls = task.solve(item), []
    calls.append(next(solve))
    for texts in stages:
        try:
            calls.append(solve.send([Generated(text, "stop", 0.0) for text in texts]))
        except StopIteration as stop:
            return calls, stop.value
    raise AssertionError("it asks more")


def test_names_lead_to_an_eval_and_samples_come_in_the_librarys_order(folder):
    read = registry.of_folder(folder)
    task = oai_tasks.task(read, "other-name")
    assert task.name == "sums.dev.v0" and [name.rpartition("/")[2] for name in read.unreadable] == ["broken.yaml"]
    shuffled = list(range(12))
    random.Random(123).shuffle(shuffled)
    assert [item.id for item in task.items] == [f"sums.dev.{i}" for i in shuffled if i < 9]
    assert sorted(bad.reason.split(":")[0] for bad in task.malformed) == [
        "it lacks the field 'ideal'", "its ideal 4 is neither a text nor a list of texts", "no JSON"
    ]  # fmt: skip
    assert read.of_set("all") == ["sums.dev.v0", "graded.dev.v0"]


def test_examples_stand_before_the_last_message_and_a_chat_can_be_a_text(folder):
    read = registry.of_folder(folder)
    item = Item("i", ROWS[2])
    (call,) = next(oai_tasks.task(read, "sums").solve(item))
    assert call == Generate((("system", "Add."), ("system", "1+2"), ("system", "3"), ("user", "2+2")), 500)
    (call,) = next(oai_tasks.task(read, "sums", as_text=True).solve(item))
    assert call.prompt == "Add.\nUser: 1+2\nAssistant: 3\nUser: 2+2\nAssistant:"
    _, outcome = solved(oai_tasks.task(read, "sums"), item, ["4, of course"])
    assert outcome.metrics == {"accuracy": 1.0} and outcome.detail["picked"] == "4"


def test_a_model_grades_its_own_answer(folder):
    task = oai_tasks.task(registry.of_folder(folder), "graded.dev.v0")
    calls, outcome = solved(task, task.items[0], ["It is 2."], ["2 is 2.\nYes, it is.\nNo"])
    ((role, content),) = calls[1][0].prompt
    assert role == "user" and content.startswith(
        "Question: Add.\nUser: 1+1\n\nAnswer: It is 2.\nIs it like 2?\n\nFirst, write"
    )
    assert '"Yes" or "No"' in content and calls[0][0].prompt == (("system", "Add."), ("user", "1+1"))
    assert outcome.answer == "No" and outcome.metrics["score"] == 0.25  # the last line counts
    _, outcome = solved(task, task.items[0], ["It is 2."], ["who knows"])
    assert outcome.answer is None and outcome.metrics["score"] == 0.25 and outcome.metrics["counts/__invalid__"] == 1


def test_samples_without_what_the_grader_needs_are_named(folder):
    rows = [{"input": "1+1?", "ideal": "2"}, {"ideal": "2"}, {"input": 5, "ideal": "2"}, {"input": "x"}]
    (folder / "data/sums/graded.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = oai_tasks.task(registry.of_folder(folder), "graded.dev.v0")
    assert [item.data for item in task.items] == rows[:1]
    assert sorted(one.reason for one in task.malformed) == [
        "it lacks the field 'ideal'", "it lacks the field 'input'", "its input is neither a text nor messages",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("summs", "has no eval summs"),
        ("round", "go in a circle"),
        ("nothing", "neither a class nor an id"),
        ("strange", "of the class evals.elsuite.chess:Chess"),
        ("japanese", "of the type 'cot_classify_jp'; there are classify, classify_cot, cot_classify"),
        ("lost", "has no file data/sums/lost.jsonl"),
    ],
)
def test_what_can_not_be_run_is_said(folder, name, message):
    with pytest.raises(UserError, match=message):
        oai_tasks.task(registry.of_folder(folder), name)


def test_verdicts_are_those_that_the_library_recorded():
    """Of a few evals of each class; all 502 by `python -m tests.bench.oaievals compare`."""
    published = registry.of_package(files.cache_dir())
    names: list[str] = []
    for kind, count in (("Match", 8), ("Includes", 6), ("FuzzyMatch", 4), ("JsonMatch", 3)):
        names += sorted(spec.name for spec in registry.specs(published, (kind,)))[:count]
    _, total, same, different = bench.compare(published, names)
    assert different == [] and total == same > 900
    total, same = bench.compare_graded(published)
    assert total == same > 10_000


def test_data_that_are_not_free_are_left_out():
    published = registry.of_package(files.cache_dir())
    kept = {spec.name for spec in registry.specs(published, oai_tasks.BASIC) if registry.is_restricted(spec)}
    for name in kept:
        with pytest.raises(UserError, match="not free for every use"):
            oai_tasks.task(published, name)


def test_the_log_has_a_spec_events_and_a_report(tmp_path, folder):
    task = oai_tasks.task(registry.of_folder(folder), "sums")
    scored = [
        runner.Scored(item, solved(task, item, [text])[1])
        for item, text in zip(task.items, ["0", "2", "x"], strict=False)
    ]
    scored.append(runner.Scored(task.items[3], None, "too long"))
    run = oai_log.run_id(datetime.datetime(2026, 1, 2, 3, 4, 5), bytes(range(5)))
    assert run == "260102030405AAAQEAYE"
    path = oai_log.write(tmp_path / "logs", task, scored, "org/tiny", run, "evaluate")
    assert path.name == "260102030405AAAQEAYE_org_tiny_sums.dev.v0.jsonl"
    first, *events, last = [json.loads(line) for line in path.read_text().splitlines()]
    assert first["spec"]["base_eval"] == "sums" and first["spec"]["split"] == "dev"
    assert [event["type"] for event in events] == ["sampling", "match"] * 3 + ["error"]
    assert [event["event_id"] for event in events] == list(range(7)) and events[0]["sample_id"] == task.items[0].id
    right = [float(scored[i].outcome.metrics["accuracy"]) for i in range(3)]
    assert last["final_report"]["accuracy"] == sum(right) / 3 and last["run_id"] == run


def test_boostrap_std_is_that_of_means_of_halves():
    values = [1.0] * 60 + [0.0] * 40
    # Means of 50 of 100 without replacement: p (1 - p) / 50 * (100 - 50) / 99.
    assert oai_scoring.boostrap_std(values) == pytest.approx((0.24 / 50 * 50 / 99) ** 0.5, rel=0.06)


def test_several_completions_are_joined_by_the_template():
    assert oai_tasks.joined(["x", "y"], "{i}/{n} {i_ABC}: {output}\n") == "1/2 A: x\n2/2 B: y"
    assert oai_scoring.choices("from_n_abc", 3) == ["a", "b", "c"] and oai_scoring.choices("ABC") == ["A", "B", "C"]
    with pytest.raises(ValueError, match="punctuation"):
        oai_scoring.choices(["Yes."])
    assert oai_scoring.choice_score("2", ["1", "2"], "from_strings") == 2.0
    assert Outcome({}, None).detail == {}
