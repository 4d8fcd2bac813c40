"""Calibration: is a probability what it says? The report's section 5 and Figure 8.

The unit is a pair of a question and one of its choices: a confidence in [0, 1], and whether that choice is right.
"""

import dataclasses
import math

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special

BINS = 10  # as many as Figure 8 seems to have; the report doesn't say
_GRID = 48  # values of the parameter that an interval is searched among
_DRAWS = 1000  # of accuracies, the same for each of them


@dataclasses.dataclass(frozen=True)
class Reliability:
    """Pairs in bins of confidence: how many, their mean confidence, and the share that is right; no empty bins.

    `noise_bb` estimates the covariance of the shares over outcomes; NaN where a bin's pairs are of one question alone.
    """

    count_b: np.ndarray
    confidence_b: np.ndarray
    accuracy_b: np.ndarray
    noise_bb: np.ndarray

    @property
    def weight_b(self) -> np.ndarray:
        """Each bin's share of the pairs."""
        return self.count_b / self.count_b.sum()


def reliability(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    question: ArrayLike | None = None,
    bins: int = BINS,
    equal_mass: bool = False,
) -> Reliability:
    """The pairs in bins of equal width on [0, 1], or (`equal_mass`) in ones of equally many pairs.

    Args:
        confidence: of each pair.
        correct: whether its choice is right, 0 or 1.
        question: a number a pair, the same for pairs of one question: one right choice makes the others wrong, so
            their outcomes depend on each other, and only those of different questions don't. None: no two depend.
        bins: how many, at most.
        equal_mass: whether they hold equally many pairs.

    Raises:
        ValueError: no pairs, lengths that differ, confidences outside [0, 1], outcomes that are neither 0 nor 1, or
            fewer than one bin.
    """
    confidence_i, correct_i = _checked(confidence, correct)
    question_i = np.arange(len(confidence_i)) if question is None else np.unique(question, return_inverse=True)[1]
    if question_i.shape != confidence_i.shape:
        raise ValueError(f"{len(confidence_i)} pairs and question numbers of shape {question_i.shape}")
    if bins < 1:
        raise ValueError(f"there are {bins} bins; at least 1")
    if equal_mass:
        bins = min(bins, len(confidence_i))
        bin_i = np.empty(len(confidence_i), int)
        bin_i[np.argsort(confidence_i, kind="stable")] = np.arange(len(confidence_i)) * bins // len(confidence_i)
    else:
        bin_i = np.unique(np.minimum((confidence_i * bins).astype(int), bins - 1), return_inverse=True)[1]
    count_b = np.bincount(bin_i)
    confidence_b, accuracy_b = (np.bincount(bin_i, each) / count_b for each in (confidence_i, correct_i))
    return Reliability(
        count_b, confidence_b, accuracy_b, _noise(bin_i, question_i, correct_i - accuracy_b[bin_i], count_b)
    )


def _noise(bin_i: np.ndarray, question_i: np.ndarray, rest_i: np.ndarray, count_b: np.ndarray) -> np.ndarray:
    """Of sums of residuals by question, as for clusters; of single pairs it is a(1 - a) / (n - 1) on the diagonal."""
    questions = question_i.max() + 1
    cell_i = question_i * len(count_b) + bin_i
    rest_qb = np.bincount(cell_i, rest_i, questions * len(count_b)).reshape(questions, -1)
    held_b = (np.bincount(cell_i, minlength=rest_qb.size).reshape(rest_qb.shape) > 0).sum(axis=0)
    factor_b = np.sqrt(held_b / np.where(held_b > 1, held_b - 1, np.nan)) / count_b
    return rest_qb.T @ rest_qb * factor_b[:, None] * factor_b


def _checked(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    confidence_i, correct_i = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if confidence_i.ndim != 1 or confidence_i.shape != correct_i.shape or not len(confidence_i):
        raise ValueError(
            f"confidences of shape {confidence_i.shape} and outcomes of shape {correct_i.shape}: they must be pairs"
        )
    if not ((confidence_i >= 0) & (confidence_i <= 1)).all():
        raise ValueError("a confidence is not in [0, 1]")
    if not np.isin(correct_i, (0, 1)).all():
        raise ValueError("an outcome is neither 0 nor 1")
    return confidence_i, correct_i


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, *, bins: int = BINS) -> float:
    """sum_b n_b / N |accuracy_b - confidence_b| over bins of equal width (Guo et al. 2017): the plug-in.

    It is never 0 for the noise in the accuracies: of a calibrated forecaster on 1,000 pairs it is about 0.03.
    `squared_error` has no such bias.
    """
    found = reliability(confidence, correct, bins=bins)
    return float(found.weight_b @ np.abs(found.accuracy_b - found.confidence_b))


def squared_error(found: Reliability) -> float:
    """The squared calibration error without bias; it may be negative.

    It estimates sum_b n_b / N (p_b - c_b)^2, where c_b is the mean confidence in a bin, and p_b that of the true
    probabilities of its pairs being right: bins and confidences are given, outcomes are random. From each bin's squared
    difference goes the variance of its accuracy, p(1 - p) / (n - 1) if no two outcomes depend on each other (Kumar et
    al. 2019, arXiv 1909.10155, section 5); where questions are told, that of sums over questions.

    Raises:
        ValueError: a bin of one question, which says nothing of its variance: take bins of equal mass, or fewer.
    """
    _known(found)
    return float(found.weight_b @ ((found.accuracy_b - found.confidence_b) ** 2 - np.diag(found.noise_bb)))


def _known(found: Reliability) -> None:
    if np.isnan(found.noise_bb).any():
        raise ValueError("a bin has one question only, so its noise is not known: take bins of equal mass, or fewer")


def squared_error_interval(found: Reliability, level: float = 0.95, seed: int = 0) -> tuple[float, float]:
    """An interval for what `squared_error` estimates, which holds it with that probability, at 0 as well.

    By inversion of a test: of each value it is asked whether the plug-in that was seen is among the `level` likeliest
    of those that accuracies drawn under it give, likeliest in terms of the ratio to the value that explains it best
    (Feldman and Cousins 1998). That order makes the interval one-sided by itself near 0, and does not depend on
    what was seen. Accuracies are drawn as normal ones, around differences in the proportions that were seen, which are
    the likeliest for each value, and with the correlations and design effects that were seen.

    Raises:
        ValueError: as `squared_error`.
    """
    _known(found)
    weight_b, gap_b = found.weight_b, found.accuracy_b - found.confidence_b
    seen, rng = float(weight_b @ gap_b**2), np.random.default_rng(seed)
    effect_b, correlation_bb = _dependence(found)
    noise_b = effect_b * _variance(found.confidence_b, found.count_b)
    bias = float(weight_b @ noise_b)
    if bias == 0:
        return seen, seen  # every question lies in one bin: its outcomes add up to the same
    spread = math.sqrt(2 * weight_b**2 @ noise_b**2 + 4 * seen * float(weight_b**2 @ noise_b))
    grid_g = np.linspace(0, math.sqrt(seen + 6 * spread), _GRID) ** 2
    direction_b = gap_b / math.sqrt(seen) if seen else np.ones_like(gap_b)
    p_gb = np.clip(found.confidence_b + np.sqrt(grid_g)[:, None] * direction_b, 0, 1)
    true_g = (p_gb - found.confidence_b) ** 2 @ weight_b  # clipped, a difference is less than was meant
    normal_db = rng.multivariate_normal(np.zeros_like(gap_b), correlation_bb, _DRAWS, method="eigh")
    deviation_gb = np.sqrt(effect_b * p_gb * (1 - p_gb) / found.count_b)
    drawn_gd = (p_gb[:, None] + deviation_gb[:, None] * normal_db - found.confidence_b) ** 2 @ weight_b

    def ratio(plug_in: np.ndarray, true: np.ndarray) -> np.ndarray:
        """Log likelihood ratio to the best value; plug-ins taken as gamma distributed, which only orders them."""
        best = np.maximum(plug_in - bias, 0)
        return _log_gamma(plug_in, true + bias, variance(true)) - _log_gamma(plug_in, best + bias, variance(best))

    def variance(true: np.ndarray) -> np.ndarray:
        return 2 * float(weight_b**2 @ noise_b**2) + 4 * true * float(weight_b**2 @ noise_b)

    floor_g = np.quantile(ratio(drawn_gd, true_g[:, None]), 1 - level, axis=1)
    margin_g = ratio(np.full(_GRID, seen), true_g) - floor_g
    inside = np.flatnonzero(margin_g >= 0)
    if not len(inside):
        inside = np.array([margin_g.argmax()])
    return _crossing(true_g, margin_g, inside[0], -1), _crossing(true_g, margin_g, inside[-1], 1)


def _dependence(found: Reliability) -> tuple[np.ndarray, np.ndarray]:
    """How many times the variance of independent outcomes each accuracy has (1 where that is 0); correlations."""
    noise_b = np.diag(found.noise_bb)
    independent_b = found.accuracy_b * (1 - found.accuracy_b) / np.maximum(found.count_b - 1, 1)
    effect_b = np.divide(noise_b, independent_b, out=np.ones_like(noise_b), where=independent_b > 0)
    product_bb = np.sqrt(noise_b[:, None] * noise_b)
    correlation_bb = np.divide(found.noise_bb, product_bb, out=np.eye(len(noise_b)), where=product_bb > 0)
    return effect_b, correlation_bb


def _crossing(true_g: np.ndarray, margin_g: np.ndarray, end: int, step: int) -> float:
    """Where the margin reaches 0 between the last value inside and the first outside; the value, if there is none."""
    outside = end + step
    if not 0 <= outside < len(true_g) or margin_g[end] <= 0 or not np.isfinite(margin_g[outside]):
        return float(true_g[end])
    part = margin_g[end] / (margin_g[end] - margin_g[outside])
    return float(true_g[end] + part * (true_g[outside] - true_g[end]))


def _variance(p_b: np.ndarray, count_b: np.ndarray) -> np.ndarray:
    """Of a bin's accuracy; of one that is 0 or 1 what one pair less than certain would have."""
    p_b = np.clip(p_b, 0.5 / count_b, 1 - 0.5 / count_b)
    return p_b * (1 - p_b) / count_b


def _log_gamma(x: np.ndarray, mean: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """The log density of a gamma distribution of that mean and variance."""
    shape, rate = mean**2 / variance, mean / variance
    return shape * np.log(rate) - special.gammaln(shape) + (shape - 1) * np.log(np.maximum(x, 1e-12)) - rate * x


def temperature(logprob_qc: ArrayLike, gold_q: ArrayLike) -> float:
    """The temperature that makes the gold choices likeliest: softmax(logprob / T) (Guo et al. 2017, section 4.2).

    Fit it on some questions and use it on others.

    Raises:
        ValueError: shapes that don't fit, or no temperature from 0.01 to 100 does: a forecaster that is always right.
    """
    logprob_qc, gold_q = np.asarray(logprob_qc, np.float64), np.asarray(gold_q)
    if logprob_qc.ndim != 2 or gold_q.shape != logprob_qc.shape[:1] or not len(gold_q):
        raise ValueError(f"log probabilities of shape {logprob_qc.shape} and answers of shape {gold_q.shape} don't fit")

    def loss(log_t: float) -> float:
        scaled_qc = logprob_qc / math.exp(log_t)
        top_q1 = scaled_qc.max(axis=1, keepdims=True)
        total_q = top_q1[:, 0] + np.log(np.exp(scaled_qc - top_q1).sum(axis=1))
        return float(np.mean(total_q - scaled_qc[np.arange(len(gold_q)), gold_q]))

    bounds = math.log(0.01), math.log(100)
    best = float(optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-6}).x)
    if min(map(loss, bounds)) <= loss(best) + 1e-9:
        raise ValueError("no temperature from 0.01 to 100 is the best: the answers say too little, or nothing is wrong")
    return math.exp(best)


def softmax(logprob_qc: ArrayLike, temperature: float = 1.0) -> np.ndarray:
    """Probabilities of the choices alone, (questions, choices), at a temperature."""
    scaled_qc = np.asarray(logprob_qc, np.float64) / temperature
    weight_qc = np.exp(scaled_qc - scaled_qc.max(axis=-1, keepdims=True))
    return weight_qc / weight_qc.sum(axis=-1, keepdims=True)
