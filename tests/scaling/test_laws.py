"""The power law against known truths, SciPy's minimisers, and what its intervals promise."""

import json
import math

import jax
import numpy as np
import pytest
from scipy import optimize, stats

from gpt4jax.scaling import fitting, laws
from tests.bench.laws import simulate

COMPUTE = np.array([1e15, 3e15, 3e15, 1e16, 4e16, 1e17, 6e17])
NOISE = 0.003 * np.array([0.3, -1.1, 0.8, 0.4, -0.9, 1.2, -0.5])
NOISY = (150 * COMPUTE**-0.12 + 1.2) * np.exp(NOISE)


def huber_sum(params, compute, loss, weights):
    """From its definition, in plain NumPy: params are log a at the largest compute, log -b, log c."""
    model = np.exp(params[0]) * (compute / compute.max()) ** -np.exp(params[1]) + np.exp(params[2])
    r = np.abs(np.log(loss / model))
    return np.sum(weights * np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 1e-3 / 2)))


@pytest.mark.parametrize("truth", [(150, -0.12, 1.2), (3e7, -0.5, 0.02), (30, -0.06, 0.0), (4e14, -0.95, 2.5)])
@pytest.mark.parametrize("unit", [1.0, 1e7])
def test_parameters_are_recovered_without_noise(truth, unit):
    a, b, c = truth
    law = laws.fit(COMPUTE * unit, a * COMPUTE**b + c)
    assert (law.a, law.b, law.c) == pytest.approx((a * unit**-b, b, c), rel=1e-6, abs=1e-6)
    assert law.predict(1e21 * unit) == pytest.approx(a * 1e21**b + c, rel=1e-6)
    assert law.predict(math.inf) == law.c
    assert law.noise < 1e-8


@pytest.mark.parametrize("seed", range(6))
def test_the_fit_is_as_low_as_scipy_gets(seed):
    rng = np.random.default_rng(seed)
    loss = (150 * COMPUTE**-0.12 + 1.2) * np.exp(0.004 * rng.normal(size=7))
    weights = rng.uniform(0.2, 3, 7)
    law = laws.fit(COMPUTE, loss, weights=weights)
    reducible = law.a * COMPUTE.max() ** law.b
    ours = huber_sum(np.log([reducible, -law.b, max(law.c, 1e-300)]), COMPUTE, loss, weights)
    bounds = [(-6, 2), (np.log(1e-3), np.log(2)), (-12, np.log(loss.min()))]
    found = optimize.differential_evolution(huber_sum, bounds, (COMPUTE, loss, weights), seed=0, tol=1e-10, popsize=8)
    assert ours <= found.fun * (1 + 1e-6)


def test_a_weight_of_two_is_two_runs_and_of_zero_is_none():
    weights = np.array([2, 1, 1, 0, 1, 2, 1])
    weighted = laws.fit(COMPUTE, NOISY, weights=weights)
    repeated = laws.fit(np.repeat(COMPUTE, weights), np.repeat(NOISY, weights))
    assert (weighted.a, weighted.b, weighted.c) == pytest.approx((repeated.a, repeated.b, repeated.c), rel=1e-6)
    kept = weights > 0
    alone = laws.fit(COMPUTE[kept], NOISY[kept], weights=weights[kept])
    assert weighted.interval(1e19) == pytest.approx(alone.interval(1e19), rel=1e-6)


def test_one_bad_run_moves_a_robust_fit_less():
    bad = NOISY.copy()
    bad[3] *= 1.2
    shifts = [
        abs(laws.fit(COMPUTE, bad, delta=d).predict(1e19) / laws.fit(COMPUTE, NOISY, delta=d).predict(1e19) - 1)
        for d in (fitting.DELTA, 10.0)
    ]
    assert shifts[0] < 0.01 < 0.03 < shifts[1]


def squares(params, ahead=None, value=None, own_noise=False):
    """Squared log residuals of NOISY when the law, or one more run, at `ahead` has log loss `value`."""
    u = np.log(COMPUTE / COMPUTE.max())
    level, log_b, logit = params
    share = 1 / (1 + np.exp(-logit))

    def shape(at):
        return np.log(share + (1 - share) * np.exp(-np.exp(log_b) * at))

    if ahead is None:
        return np.sum((np.log(NOISY) - level - shape(u)) ** 2)
    at = shape(np.log(ahead / COMPUTE.max()))
    if own_noise:
        return np.sum((np.log(NOISY) - level - shape(u)) ** 2) + (value - level - at) ** 2
    return np.sum((np.log(NOISY) - (value - at) - shape(u)) ** 2)


@pytest.mark.parametrize("kind", ["mean", "run"])
@pytest.mark.parametrize("level", [0.5, 0.9])
def test_the_interval_is_where_the_profile_likelihood_crosses_its_limit(kind, level):
    start, ahead = [np.log(2.3), np.log(0.12), 0.0], 3e19

    def least(*args):
        options = dict(method="Nelder-Mead", options=dict(xatol=1e-9, fatol=1e-16, maxiter=4000, maxfev=4000))
        return min(optimize.minimize(squares, [start[0], np.log(b), 0.0], args, **options).fun for b in (0.08, 0.3))

    free = least()
    limit = free * (1 + stats.f.ppf(level, 1, 7 - 3) / (7 - 3))  # an F test; ours is written with Student's t
    for end in laws.fit(COMPUTE, NOISY).interval(ahead, level, kind):
        assert least(ahead, np.log(end), kind == "run") == pytest.approx(limit, rel=5e-3)


def test_intervals_hold_the_truth_as_often_as_they_say():
    held, _, _ = simulate(60, (0.5, 0.9), seed=1)
    for (level, kind), rows in held.items():
        fewest, most = stats.binom.ppf([1e-4, 1 - 1e-4], len(rows), level)
        assert (fewest <= rows.sum(0)).all() and (rows.sum(0) <= most).all(), (level, kind, rows.sum(0))


def test_intervals_of_arrays_and_of_c():
    law = laws.fit(COMPUTE, NOISY)
    ahead = np.array([[1e18, 1e19], [1e20, math.inf]])
    low, high = law.interval(ahead)
    assert low.shape == high.shape == law.predict(ahead).shape == (2, 2)
    assert (low < law.predict(ahead)).all() and (law.predict(ahead) < high).all()
    assert law.interval(1e20) == (low[1, 0], high[1, 0]) and isinstance(law.interval(1e20)[0], float)
    assert low[1, 1] < law.c < high[1, 1]
    run_low, run_high = law.interval(ahead, kind="run")
    assert (run_low < low).all() and (high < run_high).all()
    wide_low, wide_high = law.interval(ahead, 0.99)
    assert (wide_low < low)[:, 0].all() and (high < wide_high).all()


def test_without_c_the_interval_is_that_of_a_straight_line():
    law = laws.fit(COMPUTE, NOISY, irreducible=False, delta=10.0)
    x, y = np.log(COMPUTE), np.log(NOISY)
    line = stats.linregress(x, y)
    assert law.c == 0 and law.b == pytest.approx(line.slope, rel=1e-6)
    at = np.log(1e20)
    noise = np.sqrt(np.sum((y - line.intercept - line.slope * x) ** 2) / 5)
    assert law.noise == pytest.approx(noise, rel=1e-6)
    spread = 1 / 7 + (at - x.mean()) ** 2 / np.sum((x - x.mean()) ** 2)
    for kind, own in (("mean", 0), ("run", 1)):
        half = stats.t.ppf(0.95, 5) * noise * np.sqrt(spread + own)
        centre = line.intercept + line.slope * at
        assert np.log(law.interval(1e20, 0.9, kind)) == pytest.approx((centre - half, centre + half), abs=half * 1e-2)


def test_arithmetic_is_float64_and_leaves_the_switch_alone():
    assert not jax.config.jax_enable_x64
    law = laws.fit(COMPUTE, 150 * COMPUTE**-0.12 + 1.2)
    law.interval(1e20)
    assert not jax.config.jax_enable_x64 and jax.numpy.ones(()).dtype == np.float32
    assert abs(law.c - 1.2) < 1e-8  # float32 would stop at 1e-3


def test_a_law_survives_json():
    for law in (laws.fit(COMPUTE, NOISY), laws.fit(COMPUTE[:4], NOISY[:4]), laws.fit(COMPUTE[::3], NOISY[::3])):
        again = laws.PowerLaw.from_dict(json.loads(json.dumps(law.to_dict(), allow_nan=False)))
        assert again == law or (math.isnan(law.noise) and again.to_dict() == law.to_dict())


def test_three_levels_give_a_law_and_no_interval():
    law = laws.fit(COMPUTE[:4], NOISY[:4])
    assert any("3 distinct levels" in words for words in law.warnings)
    with pytest.raises(ValueError, match="3 distinct levels of compute for 3 parameters"):
        law.interval(1e20)
    two = laws.fit(COMPUTE[:2], NOISY[:2])
    assert two.c == 0 and "c is set to 0" in two.warnings[0]
    assert two.predict(COMPUTE[:2]) == pytest.approx(NOISY[:2])


def test_what_the_runs_do_not_determine_is_said():
    assert laws.fit(COMPUTE, 150 * COMPUTE**-0.12 + 1.2).warnings == ()
    loud = (30 * COMPUTE**-0.06) * np.exp(3 * NOISE)
    assert any(
        "c is not identified: at 90% it is anything from 0 to" in words for words in laws.fit(COMPUTE, loud).warnings
    )
    u = np.log(COMPUTE / COMPUTE.max())
    faster = laws.fit(COMPUTE, np.exp(-0.1 * u - 0.005 * u**2))  # steepens: even c = 0 bends too little
    assert faster.c == 0 and any("edge of its range" in words for words in faster.warnings)
    cliff = laws.fit(COMPUTE, np.where(COMPUTE < 2e15, 3.0, 2.0))
    assert any(words.startswith("b = ") for words in cliff.warnings)


@pytest.mark.parametrize(
    ("compute", "loss", "weights", "words"),
    [
        ([1e15] * 4, [3, 3, 3, 3.1], None, "All runs have 1e"),
        ([1e15, 1e16, 1e17], [3, math.nan, 2], None, r"loss\[1\] is nan"),
        ([1e15, 1e16, 1e17], [3, 2.5, math.inf], None, r"loss\[2\] is inf"),
        ([1e15, 1e16, 1e17], [3, 2.5, 0], None, r"loss\[2\] is 0.0"),
        ([-1e15, 1e16, 1e17], [3, 2.5, 2], None, r"compute\[0\] is -"),
        ([1e15, 1e16, 1e17], [3, 2.5, 2], [1, -1, 1], r"weights\[1\] is -1.0"),
        ([1e15, 1e16, 1e17], [3, 2.5, 2], [0, 0, 0], "no run is left"),
        ([1e15, 1e16, 1e17], [3, 2.5], None, "one number a run"),
        ([1e15, 1e16, 1e17, 1e18], [2, 2.1, 2.2, 2.3], None, "do not fall with compute"),
        ([1e15, 1e16, 1e17, 1e18], [2, 2, 2, 2], None, "do not fall with compute"),
    ],
)
def test_bad_runs_are_refused_in_words(compute, loss, weights, words):
    with pytest.raises(ValueError, match=words):
        laws.fit(compute, loss, weights=weights)


def test_bad_questions_are_refused_in_words():
    law = laws.fit(COMPUTE, NOISY)
    for level in (0, 1, 90):
        with pytest.raises(ValueError, match="probability between 0 and 1"):
            law.interval(1e20, level)
    with pytest.raises(ValueError, match='"mean" .* or "run"'):
        law.interval(1e20, kind="prediction")
    for compute in (0.0, -1e20, math.nan):
        with pytest.raises(ValueError, match="compute is .*: it must be above 0"):
            law.predict(compute)
