"""Estimators against exact sums over binomial and negative binomial counts; the law against points made from it."""

import dataclasses
import json
import math

import numpy as np
import pytest
from scipy.stats import binom, linregress, nbinom

from gpt4jax.scaling import capability


def harmonic_number(n: int) -> float:
    return math.fsum(1 / k for k in range(1, n + 1))


def expected_over_counts(estimate_c, n: int, p: float, least: int = 0) -> float:
    """The exact mean of an estimate over binomial counts, given at least `least` successes."""
    weight_c = binom.pmf(np.arange(n + 1), n, p)[least:]
    return float(weight_c @ estimate_c / weight_c.sum())


def test_harmonic_is_the_series_of_pass_at_k():
    for n, c in ((1, 0), (1, 1), (7, 0), (7, 3), (40, 39), (200, 5)):
        series = sum(math.comb(n - c, k) / (k * math.comb(n, k)) for k in range(1, n + 1))
        assert capability.harmonic(n, c) == pytest.approx(series, rel=1e-13, abs=1e-15)
        assert capability.harmonic(n, c) == pytest.approx(harmonic_number(n) - harmonic_number(c), rel=1e-13, abs=1e-15)
    assert capability.harmonic(50, 50) == 0
    assert capability.harmonic([10**12], [10**9]) == pytest.approx(math.log(1000), rel=1e-9)


@pytest.mark.parametrize(("n", "p"), [(1, 0.3), (10, 0.05), (50, 0.02), (100, 0.02), (200, 0.7)])
def test_harmonic_is_low_by_the_rest_of_the_series(n, p):
    mean = expected_over_counts(capability.harmonic(np.full(n + 1, n), np.arange(n + 1)), n, p)
    rest = -math.log(p) - math.fsum((1 - p) ** k / k for k in range(1, n + 1))
    assert -math.log(p) - mean == pytest.approx(rest, rel=1e-8, abs=1e-13)


def test_the_numbers_of_the_docstring_and_of_the_protocol():
    n, p = 100, 0.02  # n p = 2
    c = np.arange(n + 1)
    harmonic = capability.harmonic(np.full(n + 1, n), c)
    assert -math.log(p) == pytest.approx(3.91, abs=5e-3)
    assert expected_over_counts(harmonic, n, p) == pytest.approx(3.87, abs=5e-3)
    assert expected_over_counts(harmonic[1:], n, p, least=1) == pytest.approx(3.66, abs=5e-3)
    plug_in = capability.plug_in(np.full(n, n), c[1:])
    assert expected_over_counts(plug_in, n, p, least=1) == pytest.approx(3.91, abs=5e-3)
    for expected, bias in ((1, 0.22), (2, 0.05), (5, 0.001)):
        n = 1000 * expected
        mean = expected_over_counts(capability.harmonic(np.full(n + 1, n), np.arange(n + 1)), n, 1e-3)
        assert -math.log(1e-3) - mean == pytest.approx(bias, abs=0.005 if bias > 0.01 else 5e-4)


@pytest.mark.parametrize("p", [0.03, 0.2, 0.9])
@pytest.mark.parametrize("successes", [1, 2, 5])
def test_inverse_sampling_has_no_bias(p, successes):
    draws = np.arange(successes, successes + 4000)  # the rest has a probability below 1e-40
    weight = nbinom.pmf(draws - successes, successes, p)
    mean = weight @ capability.inverse_sampling(draws, successes)
    assert mean == pytest.approx(-math.log(p), rel=1e-10)


def test_inverse_sampling_does_not_mind_doubling_rounds_and_harmonic_does():
    """A simulated job: rounds until every problem has 3 successes."""
    p, problems = 0.1, 4000
    rng = np.random.default_rng(0)
    solved_ps = np.zeros((problems, 0), bool)
    samples_p = np.zeros(problems, int)
    while True:
        drawn_ps = np.arange(solved_ps.shape[1]) < samples_p[:, None]
        more_p = capability.next_samples(samples_p, (solved_ps & drawn_ps).sum(axis=1), 4096, successes=3, first=8)
        if not more_p.any():
            break
        samples_p = samples_p + more_p
        fresh_ps = rng.random((problems, samples_p.max() - solved_ps.shape[1])) < p
        solved_ps = np.concatenate([solved_ps, fresh_ps], axis=1)
    truth = -math.log(p)
    inverse_p = capability.inverse_sampling(capability.draws_until(solved_ps & drawn_ps, 3), 3)
    harmonic_p = capability.harmonic(samples_p, (solved_ps & drawn_ps).sum(axis=1))
    assert abs(inverse_p.mean() - truth) < 4 * inverse_p.std() / problems**0.5
    assert abs(harmonic_p.mean() - truth) > 4 * harmonic_p.std() / problems**0.5


def test_draws_until():
    solved = np.array([[0, 1, 0, 1], [1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 0]])
    assert capability.draws_until(solved).tolist() == [2, 1, 4, 0]
    assert capability.draws_until(solved, 2).tolist() == [4, 2, 0, 0]


def test_plan_doubles_what_is_unsolved_up_to_the_budget():
    samples, correct = np.array([0, 16, 16, 64, 100, 128]), np.array([0, 0, 1, 0, 0, 0])
    assert capability.next_samples(samples, correct, 128).tolist() == [16, 16, 0, 64, 28, 0]
    assert capability.next_samples(samples, correct, 128, successes=2).tolist() == [16, 16, 16, 64, 28, 0]
    assert capability.next_samples([0], [0], 10).tolist() == [10]
    with pytest.raises(ValueError, match="more correct samples than samples"):
        capability.next_samples([1], [2], 10)
    with pytest.raises(ValueError, match="budget 0"):
        capability.next_samples([1], [0], 0)


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: capability.harmonic([5, 5], [0, 6]), "6 correct of 5"),
        (lambda: capability.harmonic(0, 0), "0 correct of 0"),
        (lambda: capability.harmonic(5.0, 1), "float64"),
        (lambda: capability.plug_in([5, 5], [0, 1]), "1 of 2 pass rates are 0"),
        (lambda: capability.inverse_sampling([4, 0]), "came at draw 0"),
        (lambda: capability.inverse_sampling(2, 3), "3th success came at draw 2"),
    ],
)
def test_bad_counts(call, match):
    with pytest.raises(ValueError, match=match):
        call()


def test_filter_names_what_it_drops_and_why():
    correct = [[3, 0, 1, 0], [4, 2, 0, 0], [5, 9, 9, 9]]
    solved = capability.solved_by_every_model(correct, ["a", "b", "c", "d"])
    assert solved.kept == (0,)
    assert solved.dropped == {"b": (0,), "c": (1,), "d": (0, 1)}
    json.dumps(dataclasses.asdict(solved))
    with pytest.raises(ValueError, match=r"3 names \(2 distinct\)"):
        capability.solved_by_every_model([[1, 1, 1]], ["a", "a", "b"])


def test_buckets_of_humaneval():
    difficulty_p = np.random.default_rng(0).permutation(164).astype(float)
    buckets = capability.difficulty_buckets(np.stack([difficulty_p - 0.5 * (difficulty_p > 0), difficulty_p + 0.5]))
    assert [len(bucket) for bucket in buckets.buckets] == [25, 25, 25, 25, 25, 24]
    assert difficulty_p[list(buckets.excluded)].tolist() == list(range(149, 164))
    assert difficulty_p[np.concatenate(buckets.buckets)].tolist() == list(range(149))
    json.dumps(dataclasses.asdict(buckets))


def test_buckets_rank_by_the_mean_and_break_ties_by_index():
    # means: 2, 1, 2, 1, 5
    buckets = capability.difficulty_buckets([[4, 1, 2, 0, 5], [0, 1, 2, 2, 5]], num_buckets=2, num_excluded=1)
    assert buckets == capability.Buckets(((1, 3), (0, 2)), (4,))
    with pytest.raises(ValueError, match="do not make 6 buckets"):
        capability.difficulty_buckets(np.ones((2, 20)))
    with pytest.raises(ValueError, match="finite"):
        capability.difficulty_buckets([[1.0, np.inf]], 1, 0)


COMPUTE = np.array([1e13, 4e13, 3e14, 2e15])


def test_an_exact_law_is_recovered_far_away():
    mean_m = 5e4 * COMPUTE**-0.31
    share_p = np.array([0.5, 1.0, 1.5])  # of each problem in the mean: every resample has the same k
    law = capability.fit(COMPUTE, mean_m[:, None] * share_p, resamples=500)
    assert law.alpha == pytest.approx(5e4, rel=1e-9)
    assert law.k == pytest.approx(0.31, rel=1e-10)
    assert law.predict(1e18) == pytest.approx(5e4 * 1e18**-0.31, rel=1e-9)
    np.testing.assert_allclose(law.k_r, 0.31, rtol=1e-9)
    assert law.interval(1e18, 0.9999)[0] == pytest.approx(0.5 * law.predict(1e18), rel=1e-9)
    assert law.interval(1e18, 0.9999)[1] == pytest.approx(1.5 * law.predict(1e18), rel=1e-9)


def noisy(problems: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    alpha_p, k_p = rng.lognormal(8, 0.5, problems), rng.normal(0.25, 0.02, problems)
    return alpha_p * COMPUTE[:, None] ** -k_p


def test_fit_and_bootstrap_are_scipys_regression_of_each_resample():
    values = noisy(20, 1)
    law = capability.fit(COMPUTE, values, resamples=40, seed=7)
    line = linregress(np.log(COMPUTE), np.log(values.mean(axis=1)))
    assert (-law.k, math.log(law.alpha)) == pytest.approx((line.slope, line.intercept), rel=1e-10)
    rng = np.random.default_rng(7)
    forecasts = []
    for k, log_alpha in zip(law.k_r, law.log_alpha_r, strict=True):
        times_p = rng.multinomial(20, np.full(20, 1 / 20))
        resample = np.repeat(np.arange(20), times_p)
        line = linregress(np.log(COMPUTE), np.log(values[:, resample].mean(axis=1)))
        assert (-k, log_alpha) == pytest.approx((line.slope, line.intercept), rel=1e-9)
        forecasts.append(math.exp(line.intercept + line.slope * math.log(1e17)))
    assert law.interval(1e17, 0.8) == pytest.approx(tuple(np.quantile(forecasts, [0.1, 0.9])), rel=1e-9)


def test_interval_covers_what_the_population_of_problems_gives():
    """Over sets of problems drawn from a population, against the same fit on the population itself."""
    truth = capability.fit(COMPUTE, noisy(200_000, 0), resamples=0).predict(1e17)
    intervals = [capability.fit(COMPUTE, noisy(30, seed), resamples=300).interval(1e17, 0.9) for seed in range(1, 201)]
    covered = np.mean([low <= truth <= high for low, high in intervals])
    assert 0.8 < covered < 0.96  # percentiles of 30 problems are known to be a little narrow


def test_law_goes_through_json_and_arrays_of_compute():
    law = capability.fit(COMPUTE, noisy(20, 1), resamples=30)
    again = capability.PassRateLaw(**json.loads(json.dumps(dataclasses.asdict(law))))
    assert again.interval(1e17) == law.interval(1e17)
    low, high = law.interval(COMPUTE)
    assert low.shape == high.shape == law.predict(COMPUTE).shape == COMPUTE.shape
    assert (low[1], high[1]) == law.interval(4e13)


def test_resamples_without_a_law_are_counted_and_then_refused():
    values = np.zeros((2, 10))
    values[0], values[1, 0] = 1.0, 0.5  # the larger model fails on one problem only: (9/10)^10 = 35% have none of it
    law = capability.fit([1e12, 1e15], values, resamples=2000)
    assert law.undefined == pytest.approx(2000 * 0.9**10, abs=4 * (2000 * 0.35 * 0.65) ** 0.5)
    assert len(law.k_r) == 2000 - law.undefined
    with pytest.raises(ValueError, match="resamples have no law"):
        law.interval(1e16)


@pytest.mark.parametrize(
    ("compute", "values", "match"),
    [
        ([1e12, 1e15], [[1.0, 2.0], [0.0, 0.0]], "at 1e\\+15 FLOPs is 0.*solved every sample"),
        ([1e12, 1e12], [[1.0], [2.0]], "at least two amounts"),
        ([1e12, 1e15], [[1.0], [1.0]], "do not rise"),
        ([1e12, 1e15], [[1.0], [2.0]], "do not rise"),
        ([1e12], [[1.0], [2.0]], "shape"),
        ([0.0, 1e12], [[2.0], [1.0]], "compute_m\\[0\\] is 0.0, not finite and positive"),
        ([1e12, np.inf], [[2.0], [1.0]], "compute_m\\[1\\] is inf, not finite and positive"),
        ([1e11, 1e12], [[np.nan], [1.0]], "finite"),
    ],
)
def test_what_has_no_law_is_said(compute, values, match):
    with pytest.raises(ValueError, match=match):
        capability.fit(compute, values)


def test_intervals_that_cannot_be():
    law = capability.fit(COMPUTE, noisy(5, 1), resamples=10)
    with pytest.raises(ValueError, match="level is 90"):
        law.interval(1e17, 90)
    with pytest.raises(ValueError, match="0 of 0 resamples"):
        capability.fit(COMPUTE, noisy(5, 1), resamples=0).interval(1e17)
