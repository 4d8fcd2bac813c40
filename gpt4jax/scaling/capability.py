"""Capabilities forecast from smaller models: the GPT-4 report's pass-rate law (its section 3.2 and figure 2).

The mean over a set of problems of -log(pass rate) falls with compute C as alpha C^-k. The report states the law,
the six difficulty buckets, the 15 problems left out and the filter "every problem is solved at least once by every
model". It is silent about the estimator of log(pass rate), the fit, ties and intervals: those choices are ours.

Counts are plain integer arrays: `samples_mp` drawn and `correct_mp` solved, by model m and problem p, whatever the
problems are (our code tasks, HumanEval).
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import digamma

from gpt4jax.scaling import arguments

_RESAMPLE_BLOCK = 2**24  # numbers of a block of bootstrap weights: 128 MiB


def harmonic(samples: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Estimates -log p from `correct` successes in `samples` draws, as H_n - H_c (H: harmonic numbers); same shape.

    -log p = sum over k >= 1 of (1 - p)^k / k, and C(n - c, k) / C(n, k) estimates (1 - p)^k without bias (1 - pass@k of
    Chen et al. 2021); the terms up to k = n add up to H_n - H_c. So the mean is low by exactly the sum over k > n of
    (1 - p)^k / k, about E1(n p): 0.22 at n p = 1, 0.05 at 2, 0.001 at 5. It is finite at c = 0. Among estimates with
    c >= 1 alone the mean is much lower (n = 100, p = 0.02: 3.66 against 3.87 of all, and a true 3.91).

    Raises:
        ValueError: counts that are no whole numbers, or not 0 <= c <= n with n >= 1.
    """
    n, c = _counts(samples, correct)
    return _harmonic_number(n) - _harmonic_number(c)


def inverse_sampling(draws: ArrayLike, successes: int = 1) -> np.ndarray:
    """Estimates -log p from the number of draws up to the r-th success, as H_{N-1} - H_{r-1}: exactly without bias.

    Args:
        draws: N, the draw at which the r-th success came; any shape.
        successes: r, chosen before anything was drawn.

    Raises:
        ValueError: r below 1, or an N below r.
    """
    n = _whole("draws", draws)
    if successes < 1 or np.any(n < successes):
        raise ValueError(f"the {successes}th success came at draw {n.min()}; at least 1 success, and one draw for each")
    return _harmonic_number(n - 1) - _harmonic_number(np.asarray(successes - 1))


def draws_until(solved_ps: ArrayLike, successes: int = 1) -> np.ndarray:
    """The draw (from 1) of each problem's r-th success, for `inverse_sampling`; 0 where there are fewer successes.

    Args:
        solved_ps: whether each draw of each problem is correct, in the order drawn: (problems, draws).
        successes: r.
    """
    total_ps = np.cumsum(np.asarray(solved_ps, bool), axis=1)
    reached_ps = total_ps >= successes
    return np.where(reached_ps.any(axis=1), reached_ps.argmax(axis=1) + 1, 0)


def plug_in(samples: ArrayLike, correct: ArrayLike) -> np.ndarray:
    """Estimates -log p as -log(c / n), as the report's filter allows; same shape.

    Raises:
        ValueError: a problem that was never solved, or bad counts.
    """
    n, c = _counts(samples, correct)
    if not c.all():
        raise ValueError(
            f"{np.sum(c == 0)} of {c.size} pass rates are 0, whose logarithm does not exist; drop them first"
        )
    return -np.log(c / n)


@dataclasses.dataclass(frozen=True)
class Solved:
    """What the filter keeps: indices of problems, and for each dropped name the models that never solved it."""

    kept: tuple[int, ...]
    dropped: dict[str, tuple[int, ...]]


def solved_by_every_model(correct_mp: ArrayLike, names: Sequence[str]) -> Solved:
    """The report's filter: problems that every model solved at least once within its sample budget.

    Args:
        correct_mp: correct samples, (models, problems).
        names: of the problems.

    Raises:
        ValueError: names that are not as many as the problems, or not distinct.
    """
    correct_mp = _whole("correct_mp", correct_mp)
    if correct_mp.ndim != 2 or len(names) != correct_mp.shape[1] or len(set(names)) != len(names):
        raise ValueError(f"{len(names)} names ({len(set(names))} distinct) for counts of shape {correct_mp.shape}")
    never_mp = correct_mp == 0
    dropped = {
        names[p]: tuple(np.flatnonzero(never_mp[:, p]).tolist()) for p in np.flatnonzero(never_mp.any(axis=0)).tolist()
    }
    return Solved(tuple(np.flatnonzero(~never_mp.any(axis=0)).tolist()), dropped)


@dataclasses.dataclass(frozen=True)
class Buckets:
    """Indices of problems: `buckets` from the easiest to the hardest, each from easy to hard, and those left out."""

    buckets: tuple[tuple[int, ...], ...]
    excluded: tuple[int, ...]


def difficulty_buckets(neg_log_mp: ArrayLike, num_buckets: int = 6, num_excluded: int = 15) -> Buckets:
    """Splits problems by how hard they are for the smaller models: equally, the hardest left out.

    HumanEval: 164 - 15 = 149 problems make five buckets of 25 and one of 24; the larger ones come first. The filter
    comes afterwards, within a bucket, as 23 problems in the report's figure suggest. Difficulty is the plain mean over
    models; of equally hard problems the one with the lower index counts as easier (the report is silent on both).

    Args:
        neg_log_mp: estimates of -log p, (models, problems), of the smaller models only: the model that is forecast,
            and any other that is not fitted, must have no part in it.
        num_buckets: 6 in the report.
        num_excluded: the hardest problems, in no bucket; 15 in the report.

    Raises:
        ValueError: values that are not finite, or fewer problems than buckets.
    """
    neg_log_mp = _estimates(neg_log_mp)
    order = np.argsort(neg_log_mp.mean(axis=0), kind="stable")
    split = len(order) - num_excluded
    if num_buckets < 1 or num_excluded < 0 or split < num_buckets:
        raise ValueError(f"{len(order)} problems without the {num_excluded} hardest do not make {num_buckets} buckets")
    buckets = tuple(tuple(part.tolist()) for part in np.array_split(order[:split], num_buckets))
    return Buckets(buckets, tuple(order[split:].tolist()))


@dataclasses.dataclass(frozen=True)
class PassRateLaw:
    """-E[log p] = alpha C^-k of one set of problems; `dataclasses.asdict` is JSON, and `PassRateLaw(**json)` its law.

    Attributes:
        alpha, k: of the law, C in FLOPs.
        compute, mean_neg_log: what it was fitted to, one value a model.
        log_alpha_r, k_r: the law of each bootstrap resample of the problems that has one.
        undefined: resamples without a law: some model solved every sample of every problem in them.
    """

    alpha: float
    k: float
    compute: tuple[float, ...]
    mean_neg_log: tuple[float, ...]
    log_alpha_r: tuple[float, ...]
    k_r: tuple[float, ...]
    undefined: int

    def predict(self, compute: ArrayLike) -> Any:
        """The mean over problems of -log p at `compute` FLOPs: a float for a number, an array for an array."""
        value = np.exp(np.log(self.alpha) - self.k * np.log(arguments.positive(compute=compute)[0]))
        return float(value) if value.ndim == 0 else value

    def interval(self, compute: ArrayLike, level: float = 0.9) -> tuple[Any, Any]:
        """Percentiles (low, high) of `predict` over the bootstrap: what other problems of this kind would have given.

        Noise of whole models (their seeds) is not in it, nor is the law's own error.

        Raises:
            ValueError: a level outside (0, 1), no resamples, or over 5% of them without a law.
        """
        count = len(self.k_r)
        arguments.level(level)
        if self.undefined > 0.05 * (count + self.undefined) or not count:
            raise ValueError(
                f"{self.undefined} of {count + self.undefined} resamples have no law: a model solved every sample of "
                "every problem in them; draw more samples, or leave out the easiest problems or the largest model"
            )
        log_c = np.log(arguments.positive(compute=compute)[0])
        values = np.exp(np.multiply.outer(-np.asarray(self.k_r), log_c) + _column(self.log_alpha_r, log_c.ndim))
        low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return (float(low), float(high)) if log_c.ndim == 0 else (low, high)


def fit(compute_m: ArrayLike, neg_log_mp: ArrayLike, resamples: int = 1000, seed: int = 0) -> PassRateLaw:
    """Fits -E[log p] = alpha C^-k by least squares of log(mean over problems) on log C, and bootstraps the problems.

    Args:
        compute_m: FLOPs of each model, (models,).
        neg_log_mp: estimates of -log p of the set's problems, (models, problems).
        resamples: of the problems, with replacement, the same for all models.
        seed: of the resamples.

    Raises:
        ValueError: one compute level, a mean of 0 (everything solved), or pass rates that do not rise with compute.
    """
    (compute_m, _), neg_log_mp = arguments.points(None, compute_m=compute_m), _estimates(neg_log_mp)
    if compute_m.shape != (len(neg_log_mp),):
        raise ValueError(f"compute of shape {compute_m.shape} for estimates of shape {neg_log_mp.shape}")
    if len(set(compute_m.tolist())) < 2:
        raise ValueError("a law needs models of at least two amounts of compute")
    mean_m = neg_log_mp.mean(axis=1)
    for compute, mean in zip(compute_m.tolist(), mean_m.tolist(), strict=True):
        if mean <= 0:
            raise ValueError(
                f"the mean of -log(pass rate) at {compute:.3g} FLOPs is {mean:.3g}, and the law takes its logarithm: "
                "if that model solved every sample of every problem, take harder problems or more samples"
            )
    log_alpha, slope = _lines(compute_m, mean_m[None])
    if slope[0] >= 0:
        raise ValueError(f"pass rates do not rise with compute (k = {-slope[0]:.3g}); the law claims k > 0")
    means_rm = _bootstrap_means(neg_log_mp, resamples, seed)
    means_rm = means_rm[(means_rm > 0).all(axis=1)]
    log_alpha_r, slope_r = _lines(compute_m, means_rm)
    return PassRateLaw(
        float(np.exp(log_alpha[0])), float(-slope[0]), tuple(compute_m.tolist()), tuple(mean_m.tolist()),
        tuple(log_alpha_r.tolist()), tuple((-slope_r).tolist()), resamples - len(means_rm),
    )  # fmt: skip


def next_samples(
    samples_p: ArrayLike, correct_p: ArrayLike, budget: int, *, successes: int = 1, first: int = 16
) -> np.ndarray:
    """How many more samples of each problem to draw in the next round; all 0: sampling is over.

    Doubling rounds: `first` samples of each problem, then as many again of each that has fewer than `successes`
    correct, up to `budget` samples a problem. Rounds that end on a success make `harmonic` biased (counts stop where
    they are high); `inverse_sampling` at the `successes`-th success does not care where rounds end.

    Args:
        samples_p: drawn so far, (problems,).
        correct_p: correct ones of them, (problems,).
        budget: samples of a problem, at most.
        successes: how many are enough.
        first: samples of the first round.

    Raises:
        ValueError: a budget, `successes` or `first` below 1, or bad counts.
    """
    if min(budget, successes, first) < 1:
        raise ValueError(f"budget {budget}, successes {successes} and first {first} must be at least 1")
    n, c = _whole("samples_p", samples_p), _whole("correct_p", correct_p)
    if np.any((c < 0) | (c > n)):
        raise ValueError("some problem has more correct samples than samples, or fewer than 0")
    more = np.where(n == 0, first, n)
    return np.where(c < successes, np.clip(budget - n, 0, more), 0)


def _lines(compute_m: np.ndarray, mean_rm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Least squares of log means on log compute: intercepts at C = 1 and slopes, each (R,)."""
    log_c, log_mean_rm = np.log(compute_m), np.log(mean_rm)
    centred = log_c - log_c.mean()
    slope_r = log_mean_rm @ centred / (centred @ centred)
    return log_mean_rm.mean(axis=1) - slope_r * log_c.mean(), slope_r


def _bootstrap_means(neg_log_mp: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means over resampled problems, (resamples, models): a resample is how often it takes each problem."""
    rng = np.random.default_rng(seed)
    problems = neg_log_mp.shape[1]
    block = max(1, _RESAMPLE_BLOCK // problems)
    parts = [np.empty((0, len(neg_log_mp)))]
    for start in range(0, resamples, block):
        times_rp = rng.multinomial(problems, np.full(problems, 1 / problems), size=min(block, resamples - start))
        parts.append(times_rp @ neg_log_mp.T / problems)
    return np.concatenate(parts)


def _harmonic_number(n: np.ndarray) -> np.ndarray:
    # H_0 = 0 exactly, so that H_n - H_n of a problem that is always solved is 0, and H_n - H_0 is H_n.
    return np.where(n == 0, 0.0, digamma(n + 1.0) + np.euler_gamma)


def _counts(samples: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    n, c = np.broadcast_arrays(_whole("samples", samples), _whole("correct", correct))
    if np.any((n < 1) | (c < 0) | (c > n)):
        at = np.argmax(((n < 1) | (c < 0) | (c > n)).ravel())
        raise ValueError(f"{c.ravel()[at]} correct of {n.ravel()[at]} samples; it must be 0 <= correct <= samples >= 1")
    return n, c


def _whole(name: str, values: ArrayLike) -> np.ndarray:
    array = np.asarray(values)
    if array.dtype.kind not in "iu":
        raise ValueError(f"{name} has the type {array.dtype}; counts are whole numbers")
    return array.astype(np.int64)


def _estimates(neg_log_mp: ArrayLike) -> np.ndarray:
    array = np.asarray(neg_log_mp, np.float64)
    if array.ndim != 2 or not array.size or not np.isfinite(array).all() or (array < 0).any():
        raise ValueError(f"estimates of -log p of shape {array.shape}; finite, at least 0, (models, problems)")
    return array


def _column(values: Sequence[float], axes: int) -> np.ndarray:
    return np.reshape(values, (-1, *[1] * axes))
