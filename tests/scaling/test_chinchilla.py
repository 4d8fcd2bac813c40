"""L(N, D) against published parameters, SciPy's minimiser and its own equations."""

import json

import numpy as np
import pytest
from scipy import optimize, stats

from gpt4jax.scaling import chinchilla
from tests.bench.laws import FACTORS, HOFFMANN, grid, hoffmann_loss, logs, simulate_chinchilla

N, D = grid(6, 5)
NOISY = hoffmann_loss(N, D) * np.exp(0.004 * np.random.default_rng(0).normal(size=30))


@pytest.fixture(scope="module")
def law():
    return chinchilla.fit(N, D, NOISY)


def huber_sum(params, weights=1.0):
    """From its definition, in plain NumPy: params as HOFFMANN."""
    a, b, e, alpha, beta = params
    r = np.abs(np.log(NOISY / (np.exp(e) + np.exp(a) * N**-alpha + np.exp(b) * D**-beta)))
    return np.sum(weights * np.where(r <= 1e-3, r**2 / 2, 1e-3 * (r - 1e-3 / 2)))


def test_hoffmanns_parameters_are_recovered_without_noise():
    n, d = grid(9, 8)
    law = chinchilla.fit(n, d, hoffmann_loss(n, d))
    assert logs(law) == pytest.approx(HOFFMANN, rel=1e-7)
    assert (round(law.A, 1), round(law.B, 1), round(law.E, 2)) == (406.4, 410.7, 1.69)  # as the paper prints them


def test_the_fit_is_as_low_as_scipy_gets(law):
    assert law.objective == pytest.approx(huber_sum(logs(law)), rel=1e-9)
    options = dict(xatol=1e-10, fatol=1e-15, maxiter=20000, maxfev=20000)
    for start in (HOFFMANN, logs(law)):
        found = optimize.minimize(huber_sum, start, method="Nelder-Mead", options=options)
        assert law.objective <= found.fun * (1 + 1e-6)


def test_weights_are_counts():
    counts = np.random.default_rng(1).integers(0, 4, 30)
    weighted = chinchilla.fit(N, D, NOISY, weights=counts)
    repeated = chinchilla.fit(np.repeat(N, counts), np.repeat(D, counts), np.repeat(NOISY, counts))
    assert logs(weighted) == pytest.approx(logs(repeated), rel=1e-5)
    assert weighted.objective == pytest.approx(huber_sum(logs(weighted), counts), rel=1e-9)


def test_a_shared_exponent_is_shared_and_recovered():
    law = chinchilla.fit(N, D, 1.8 + 300 * N**-0.31 + 800 * D**-0.31, shared_exponent=True)
    assert law.alpha == law.beta == pytest.approx(0.31, rel=1e-6)
    assert logs(law)[:3] == pytest.approx(np.log([300, 800, 1.8]), rel=1e-6)
    resampled = chinchilla.bootstrap(law, 8)
    assert (resampled[:, 3] == resampled[:, 4]).all()


def test_compute_optimal_is_the_least_loss_on_the_line_6nd(law):
    compute = np.array([1e19, 5.76e23])
    n, d = law.compute_optimal(compute)
    assert 6 * n * d == pytest.approx(compute)
    for i, c in enumerate(compute):
        found = optimize.minimize_scalar(
            lambda log_n, c=c: law.predict(np.exp(log_n), c / 6 / np.exp(log_n)), (np.log(1e8), np.log(1e10)), tol=1e-12
        )
        assert n[i] == pytest.approx(np.exp(found.x), rel=1e-4)  # flat at the least
    assert law.compute_optimal(1e19) == (n[0], d[0])


def test_resamples_spread_as_fresh_runs_do(law):
    rng = np.random.default_rng(2)
    fresh = [chinchilla.fit(N, D, hoffmann_loss(N, D) * np.exp(0.004 * rng.normal(size=30))) for _ in range(60)]
    resampled = [chinchilla.bootstrap(one, 200).std(0) for one in fresh[:5]]
    ratio = np.mean(resampled, 0) / np.std([logs(one) for one in fresh], 0)
    assert (ratio > 0.65).all() and (ratio < 1.55).all(), ratio


def test_resamples_lie_about_the_law_and_repeat(law):
    resampled = chinchilla.bootstrap(law, 200)
    assert (np.abs(np.median(resampled, 0) - logs(law)) < resampled.std(0) / 2).all()
    assert (resampled == chinchilla.bootstrap(law, 200)).all()
    assert (resampled != chinchilla.bootstrap(law, 200, seed=1)).any()


def test_intervals_hold_the_truth_about_as_often_as_they_say():
    for kind, rows in simulate_chinchilla(30, 6, 5, 0.003, seed=1).items():
        assert (rows.sum(0) >= stats.binom.ppf(1e-4, 30, 0.9)).all(), (kind, rows.sum(0))


def test_intervals_widen_ahead_and_for_a_run(law):
    ahead = N.max() * FACTORS**0.5, D.max() * FACTORS**0.5
    low, high = law.interval(*ahead)
    assert (low < law.predict(*ahead)).all() and (law.predict(*ahead) < high).all()
    assert (np.diff(high - low) > 0).all()
    run_low, run_high = law.interval(*ahead, kind="run")
    assert (run_high - run_low > high - low).all()
    assert isinstance(law.interval(1e11, 1e12)[0], float)


def test_a_law_survives_json(law):
    assert chinchilla.Chinchilla.from_dict(json.loads(json.dumps(law.to_dict()))) == law


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        (dict(num_params=[1e8] * 30), "num_params has 1 distinct values"),
        (dict(num_tokens=20 * N), "num_tokens is a power of num_params"),
        (dict(loss=np.where(np.arange(30) == 7, np.nan, NOISY)), r"loss\[7\] is nan"),
        (dict(num_tokens=np.where(np.arange(30) == 3, -1, D)), r"num_tokens\[3\] is -1"),
        (dict(num_params=N[:5], num_tokens=D[:5], loss=NOISY[:5]), "5 runs can't determine five parameters"),
        (dict(loss=NOISY[:29]), "one number a run"),
    ],
)
def test_bad_runs_are_refused_in_words(columns, words):
    with pytest.raises(ValueError, match=words):
        chinchilla.fit(**(dict(num_params=N, num_tokens=D, loss=NOISY) | columns))


def test_bad_questions_are_refused_in_words(law):
    with pytest.raises(ValueError, match="probability between 0 and 1"):
        law.interval(1e10, 1e11, 90)
    with pytest.raises(ValueError, match='"mean" .* or "run"'):
        law.interval(1e10, 1e11, kind="each")
    with pytest.raises(ValueError, match="num_(params|tokens) is .*: it must be above 0"):
        law.predict(1e10, 0)
    few = np.array([0, 2, 4, 11, 13, 20, 29])
    with pytest.raises(ValueError, match="too few for an interval"):
        chinchilla.fit(N[few], D[few], NOISY[few]).interval(1e10, 1e11)
