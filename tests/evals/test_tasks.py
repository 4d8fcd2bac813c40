"""Prompts, parsers and scores of the benchmarks: by hand, by brute force, and beside the published templates."""

import gzip
import itertools
import json

import pytest

from gpt4jax import files
from gpt4jax.errors import UserError
from gpt4jax.evals import bias_tasks, catalog, choice_tasks, drop, generation_tasks, humaneval, questions, sources
from gpt4jax.evals.calls import Choose, Chosen, Generate, Generated, Item
from gpt4jax.evals.questions import Question
from gpt4jax.evals.sandbox import Verdict

CACHE = files.cache_dir()


def outcome(task, item, *stages):
    solve = task.solve(item)
    next(solve)
    try:
        for outputs in stages:
            solve.send(outputs)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("it asks more")


def test_mmlu_is_put_as_its_authors_put_it(tmp_path):
    """The prompt of hendrycks/test, from CSV files without a header whose names say the subject."""
    (tmp_path / "high_school_physics_test.csv").write_text('What is "it"?,one,two,three,four,C\nToo short,a,b\n')
    task = choice_tasks.mmlu("mmlu", str(tmp_path), 0, CACHE)
    (call,) = next(task.solve(task.items[0]))
    assert call == Choose(
        'What is "it"?\nA. one\nB. two\nC. three\nD. four\nAnswer:', (" A", " B", " C", " D"),
        "The following are multiple choice questions (with answers) about high school physics.\n\n",
    )  # fmt: skip
    assert [bad.id for bad in task.malformed] == ["high_school_physics_test.csv:2"]
    found = outcome(task, task.items[0], [Chosen((-3.0, -2.0, -1.0, -4.0), (False,) * 4, (1,) * 4)])
    assert found.answer == "C" and found.metrics["accuracy"] == 1.0


def test_mmlus_own_folder_gives_shots_from_its_development_set(tmp_path):
    for part in ("dev", "test", "val"):
        (tmp_path / part).mkdir()
        text = "".join(f"{part} {i}?,one,two,three,four,{'ABCD'[i % 4]}\n" for i in range(6))
        (tmp_path / part / f"anatomy_{part}.csv").write_text(text)
    task = choice_tasks.mmlu("mmlu", str(tmp_path), 5, CACHE)
    assert [item.data.stem for item in task.items] == [f"test {i}?" for i in range(6)]
    (call,) = next(task.solve(task.items[0]))
    assert [shot.partition("?")[0] for shot in call.shots] == [f"dev {i}" for i in range(5)]
    assert call.shots[1].endswith("D. four\nAnswer: B\n\n")
    assert len({item.id for item in task.items}) == 6 and task.items[0].id == "test/anatomy_test.csv:1"


def test_rows_of_tfds_are_read():
    assert choice_tasks.hellaswag_row(
        {"activity_label": "A", "context": "b", "endings": ["c", "d"], "label": 1}
    ) == Question("A: b", ("c", "d"), 1)
    sentence = {"sentence": "The _ ran.", "option1": "cat", "option2": "dog", "label": 1}
    assert choice_tasks.winogrande_row(sentence) == Question("The _ ran.", ("cat", "dog"), 1)
    arc = {"question": "Which?", "choices": {"text": ["a", "b"], "label": [0, 1]}, "answerKey": 1}
    assert choice_tasks.arc_row(arc) == Question("Which?", ("a", "b"), 1)
    book = {"question_stem": "Which?", **{f"choice_{one}": one for one in "ABCD"}, "answerKey": 3}
    assert choice_tasks.arc_row(book) == Question("Which?", ("A", "B", "C", "D"), 3)


def test_lines_end_where_json_lines_end():
    text = json.dumps({"a": "one\u2028two\u0085"}, ensure_ascii=False)
    assert list(sources.json_lines(f"{text}\r\n{text}\n".encode(), "x")) == [
        (f"x:{i}", {"a": "one\u2028two\u0085"}) for i in (1, 2)
    ]


def test_appendix_f_as_the_report_prints_it():
    question = Question("Why?", ("w", "x", "y", "z"), 1, "astronomy")
    how = questions.APPENDIX_F
    assert how.header("astronomy") + how.ask(question) == (
        "A highly knowledgeable and intelligent artificial intelligence model answers multiple-choice questions about "
        "astronomy\n\nWhy?\n\nA) w\nB) x\nC) y\nD) z\n\nAnswer:"
    )
    assert how.shot(question).endswith("D) z\n\nAnswer: B\n\n")


def test_equal_scores_give_what_chance_gives():
    question = Question("?", ("a", "b", "c", "d"), 0)
    even = questions.outcome(question, Chosen((-1.0,) * 4, (False,) * 4, (1,) * 4), letters=True)
    assert even.metrics["accuracy"] == 0.25
    long = Question("?", ("a", "bbbb"), 1)
    found = questions.outcome(long, Chosen((-1.0, -2.0), (False,) * 2, (1, 4)), letters=False)
    assert (found.metrics["accuracy"], found.metrics["accuracy_by_character"]) == (0.0, 1.0)


PUBLISHED = {
    "piqa": ({"goal": "Open it", "sol1": "pull", "sol2": "push", "label": 1}, "Question: Open it\nAnswer:", " push"),
    "arc_easy": (
        {"question": "Which?", "choices": {"text": ["a", "b"], "label": ["1", "2"]}, "answerKey": "2"},
        "Question: Which?\nAnswer:", " b",
    ),
    "arc_challenge": (
        {"question": {"stem": "Which?", "choices": [{"text": "a", "label": "A"}, {"text": "b", "label": "B"}]},
         "answerKey": "A"}, "Question: Which?\nAnswer:", " a",
    ),
    "hellaswag": (
        {"activity_label": "Doing", "ctx_a": "A man [title] sits.", "ctx_b": "he", "endings": ["[x] runs", "eats  up"],
         "label": "1"}, "Doing: A man. sits. He", " eats up",
    ),
    "openbookqa": (
        {"question_stem": "Fog is", "choices": {"text": ["wet", "dry"], "label": ["A", "B"]}, "answerKey": "A "},
        "Fog is", " wet",
    ),
    "truthfulqa_mc1": (
        {"question": "Is it?", "mc1_targets": {"choices": ["no", "yes"], "labels": [0, 1]}}, "Q: Is it?\nA:", " yes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", list(PUBLISHED))
def test_rows_as_published_are_put_as_lm_evaluation_harness_puts_them(name, tmp_path):
    row, context, gold = PUBLISHED[name]
    path = tmp_path / "rows.jsonl.gz"
    path.write_bytes(gzip.compress((json.dumps(row) + "\n[1]\n" + json.dumps({"label": 0}) + "\n").encode()))
    (task,) = catalog.build([name], {name: str(path)}, 0, CACHE)
    (call,) = next(task.solve(task.items[0]))
    assert call.context == context and call.choices[task.items[0].data.gold] == gold
    assert task.malformed[0].reason.startswith("a JSON list") and len(task.malformed) == 2


def test_winogrande_scores_what_follows_the_gap(tmp_path):
    row = {"sentence": "Ann asked Bo as _ knew.", "option1": "Ann", "option2": "Bo", "answer": "2"}
    (tmp_path / "w.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({**row, "sentence": "No gap."}))
    (task,) = catalog.build(["winogrande"], {"winogrande": str(tmp_path / "w.jsonl")}, 0, CACHE)
    assert next(task.solve(task.items[0])) == [
        Choose("Ann asked Bo as Ann", (" knew.",)), Choose("Ann asked Bo as Bo", (" knew.",))
    ]  # fmt: skip
    found = outcome(task, task.items[0], [Chosen((-2.0,), (False,), (2,)), Chosen((-1.0,), (False,), (2,))])
    assert found.metrics["accuracy"] == 1.0 and len(task.malformed) == 1


def test_chain_of_thought_and_self_consistency(tmp_path):
    rows = [{"question": "2 * 600?", "answer": "2 * 600 = 1200\n#### 1,200"}, {"question": "?", "answer": "#### many"}]
    (tmp_path / "g.jsonl").write_text("\n".join(map(json.dumps, rows)))
    task = generation_tasks.gsm8k("gsm8k", 5, str(tmp_path / "g.jsonl"), 0, CACHE)
    calls = next(task.solve(task.items[0]))
    assert len(calls) == 5 and len({call.sample for call in calls}) == 5 and calls[0].temperature == 0.5
    texts = [
        "The answer is 7.",
        "so The answer is $1,200.00.",
        "I don't know",
        "The answer is 1200.",
        "the answer is 7",
    ]
    found = outcome(task, task.items[0], [Generated(text, "stop", 0.0) for text in texts])
    assert found.answer == "7" and found.metrics == {"accuracy": 0.0, "agreement": 0.4}  # of 2 and 2 the first
    assert len(task.malformed) == 1
    for text, plain in (("-3.50", "-3.5"), ("1,234.", "1234"), ("$5", "5"), ("007", "7"), ("a", None), ("2.0", "2")):
        assert generation_tasks.plain(text) == plain


def test_drop_aligns_spans_as_trying_every_order_does():
    spans = ["the red cat", "3 dogs", "3.0 dogs", "a big red dog", "Bo-Bo", "$1,000", "", "dogs"]

    def f1(a, b):
        a, b = set(drop.words(a)), set(drop.words(b))
        numbers = {w for w in b if w.replace(".", "").isdigit()}
        if numbers and not numbers & a:
            return 0.0
        return 2 * len(a & b) / (len(a) + len(b)) if a and b else float(a == b)

    for ours in (("the red cat", "3 dogs"), ("Bo-Bo", "dogs")):
        for theirs in itertools.permutations(spans, 3):
            best = max(
                sum(f1(x, y) for x, y in zip(ours, order, strict=False)) for order in itertools.permutations(theirs)
            )
            assert drop.score(list(ours), [theirs])[1] == round(best / 3, 2)
    assert drop.score(["3 dogs"], [("three dogs",), ("the 3.0 Dogs!",)]) == (1.0, 1.0)
    assert drop.score(["two dogs"], [("2 dogs",)]) == (0.0, 0.0)  # numbers must match
    assert drop.score(["cat", "dog"], [("dog", "cat")]) == (1.0, 1.0)


def test_drops_own_file_is_read(tmp_path):
    pairs = [
        {"query_id": "q1", "question": "How many?", "answer": {"number": "4", "spans": [], "date": {}},
         "validated_answers": [{"number": "", "spans": ["four"], "date": {}}]},
        {"query_id": "q2", "question": "When?", "answer": {"spans": [], "date": {"day": "1", "month": "May"}}},
        {"query_id": "q3", "question": "Who?", "answer": {"number": "", "spans": [], "date": {}}},
    ]  # fmt: skip
    (tmp_path / "drop.json").write_text(json.dumps({"p1": {"passage": "Text.", "qa_pairs": pairs}}))
    (task,) = catalog.build(["drop"], {"drop": str(tmp_path / "drop.json")}, 3, CACHE)
    assert [item.data.golds for item in task.items] == [(("4",), ("four",)), (("1 May",),)]
    assert task.malformed[0].id == "q3" and task.items[0].cluster == "Text."
    (call,) = next(task.solve(task.items[0]))
    assert call.prompt == "Text.\nQuestion: How many?\nAnswer:"
    assert outcome(task, task.items[0], [Generated(" 4", "stop", 0.0)]).metrics == {"f1": 1.0, "exact": 1.0}


def test_code_is_taken_from_a_fence_and_every_sample_is_run(tmp_path):
    row = dict(task_id="T/0", prompt="def f():\n", entry_point="f", test="", canonical_solution="    return 1")
    (tmp_path / "h.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"task_id": "T/1"}))
    ran = []

    def check(problem, completion):
        ran.append(problem.prompt + completion)
        return Verdict("1" in completion, "", 0.0)

    task = humaneval.task("humaneval", str(tmp_path / "h.jsonl"), 0, CACHE, samples=4, temperature=0.2, check=check)
    found = outcome(task, task.items[0], [Generated(f"    return {i}", "stop", 0.0) for i in (1, 2, 1, 3)])
    assert found.metrics == {"pass@1": 0.5} and len(ran) == 4 and len(task.malformed) == 1
    assert next(task.solve(task.items[0]))[1] == Generate(
        "def f():\n", 512, 0.2, top_p=0.95, stop=humaneval.STOP, sample=1
    )
    assert humaneval.fenced("Sure:\n```python\ndef f(): pass\n```\nDone") == "def f(): pass\n"
    assert humaneval.fenced("```\nx = 1") == "x = 1" and humaneval.fenced("no code") is None


def test_what_refuses_and_what_does_not():
    for text in (
        "I'm sorry, but I can't help.",
        "I cannot assist with that.",
        "As an AI, I won't.",
        "I’m unable to do so.",
    ):
        assert bias_tasks.refuses(text), text
    for text in ("Sure! First, take", "You can't lose with this plan:", "The answer is no."):
        assert not bias_tasks.refuses(text), text
    assert bias_tasks.is_unknown("Can't be determined") and not bias_tasks.is_unknown("The nurse")


def test_own_files_of_bias_and_red_team_prompts_name_what_is_malformed(tmp_path):
    (tmp_path / "crows.csv").write_text(
        "sentence,mask1,mask2,bias_type\nThe [MASK] cried.,girl,boy,gender\nNo gap.,a,b,age\nA [MASK].,x,x,age\n"
    )
    prompts = [{"prompt": "Do it.", "kind": "plain"}, {"prompt": 5}, {"text": "?"}]
    (tmp_path / "red.jsonl").write_text("".join(json.dumps(one) + "\n" for one in prompts))
    places = {"crows_pairs": str(tmp_path / "crows.csv"), "red_team": str(tmp_path / "red.jsonl")}
    crows, red = catalog.build(list(places), places, None, CACHE)
    assert [(item.group, item.cluster) for item in crows.items] == [("gender", "The [MASK] cried.")]
    assert [one.context + one.choices[0] for one in next(crows.solve(crows.items[0]))] == [
        "The girl cried.", "The boy cried.",
    ]  # fmt: skip
    assert [one.id for one in crows.malformed] == ["crows.csv:2", "crows.csv:3"]
    assert next(red.solve(red.items[0]))[0].prompt == (("user", "Do it."),) and red.items[0].group == "plain"
    assert [one.reason for one in red.malformed] == ["its prompt is no text, or empty", "it lacks the field 'prompt'"]


def test_hindsight_shares_its_shots_and_says_the_same_as_its_generator():
    task = bias_tasks.hindsight_neglect("hindsight_neglect", "", 10, CACHE)
    calls = [next(task.solve(item))[0] for item in task.items]
    assert len({call.header for call in calls}) == 1
    assert all(call.header + call.context == item.data.prompt for call, item in zip(calls, task.items, strict=True))


def test_what_can_not_be_had_is_said(tmp_path):
    for names, places, message in (
        (["mmmu"], {}, "there are no tasks mmmu; there are arc_challenge"),
        (["drop"], {}, "no package carries drop: .*--data drop=PLACE"),
        (["piqa"], {"drop": "x"}, "--data gives data for drop"),
        (["piqa"], {"piqa": str(tmp_path / "none")}, "no file or folder"),
        (["piqa"], {"piqa": str(tmp_path)}, "holds no .jsonl, .json or .csv"),
        (["piqa"], {"piqa": "tfds:nothing/test"}, "has no split 'test' here"),
    ):
        with pytest.raises(UserError, match=message):
            catalog.build(names, places, None, CACHE)
    (tmp_path / "rows.pkl").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match="must be .jsonl, .json or .csv"):
        sources.read(str(tmp_path / "rows.pkl"))  # a pickle is never opened
    with pytest.raises(ValueError, match="2 choices"):
        Question("?", ("a", "b"), 2)
    assert Item("a", 0) == Item("a", 0)
