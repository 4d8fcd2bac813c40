"""Sampling of code tasks in rounds, and the forecast of pass rates, on models whose pass rates are known."""

import dataclasses
import json
import types

import numpy as np
import pytest

from gpt4jax.data import code_tasks
from gpt4jax.errors import UserError
from gpt4jax.scaling import figures, solving
from gpt4jax.signals import TERMINATED

OPTIONS = types.SimpleNamespace(
    sample_budget=4000, successes=2, least_solved=2, buckets=3, excluded_problems=0.1, level=0.9, problems_per_level=5
)
PROBLEMS = code_tasks.problems(0, 5)
NAMES = [problem.name for problem in PROBLEMS]


def sampler(rates):
    """A model that gives a problem's own solution with a fixed chance, as a function of problem and seed alone."""

    def sample(wanted):
        for p, seed in wanted:
            right = np.random.default_rng([p, seed]).random() < rates[p]
            yield PROBLEMS[p].solution if right else "    return None\n"

    return sample


def test_rounds_end_with_enough_successes_or_the_budget():
    rates = np.linspace(0, 1, len(PROBLEMS))
    kept = []
    outcomes = solving.solve(PROBLEMS, sampler(rates), 200, 2, keep=lambda now: kept.append([len(row) for row in now]))
    for p, row in enumerate(outcomes):
        expected = [int(np.random.default_rng([p, seed]).random() < rates[p]) for seed in range(len(row))]
        assert row == expected
        assert min(sum(row[0::2]), sum(row[1::2])) >= 2 or len(row) == 200
        assert len(row) in (16, 32, 64, 128, 200)
    assert len(outcomes[0]) == 200 and not any(outcomes[0]) and len(outcomes[-1]) == 16
    assert len(kept) == 5 and kept[-1] == [len(row) for row in outcomes]


def test_interrupted_rounds_come_to_the_same(tmp_path):
    rates = np.linspace(0.01, 0.5, len(PROBLEMS))
    whole = solving.solve(PROBLEMS, sampler(rates), 100, 2)
    seen = []

    def stop(outcomes):
        seen.append([list(row) for row in outcomes])
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        solving.solve(PROBLEMS, sampler(rates), 100, 2, keep=stop)
    assert solving.solve(PROBLEMS, sampler(rates), 100, 2, seen[-1]) == whole


def test_estimates_are_of_the_draw_of_the_last_success():
    """By hand: second success at draw 4 gives H_3 - H_1 = 1/2 + 1/3, whatever was drawn behind it.

    Where the budget ended before it, H_n - H_c of what was drawn: H_3 - H_1 again, and H_2.
    """
    found = solving.neg_log_pass_rates([[0, 1, 0, 1, 1, 1], [0, 1, 0, 1], [1, 1], [0, 0, 1], [0, 0]], 2)
    np.testing.assert_allclose(found, [5 / 6, 5 / 6, 0, 5 / 6, 1.5])


def test_a_budget_that_ends_early_takes_no_more_than_the_series_beyond_it():
    """Exact over all outcomes of 20 draws, r = 2, p = 0.1: the mean is the series of -log p up to its 20th term."""
    p, n, mean = 0.1, 20, 0.0
    for word in range(n + 1):  # the draw of the second success; n + 1 - 1: fewer than two
        if word >= 2:
            mean += (
                (word - 1)
                * p**2
                * (1 - p) ** (word - 2)
                * solving.neg_log_pass_rates([[1, *[0] * (word - 2), 1]], 2)[0]
            )
    none, one = [0] * n, [1] + [0] * (n - 1)
    mean += (1 - p) ** n * solving.neg_log_pass_rates([none], 2)[0]
    mean += n * p * (1 - p) ** (n - 1) * solving.neg_log_pass_rates([one], 2)[0]
    series = sum((1 - p) ** k / k for k in range(1, n + 1))
    assert mean == pytest.approx(series, rel=1e-12)


@pytest.fixture(scope="module")
def models():
    """Five models whose -log pass rate is difficulty times C^-0.3, sampled."""
    compute = np.geomspace(1e10, 1e12, 5)
    difficulty = np.random.default_rng(1).permutation(np.linspace(0.5, 4.0, len(PROBLEMS)))
    difficulty[7] = 60.0  # no model ever solves it
    rates = np.exp(-difficulty * (compute[:, None] / 1e10) ** -0.3)
    outcomes = [solving.solve(PROBLEMS, sampler(row), OPTIONS.sample_budget, 20) for row in rates]
    return compute, difficulty, outcomes


def test_forecast_of_known_pass_rates(models):
    """The law that made the models comes back, in buckets ordered by difficulty, without the problem nobody solves."""
    compute, difficulty, outcomes = models
    options = types.SimpleNamespace(**vars(OPTIONS) | dict(successes=20))
    found = solving.forecast(compute, outcomes, NAMES, 1e14, options)
    assert NAMES[7] in found["excluded"] and len(found["excluded"]) == 3
    index = {name: p for p, name in enumerate(NAMES)}
    means = []
    for bucket in found["buckets"]:
        own = difficulty[[index[name] for name in bucket["problems"]]]
        means.append(own.mean())
        assert bucket["forecast"] == pytest.approx(own.mean() * 1e4**-0.3, rel=0.25)
        assert bucket["k"] == pytest.approx(0.3, abs=0.04)
        assert bucket["interval"][0] < bucket["forecast"] < bucket["interval"][1]
    assert means == sorted(means) and sum(len(bucket["problems"]) for bucket in found["buckets"]) == len(NAMES) - 3
    json.dumps(found, allow_nan=False)
    target = solving.solve(PROBLEMS, sampler(np.exp(-difficulty * 1e4**-0.3)), 4000, 20)
    words = solving.describe([{"ratio": 100.0, **found}], options, [solving.compare(found, NAMES, [target], options)])
    for bucket in found["buckets"]:
        assert f"{len(bucket['problems'])} problems: {bucket['forecast']:.3g}, falling" in words
    assert words.count("; measured ") == len(found["buckets"])
    for row in solving.compare(found, NAMES, [target], options):
        assert row["observed"][0] == pytest.approx(row["forecast"], rel=0.4)


def test_the_target_has_no_part_in_buckets(models):
    """More compute among the models does not move the buckets, which the smaller half makes."""
    compute, _, outcomes = models
    options = types.SimpleNamespace(**vars(OPTIONS) | dict(successes=20))
    before = solving.forecast(compute, outcomes, NAMES, 1e14, options)
    swapped = [*outcomes[:4], outcomes[0]]
    after = solving.forecast(compute, swapped, NAMES, 1e14, options)
    assert [b["problems"] for b in before["buckets"]] == [b["problems"] for b in after["buckets"]]


def test_a_problem_that_every_model_solved_is_kept_however_many_successes_end_it():
    """Of half of 64 draws the smaller model solved 2, fewer than the 20 that would have ended its draws, or 1."""
    options = types.SimpleNamespace(**vars(OPTIONS) | dict(successes=20, buckets=1, excluded_problems=0.0))
    right = ((10, 21, 31, 40), (10, 21), range(0, 64, 3))
    twice, once, often = ([int(i in draws) for i in range(64)] for draws in right)
    small = [twice if p % 2 else once for p in range(len(NAMES))]
    (bucket,) = solving.forecast([1e10, 1e11], [small, [often] * len(NAMES)], NAMES, 1e13, options)["buckets"]
    assert bucket["problems"] == NAMES[1::2] and bucket["dropped"] == NAMES[0::2]
    # Two right ones of 32 draws: H_32 - H_2 = 1/3 + ... + 1/32.
    assert bucket["mean_neg_log"][0] == pytest.approx(sum(1 / k for k in range(3, 33)))


def test_no_solved_problem():
    outcomes = [[[0] * 16 for _ in NAMES], [[1] * 16 for _ in NAMES]]
    with pytest.raises(UserError, match="no problem of 30 is solved 2 times"):
        solving.forecast([1e10, 1e11], outcomes, NAMES, 1e13, OPTIONS)


def test_a_bucket_that_is_left_empty_says_so_and_is_drawn(tmp_path):
    """The harder problems are solved by the larger model alone."""
    small = [[int(p < 12 and i % 4 < 2) for i in range(32)] for p in range(len(NAMES))]
    outcomes, target = [small, [[1, 1, 0, 1] * 8 for _ in NAMES]], [[1, 1] * 8 for _ in NAMES]
    found = solving.forecast([1e10, 1e11], outcomes, NAMES, 1e13, OPTIONS)
    kept = [len(bucket["problems"]) for bucket in found["buckets"]]
    assert kept[0] == 9 and kept[-1] == 0 and found["buckets"][-1]["no_forecast"] == "none is left"
    report = {"capability": [solving.compare(found, NAMES, [target], OPTIONS)]}
    document = {"capability": [found], "target": {"compute": 1e13}}
    assert "0 problems (9 more not solved often enough" in solving.describe(
        [{"ratio": 100.0, **found}], OPTIONS, report["capability"]
    )
    figures.capability(document, report, tmp_path / "figure2.png")
    assert (tmp_path / "figure2.png").stat().st_size > 1000


def test_a_forecast_without_an_interval_says_so_and_small_ones_keep_their_digits():
    bucket = {"problems": ["a"], "dropped": [], "forecast": 3.64e-7, "k": 2.0, "no_forecast": "674 of 1000"}
    row = {"forecast": 3.64e-7, "interval": None, "observed": [0.0, None]}
    words = solving.describe([{"ratio": 100.0, "buckets": [bucket]}], OPTIONS, [[row]])
    assert "1 problems: 3.64e-07, falling as C^-2.000; no interval: 674 of 1000; measured 0, nothing" in words


@pytest.mark.parametrize("successes", [2, 32])
def test_neither_filter_nor_rounds_bias_what_is_kept(successes):
    """Pass rates about the budget's edge: a problem is kept for its first half of draws, and measured by the other.

    The truth is the mean of -log p up to the term of the 256th draw, that of half a budget. The larger model's rounds
    end before that, on luck.
    """
    rng = np.random.default_rng(4)
    names = [str(p) for p in range(3000)]
    changed = dict(buckets=1, excluded_problems=0.0, successes=successes, sample_budget=512)
    options = types.SimpleNamespace(**vars(OPTIONS) | changed)
    rates = 0.006, 0.25

    def rounds(draws):
        drawn = 16
        while drawn < 512 and min(draws[0:drawn:2].sum(), draws[1:drawn:2].sum()) < successes:
            drawn *= 2
        return draws[:drawn].tolist()

    outcomes = [[rounds((rng.random(512) < rate).astype(int)) for _ in names] for rate in rates]
    found = solving.forecast([1e10, 1e12], outcomes, names, 1e14, options)["buckets"][0]
    assert 0.2 < len(found["dropped"]) / len(names) < 0.7
    # 4 standard errors: -log p from 1.5 right draws in the mean, or from `successes`, over 1,500 problems or more.
    allowed = 0.12, 4 / (1500 * successes) ** 0.5
    for mean, p, error in zip(found["mean_neg_log"], rates, allowed, strict=True):
        assert mean == pytest.approx(sum((1 - p) ** k / k for k in range(1, 257)), abs=error)


def test_every_run_and_problem_has_seeds_of_its_own():
    seeds = [solving._seed(run, problem, i) for run in ("a", "b") for problem in ("x", "y") for i in range(500)]
    assert len(set(seeds)) > 1995 and all(0 <= seed < 2**32 for seed in seeds)


def test_problems_need_room():
    from gpt4jax.data import tokenizer

    tok = tokenizer.from_bytes()
    longest = max(1 + len(p.prompt) + len(p.solution) + 1 for p in PROBLEMS)
    solving.check_problems(PROBLEMS, tok, longest)
    with pytest.raises(UserError, match=f"takes {longest} tokens, and model.max_seq_len is {longest - 1}"):
        solving.check_problems(PROBLEMS, tok, longest - 1)


def test_a_tokenizer_must_not_join_a_prompt_with_its_solution():
    """Such as one that makes one token of a line's end and the next one's indentation, where a prompt ends between."""
    from gpt4jax.data import tokenizer

    cut = dataclasses.replace(PROBLEMS[0], prompt=PROBLEMS[0].prompt.rstrip(" "), solution="    return x\n")
    own = tokenizer.from_bytes()
    solving.check_problems([cut], own, 300)
    joined = types.SimpleNamespace(
        encode=lambda text: own.encode(text.replace(":\n    ", "\t")), prompt=lambda text: joined.encode(text)
    )
    with pytest.raises(UserError, match=f"joins the end of {cut.name}'s prompt"):
        solving.check_problems([cut], joined, 300)
    solving.check_problems(PROBLEMS, joined, 300)


def test_selection_does_not_bias_the_easiest_bucket():
    """All problems alike, few successes: buckets are luck alone, and every bucket's mean must be the truth."""
    rng = np.random.default_rng(2)
    names = [str(p) for p in range(600)]
    options = types.SimpleNamespace(**vars(OPTIONS) | dict(buckets=3, excluded_problems=0.0))
    compute = np.geomspace(1e10, 1e12, 4)
    outcomes = [
        [list((rng.random(400) < np.exp(-2.0 * (c / 1e10) ** -0.2)).astype(int)) for _ in names] for c in compute
    ]
    for bucket in solving.forecast(compute, outcomes, names, 1e14, options)["buckets"]:
        assert bucket["forecast"] == pytest.approx(2.0 * 1e4**-0.2, rel=0.1)


@pytest.mark.parametrize(("status", "stopped", "ends"), [(0, False, 0), (0, True, TERMINATED), (3, False, 3)])
def test_only_a_run_that_ended_in_peace_goes_on_to_solve(status, stopped, ends, monkeypatch, tmp_path):
    solved = []
    monkeypatch.setattr(solving, "stopping", lambda: stopped)
    monkeypatch.setattr(solving, "of_run", lambda *given: solved.append(given))
    assert solving.after(lambda config, workdir: status, ("problem",), "options", "config", tmp_path) == ends
    assert solved == ([(tmp_path, ("problem",), "options")] if ends == 0 else [])
