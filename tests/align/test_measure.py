"""The job that measures models: through its command line on tiny models, its figures again by brute force, its page."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest

from gpt4jax import model, weights
from gpt4jax.align import measure, measure_page, measures, rules, toxic_words, toxicity
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.evals import calibration, questions, runner, stats
from gpt4jax.evals.calls import Generated, Item, Outcome, Task
from gpt4jax.evals.questions import Question
from gpt4jax.evals.runner import Scored
from tests.align.test_preference import TEMPLATE
from tests.conftest import SHAPES, perturbed
from tests.runs import here

QUALITY = toxic_words.Quality({"web": 0.9}, 0.7, {"web": 0.01}, 0.5, {"web": 3, "toxic": 2})


def replied(texts):
    """Each safety item's end where the model says these texts in turn."""
    found = []
    task = measures.safety_task(measures.safety_items())
    for i, item in enumerate(task.items):
        solve = task.solve(item)
        next(solve)
        said = [Generated(texts[(2 * i + side) % len(texts)], "stop", 0.0) for side in range(2)]
        with pytest.raises(StopIteration) as end:
            solve.send(said)
        found.append(Scored(item, end.value.value))
    return task, found


def test_safety_is_that_of_all_replies_and_differences_are_paired():
    refusal, answer, lecture = rules.refusal("a"), "Take a spoon and stir.", "It is never acceptable to do so."
    task, ours = replied([refusal, answer, answer, refusal, lecture, answer, answer, answer])
    _, theirs = replied([answer, answer, refusal, answer])
    assert len(task.items) == sum(map(rules.twins_held_out, rules.twins()))
    found = measures.summarised(task, {"base": theirs, "tuned": ours})
    for name, scored in (("base", theirs), ("tuned", ours)):
        harm, benign = zip(*(one.outcome.detail["classes"] for one in scored), strict=True)
        wanted = {
            "disallowed": [cls == "disallowed_content" for cls in harm],
            "desired": [cls == "desired_refusal" for cls in harm],
            "over_refusal": [cls.endswith("refusal") and cls != "safe_non_refusal" for cls in benign],
        }
        for metric, said in wanted.items():
            assert found["models"][name]["metrics"][metric] == pytest.approx(stats.mean(said).as_dict())
    for metric in ("disallowed", "over_refusal"):
        apart = [a.outcome.metrics[metric] - b.outcome.metrics[metric] for a, b in zip(ours, theirs, strict=True)]
        one = found["differences"]["tuned"][metric]
        assert one["mean"] == pytest.approx(np.mean(apart))
        assert one["standard_error"] == pytest.approx(np.std(apart, ddof=1) / math.sqrt(len(apart)))
    assert "base" not in found["differences"]
    lines = measures.replies("safety", {"base": theirs, "tuned": ours})
    assert lines[0]["prompt"]["disallowed"] == task.items[0].data.disallowed
    assert lines[0]["replies"]["tuned"]["texts"] == [refusal, answer]
    shown = measures.sampled(lines, 10)
    assert len(shown) == 10 and measures.sampled(lines, 10) == shown
    with pytest.raises(ValueError, match="asked other items"):
        measures.replies("safety", {"base": theirs[1:], "tuned": ours[:-1]})


def of_letters(logprob_qc, gold_q):
    return [
        Scored(
            Item(f"q{i}", None), Outcome({"accuracy": 1.0}, "A", {"letters": True, "gold": int(gold), "logprobs": row})
        )
        for i, (row, gold) in enumerate(zip(logprob_qc.tolist(), gold_q, strict=True))
    ]


def test_a_temperature_from_one_half_mends_the_other():
    rng = np.random.default_rng(0)
    logit_qc = 1.5 * rng.standard_normal((4000, 4))
    truth_qc = calibration.softmax(logit_qc, 2.5)  # it is 2.5 times too sure
    gold_q = (rng.random((4000, 1)) > truth_qc.cumsum(axis=1)).sum(axis=1)
    found = measures.recalibrated(of_letters(np.log(calibration.softmax(logit_qc)), gold_q))
    assert found["temperature"] == pytest.approx(2.5, rel=0.1) and found["questions"] == 2000
    for side, at in (("before", 1.0), ("after", found["temperature"])):
        p = calibration.softmax(logit_qc[1::2], at).ravel()
        hit = (np.arange(4) == gold_q[1::2, None]).ravel()
        places = [np.minimum((p * 10).astype(int), 9) == b for b in range(10)]
        wanted = sum(abs(hit[at].mean() - p[at].mean()) * at.mean() for at in places if at.any())
        assert found[side]["expected_calibration_error"] == pytest.approx(wanted)
    assert found["after"]["expected_calibration_error"] < 0.2 * found["before"]["expected_calibration_error"]
    task = Task("mmlu", "accuracy", (), lambda item: iter(()))
    tasks = {"mmlu": measures.summarised(task, {"tuned": of_letters(logit_qc, gold_q)})}
    results = {"models": {"tuned": {}}, "measures": {"calibration": {"tasks": tasks, "recalibrated": {"tuned": found}}}}
    page = measure_page.of(results)
    assert page.count("data:image/png") == 3 and "temperature 1.00" in page
    assert f"2000 questions, temperature {found['temperature']:.2f}" in page
    # What the other half says changes nothing of the temperature.
    gold_q[1::2] = 0
    assert measures.recalibrated(of_letters(logit_qc, gold_q))["temperature"] == pytest.approx(found["temperature"])
    assert "39 questions are too few" in measures.recalibrated(of_letters(logit_qc[:39], gold_q[:39]))["none"]
    assert "no temperature" in measures.recalibrated(of_letters(logit_qc, logit_qc.argmax(axis=1)))["none"]


def test_names_of_models_and_prompts():
    assert measure.labels(["a/sft/export", "b/ppo/export"]) == ["sft", "ppo"]
    assert measure.labels(["a/sft/export", "b/sft/export", "base"]) == ["a/sft", "b/sft", "base"]
    rows = [{"prompt": "one"}, {"messages": [{"role": "user", "content": "two"}]},
            {"prompt": "three", "kind": "harmful"}, {"prompt": "four", "held_out": False}]  # fmt: skip
    assert measures.asked_once(rows) == ["one", "two"]
    for wrong in ("hi", ["x"], [{"role": "user"}]):
        with pytest.raises(UserError, match="row 1 of the prompts is no single message"):
            measures.asked_once([{"messages": wrong}])
    with pytest.raises(UserError, match="row 1 of the prompts is no single message"):
        measures.asked_once([{"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]}])


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Two random models that can be chatted with."""
    home = tmp_path_factory.mktemp("measure")
    config = model.Config(**SHAPES["llama"] | {"vocab_size": 257, "max_seq_len": 256})
    named = dataclasses.replace(tokenizer.from_bytes(), chat_template=TEMPLATE)
    for seed, name in enumerate(("base", "tuned")):
        weights.save(home / name / "export", config, perturbed(config, seed), named)
    return home


@pytest.fixture
def small(monkeypatch):
    """In place of packages: a classifier that dislikes the letter z, and questions of ours."""
    monkeypatch.setattr(
        toxic_words, "load", lambda cache: (lambda texts: np.array([0.6 * ("z" in text) for text in texts]), QUALITY)
    )
    monkeypatch.setattr(toxicity, "prompts", lambda cache: tuple(Item(f"p{i}", f"So {i}", "insult") for i in range(4)))
    asked = [Item(f"q{i}", Question(f"{i}?", ("x", "yy", "z", "w"), i % 4)) for i in range(48)]
    letters = questions.task("mmlu", asked, (), questions.PLAIN_LETTERS, "ours")
    texts = [questions.task(f"truthfulqa_mc1, {n} shots", asked[:6], (), questions.QUESTION, "ours") for n in (0, 5)]
    monkeypatch.setattr(measures, "calibration_task", lambda cache: letters)
    monkeypatch.setattr(measures, "truthfulness_tasks", lambda cache: texts)
    monkeypatch.setattr(measures, "REPLY_TOKENS", 4)
    monkeypatch.setattr(measures, "RESPONSE_TOKENS", 4)


def flags(home, out, *more):
    paths = [str(home / name / "export") for name in ("base", "tuned")]
    return ["--weights", paths[0], "--weights", paths[1], "--out", str(out), *map(str, more)]


def test_the_job_measures_writes_and_goes_on(home, small, monkeypatch):
    out = home / "out"

    def run(*more):
        done = here("align.measure", *flags(home, out, *more), cache=home)
        assert done.returncode == 0, done.stderr
        return done.stdout

    safe = ["--limit", 3, "--continuations", 3, "--measures", "safety,toxicity"]
    run(*safe)
    before = (out / "replies.jsonl").read_text()
    run("--measures", "truthfulness,calibration")
    prompts = home / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What do you think of {i}?"}) + "\n" for i in range(5)))
    judge = ["--judge", home / "base" / "export", "--prompts", f"jsonl:{prompts}", "--both_orders"]
    said = run("--measures", "preference", *judge)
    results = json.loads((out / "measures.json").read_text())
    assert list(results["models"]) == ["base", "tuned"] and set(results["measures"]) == set(measure.MEASURES)
    lines = [json.loads(line) for line in (out / "replies.jsonl").read_text().splitlines()]
    assert [line["measure"] for line in lines] == ["safety"] * 3 + ["toxicity"] * 3 + ["preference"] * 5
    assert (out / "replies.jsonl").read_text().startswith(before)
    toxic = results["measures"]["toxicity"]["tasks"]["toxicity"]["models"]["tuned"]["metrics"]
    texts = [line["replies"]["tuned"]["texts"] for line in lines if line["measure"] == "toxicity"]
    hits = [["z" in text for text in some] for some in texts]
    assert len(hits) == 3 and all(len(some) == 3 for some in hits)
    assert toxic["share_toxic"]["mean"] == pytest.approx(np.mean(hits))
    assert toxic["any_toxic"]["mean"] == pytest.approx(np.mean([any(some) for some in hits]))
    assert toxic["share_toxic"]["clusters"] == 3 and toxic["share_toxic"]["items"] == 9
    wins = results["measures"]["preference"]
    scores = [{"first": 1.0, "second": 0.0, "tie": 0.5}[one["answer"]] for one in wins["verdicts"]["tuned"]]
    turned = [one["swapped"] for one in wins["verdicts"]["tuned"]]
    own = [1 - score if turn else score for score, turn in zip(scores, turned, strict=True)]
    assert len(own) == 10 and wins["against"]["tuned"]["win_rate"]["mean"] == pytest.approx(np.mean(own))
    calibrated = results["measures"]["calibration"]
    assert calibrated["tasks"]["mmlu"]["models"]["base"]["calibration"]["pairs"] == 192
    assert set(calibrated["recalibrated"]) == {"base", "tuned"}
    assert "share_toxic of tuned" in said and "tuned is preferred to the first model in" in said
    page = (out / "report.html").read_text()
    assert len(re.findall("data:image/png", page)) >= 5 and page.count("<h2>") == 5
    assert re.search('src="(?!data:)|href=|<script', page) is None  # nothing outside the page
    # All that was asked is kept: again nothing is asked, and the results are the same.
    monkeypatch.setattr(runner.Kept, "put", lambda self, name, output: pytest.fail("asked again"))
    run(*safe)
    again = json.loads((out / "measures.json").read_text())
    assert again["measures"] == results["measures"]
    one = ["--weights", home / "base" / "export", "--out", out, "--measures", "safety", "--limit", 1]
    other = here("align.measure", *one, cache=home)
    assert other.returncode == 2 and "measures of other models" in other.stderr
    paths = [str(home / name / "export") for name in ("tuned", "base")]  # differences are from the first model
    turned = here("align.measure", "--weights", paths[0], "--weights", paths[1], "--out", out, *safe, cache=home)
    assert turned.returncode == 2 and "in another order" in turned.stderr


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--measures", "safety,beauty"], "there is no measure 'beauty'"),
        (["--measures", "preference"], "give two --weights and --judge"),
        (["--limit", 0], "--limit is 0"),
        (["--measures", "safety", "--judge", "x"], "--judge is for preference, which --measures leaves out"),
        (["--continuations", 0], "--continuations 0"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_a_model_is_loaded(home, tmp_path, more, words):
    with pytest.raises(UserError, match=words):
        measure.main(flags(home, tmp_path, *more))
    with pytest.raises(UserError, match="is there twice"):
        measure.main(["--weights", "a", "--weights", "a", "--out", str(tmp_path)])


def test_a_model_without_a_template_is_told_what_it_cannot(home, tmp_path):
    loaded = weights.load(str(home / "base" / "export"))
    weights.save(tmp_path / "plain", loaded.config, loaded.params, tokenizer.from_bytes())
    with pytest.raises(UserError, match="has no chat template, which safety needs"):
        measure.main(["--weights", str(tmp_path / "plain"), "--out", str(tmp_path / "out"), "--measures", "safety"])


def test_what_is_missing_is_said_before_anything_is_asked(home, tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "asker", lambda one: pytest.fail("asked"))
    base, tuned = (str(home / name / "export") for name in ("base", "tuned"))
    for more in (["--weights", str(tmp_path / "none")], ["--weights", tuned, "--judge", str(tmp_path / "none")]):
        with pytest.raises(UserError, match="none"):
            measure.main(["--weights", base, *more, "--out", str(tmp_path / "out")])


def test_bars_are_the_means_with_their_intervals():
    one = stats.mean([1, 0, 0, 0, 1, 0]).as_dict()
    tasks = {"safety": {"models": {"a": {"metrics": {"disallowed": one}}, "b": {"metrics": {}}}, "differences": {}}}
    (axes,) = measure_page.bars(tasks, [("safety", "disallowed"), ("safety", "desired")], None).axes
    (bar,) = [patch for patch in axes.patches if patch.get_height()]
    assert bar.get_height() == pytest.approx(100 / 3)
    (ends,) = [path.vertices[:, 1] for lines in axes.collections for path in lines.get_paths()]
    np.testing.assert_allclose(sorted(ends), [100 * one["low"], 100 * one["high"]])
