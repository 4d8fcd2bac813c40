"""The appendix A procedure, rubrics, exams' reports and Codeforces ratings, by hand and by brute force."""

import json

import numpy as np
import pytest

from gpt4jax import files
from gpt4jax.errors import UserError
from gpt4jax.evals import catalog, codeforces, exam_figures, exams, published, scoring
from gpt4jax.evals.calls import Generate, Generated, Item
from gpt4jax.evals.exams import Band, Criterion, Problem, Section

SHOWN = [Problem(f"Shown {i}?", ("w", "x", "y", "z"), i % 4, f"Since {i}.") for i in range(5)]
ASKED = Item("p1", Problem(f"Look at {exams.IMAGE}. What is it?", ("a", "b", "c"), 2))


def run(task, item, *stages):
    solve = task.solve(item)
    calls = [next(solve)]
    for texts in stages:
        try:
            calls.append(solve.send([Generated(text, "stop", 0.0) for text in texts]))
        except StopIteration as stop:
            return calls, stop.value
    raise AssertionError("it asks more")


def test_the_prompt_is_the_reports():
    task = exams.multiple_choice("biology", [ASKED], SHOWN, second_sample=True)
    calls, outcome = run(task, ASKED, [" It has wings.\n"], [" C "])
    (explain,), (letter,) = calls
    whole = explain.header + "".join(explain.shots) + explain.prompt
    assert whole.startswith(
        "ANSWER KEY\n\nHere are the answers for the problems in the exam.\n\nProblem 1. Shown 0?\n\nChoose from the "
        "following options: [A] w [B] x [C] y [D] z\n\nExplanation for Problem 1: Since 0.\n\nThe answer is therefore "
        "[A]\n\nProblem 2."
    )
    assert whole.endswith("[A] a [B] b [C] c\n\nExplanation for Problem 6:")
    assert (explain.temperature, explain.max_tokens, explain.stop) == (0.3, 512, ("\nThe answer is therefore",))
    assert (letter.temperature, letter.stop) == (0.0, ("]",)) and letter.prompt.endswith(
        " It has wings.\n\nThe answer is therefore ["
    )
    assert outcome.answer == "C" and outcome.metrics == {"accuracy": 1.0}


def test_the_letter_may_be_read_from_the_explanation():
    task = exams.multiple_choice("biology", [ASKED], SHOWN, second_sample=False)
    for text, letter in (
        ("not [A], so [C]", "C"), ("The answer is (b).", "B"), ("I don't know", None), ("The answer is D", None),
        ("The answer is a bird.", None), ("The answer is C, since [A] is false.", "C"),
        ("Option [A] is wrong.\n\nThe answer is therefore [C]", "C"), ("The answer is C: C!", "C"),
    ):  # fmt: skip
        ((call,),), outcome = run(task, ASKED, [text])
        assert not any(stop in text for stop in call.stop)
        assert outcome.answer == letter and outcome.metrics["accuracy"] == float(letter == "C")
    with pytest.raises(ValueError, match="no explanation"):
        exams.multiple_choice("x", [ASKED], [Problem("?", ("a", "b"), 0)], second_sample=True)


def test_an_exam_of_ones_own_has_sections_and_examples(tmp_path):
    rows = [
        {"text": f"{i}+1?", "choices": ["1", str(i + 1), "x"], "answer": "B", "section": "easy" if i < 4 else "hard"}
        for i in range(1, 7)
    ]
    examples = [row | {"shown": True, "explanation": "One more."} for row in rows[:2]]
    faults = [rows[0] | {"answer": "D"}, rows[0] | {"shown": True}, {"text": "?"}, rows[0] | {"shown": "yes"}]
    (tmp_path / "exam.jsonl").write_text("".join(json.dumps(row) + "\n" for row in (*examples, *rows[2:], *faults)))
    places = {"exam": str(tmp_path / "exam.jsonl")}
    (task,) = catalog.build(["exam"], places, 2, files.cache_dir())
    assert [item.group for item in task.items] == ["easy", "hard", "hard", "hard"] and task.chance == 1 / 3
    calls, outcome = run(task, task.items[0], [" Count."], ["B"])
    assert [shot.partition("\n")[0] for shot in calls[0][0].shots] == ["Problem 1. 1+1?", "Problem 2. 2+1?"]
    assert calls[0][0].prompt.startswith("Problem 3. 3+1?") and outcome.metrics == {"accuracy": 1.0}
    assert [one.reason for one in task.malformed] == [
        "the answer 'D' is none of its 3 choices", "it is shown as an example and has no explanation",
        "it lacks the field 'choices'", "its explanation is no text, or shown is neither true nor false",
    ]  # fmt: skip
    for given, message in (({}, "--data exam=FILE.jsonl"), (places, "shows 2 problems as examples, and --shots wan")):
        with pytest.raises(UserError, match=message):
            catalog.build(["exam"], given, 5, files.cache_dir())


def test_mmlu_as_an_exam_shows_each_subject_its_own_explained_examples():
    (task,) = catalog.build(["mmlu_exam"], {}, None, files.cache_dir())
    item = next(item for item in task.items if item.group == "anatomy")
    (call,) = next(task.solve(item))
    assert len(call.shots) == 5 and call.shots[0].endswith(
        "Explanation for Problem 1: The pituitary gland is the major endocrine gland attached to the base of the "
        "brain, and it is contained in the Cranial cavity.\n\nThe answer is therefore [B]\n\n"
    )
    assert len(task.items) == 14042 and item.data.text in call.prompt


def test_pictures_become_tags_that_mean_nothing_or_stay():
    one, other = (exams.without_images(name, f"{exams.IMAGE} and {exams.IMAGE}") for name in ("p1", "p2"))
    assert one.count("IMAGE: ") == 2 and len({*one.split(), *other.split()}) == 6 and exams.IMAGE not in one
    assert one == exams.without_images("p1", f"{exams.IMAGE} and {exams.IMAGE}")
    (call,) = next(exams.multiple_choice("x", [ASKED], SHOWN, second_sample=True, vision=True).solve(ASKED))
    assert exams.IMAGE in call.prompt
    pictured = Problem("Which?", (exams.IMAGE, "none"), 0)
    assert exams.IMAGE not in exams.problem_text(1, "p", pictured, vision=False)


def test_essays_have_an_example_and_a_temperature():
    item = Item("e", "Discuss.")
    (call,) = next(exams.free_response("gre", [item], ("Sample task.", "Sample essay.")).solve(item))
    assert call.temperature == 0.6 and call.header.endswith("Sample task.\nResponse: Sample essay.\n\n")
    (plain,) = next(exams.free_response("ap", [item], None).solve(item))
    assert plain == Generate((("user", "Discuss."),), 1024, 0.6)


def test_a_rubric_gives_points_for_each_line_and_says_what_it_could_not_read():
    item = Item("e", ("Discuss.", "I did."))
    task = exams.grading("gre", [item], [Criterion("It has a thesis.", 2), Criterion("It is clear.", 1)])
    calls, outcome = run(task, item, ["Yes.", " no"])
    assert (
        outcome.metrics == {"share": 2 / 3}
        and outcome.answer == "2 of 3"
        and "It is clear." in calls[0][1].prompt[0][1]
    )
    _, outcome = run(task, item, ["Yes.", "Perhaps"])
    assert outcome.answer is None


def test_peoples_scores_are_averaged_and_faults_named():
    rows = [("f:1", {"id": "a", "score": 4}), ("f:2", {"id": "a", "score": "5"}), ("f:3", {"id": "b", "score": 7}),
            ("f:4", {"score": 1}), ("f:5", "no JSON")]  # fmt: skip
    shares, bad = exams.human_scores(rows, most=6)
    assert shares == {"a": 0.75} and [one.id for one in bad] == ["f:3", "f:4", "f:5"]


def test_an_exam_reports_the_lower_of_two_scores():
    sections = {
        "MCQ": Section({"q1": 1.0, "q2": 1.0, "q3": 0.0, "q4": 0.0}, 0.5, frozenset({"q1"})),
        "FRQ": Section({"f1": 0.5, "f2": 0.7}, 0.5),
    }
    found = exams.report(sections)
    assert found.full == pytest.approx((0.5 + 0.6) / 2) and found.clean == pytest.approx((1 / 3 + 0.6) / 2)
    assert found.reported == found.clean and found.contaminated == pytest.approx(0.125)
    assert found.degradation == pytest.approx(found.clean / found.full - 1)
    whole = exams.report({"all": Section({"q": 0.5}, 1.0, frozenset({"q"}))})
    assert whole == (0.5, None, 0.5, 1.0, None)
    with pytest.raises(UserError, match="the contaminated item z"):
        exams.report({"MCQ": Section({"q": 1.0}, 1.0, frozenset({"z"}))})
    with pytest.raises(UserError, match="has no items"):
        exams.report({"MCQ": Section({}, 1.0)})


def test_percentiles_are_bands():
    table = {grade: Band(*band) for grade, band in published.AP_BANDS["AP Biology"].items()}
    assert exams.percentile(5, table) == (85, 100) and exams.percentile(4.5, table) == (62, 85)
    assert exams.span([Band(45, 60), Band(50, 66)]) == (45, 66)  # two administrations of AMC 12
    with pytest.raises(ValueError, match="below the table's lowest"):
        exams.percentile(3, table)
    for exam, bands in published.AP_BANDS.items():  # Table 1's bands are Figure 4's lower ends
        reported = published.EXAMS[exam].reported_vision
        assert bands[int(reported)][0] == published.PERCENTILES[exam][0]


def test_a_rating_is_where_its_rank_is_expected():
    others = [900.0, 1500.0, 1500.0, 2100.0]
    for rank in (1.2, 2.0, 3.0, 4.5):
        rating = codeforces.equilibrium(rank, others)
        assert codeforces.expected_rank(rating, others) == pytest.approx(rank, abs=1e-6)
    assert codeforces.equilibrium(3.0, [1500.0] * 4) == pytest.approx(1500.0, abs=1e-3)  # the middle of equals
    assert codeforces.equilibrium(5.0, others) == 0.0
    by_hand = 1 + sum(1 / (1 + 10 ** ((1200 - r) / 400)) for r in others)
    assert codeforces.expected_rank(1200, others) == pytest.approx(by_hand)
    with pytest.raises(ValueError, match="rank 6"):
        codeforces.equilibrium(6, others)


def test_simulated_contests():
    ratings = list(np.linspace(800, 2400, 50))
    solved = [[rating > 900 + 250 * p for p in range(6)] for rating in ratings]
    nothing = codeforces.simulate([0.0] * 6, solved, ratings)
    weak = codeforces.simulate([0.07, 0, 0, 0, 0, 0], solved, ratings)
    strong = codeforces.simulate([1.0, 0.8, 0.5, 0.1, 0, 0], solved, ratings)
    assert not nothing.any() and 0.3 < np.mean(weak == 0) < 0.7  # (1 - 0.07)^10 = 0.48
    assert codeforces.rating([strong]) > codeforces.rating([weak]) > 0
    assert (
        codeforces.simulate([1.0] * 6, solved, ratings) == codeforces.simulate([1.0] * 6, solved, ratings, attempts=1)
    ).all()
    with pytest.raises(ValueError, match="don't fit"):
        codeforces.simulate([0.5], solved, ratings)


def test_figures_4_and_5_are_drawn(tmp_path):
    exam_figures.exams(tmp_path / "4.png", {"LSAT": 30.0, "AP Biology": 15.0})
    exam_figures.languages(tmp_path / "5.png", {"Croatian": 24.0})
    assert all((tmp_path / f"{n}.png").stat().st_size > 20_000 for n in (4, 5))
    with pytest.raises(UserError, match="no exam 'Chess'"):
        exam_figures.exams(tmp_path / "4.png", {"Chess": 1.0})
    with pytest.raises(UserError, match="Croatian has 101"):
        exam_figures.languages(tmp_path / "5.png", {"Croatian": 101})


def test_figures_4_and_5_are_drawn_by_a_command(tmp_path):
    (tmp_path / "own.json").write_text(json.dumps({"German": 24.5}))
    made = ["--out", str(tmp_path / "figures")]
    assert exam_figures.main([*made, "--languages", str(tmp_path / "own.json"), "--name", "ours"]) == 0
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"figure_4.png", "figure_5.png"}
    with pytest.raises(UserError, match="cannot be read"):
        exam_figures.main([*made, "--percentiles", str(tmp_path / "none.json")])
    (tmp_path / "own.json").write_text("[1]")
    with pytest.raises(UserError, match="an object of numbers by name"):
        exam_figures.main([*made, "--percentiles", str(tmp_path / "own.json")])
    assert json.dumps(published.PERCENTILES)


def test_charts_give_the_reports_sat_scores():
    # Vision GPT-4 has 90.38% of 52 and 84.09% of 44 right, and 710 (Tables 1 and 10): test scores with a sum of 71.
    reading, writing = {46: 36, 47: 36, 48: 37}, {36: 34, 37: 35, 38: 35}
    right = [
        round(published.SECTIONS[f"SAT EBRW {name}"].score * n / 100) for name, n in (("Reading", 52), ("Writing", 44))
    ]
    assert right == [47, 37] and scoring.sat_reading_and_writing(*right, reading, writing) == 710
    assert scoring.charted(48, reading) == 37
    with pytest.raises(ValueError, match="no 50 points; it goes from 46 to 48"):
        scoring.charted(50, reading)
    with pytest.raises(ValueError, match="more points a lower score"):
        scoring.charted(1, {1: 300, 2: 290})
