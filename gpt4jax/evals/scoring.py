"""Scores as exams and benchmarks define them: pass@k, scaled scores, combined sections, contamination's arithmetic."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike

from gpt4jax.evals.calibration import expected_calibration_error

__all__ = [
    "amc", "charted", "combined", "degradation", "exam_contamination", "expected_calibration_error", "gre",
    "lower_of_two", "pass_at_k", "sat_reading_and_writing", "uniform_bar", "weighted",
]  # fmt: skip


def pass_at_k(n: ArrayLike, c: ArrayLike, k: int) -> np.ndarray:
    """1 - C(n - c, k) / C(n, k): the chance that one of k samples passes, without bias (Chen et al. 2021, section 2.1).

    n are samples of each problem and c how many of them passed, of any shapes that broadcast; k is at most n.

    Raises:
        ValueError: counts that can't be.
    """
    n_i, c_i = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if n_i.dtype.kind not in "iu" or c_i.dtype.kind not in "iu" or (c_i < 0).any() or (c_i > n_i).any():
        raise ValueError(f"{c!r} of {n!r} samples passed: these must be whole numbers, from 0 to all of them")
    if not 1 <= k <= n_i.min(initial=k):
        raise ValueError(f"k is {k}: it must be from 1 to the number of samples, {n_i.min(initial=k)}")
    one = lambda n, c: 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1)) if n - c >= k else 1.0  # noqa: E731
    return np.vectorize(one, otypes=[float])(n_i, c_i)


# Scaled scores. `accuracy` is the share of right answers, 0 to 1.


def gre(accuracy: float) -> int:
    """GRE Verbal or Quantitative, 130 to 170: linear in the accuracy (the report's appendix A.5), to the nearest."""
    return 130 + _rounded(40 * _share(accuracy))


def amc(right: int, blank: int, questions: int = 25) -> float:
    """AMC 10 or 12, of 150: 6 points for a right answer, 1.5 for none. The report's runs leave none out.

    Raises:
        ValueError: more answers than questions.
    """
    if min(right, blank) < 0 or right + blank > questions:
        raise ValueError(f"{right} right answers and {blank} blank ones of {questions} questions")
    return 6 * right + 1.5 * blank


def charted(points: int, chart: Mapping[int, int]) -> int:
    """A scaled score by an exam's own conversion chart, {raw points: scaled score}, such as SAT Math's 0 to 58 to 800.

    Each form of an exam has its own chart, printed with it; none is built in.

    Raises:
        ValueError: points that the chart has not, or a chart that gives more points a lower score.
    """
    scaled = [chart[raw] for raw in sorted(chart)]
    if scaled != sorted(scaled):
        raise ValueError("the chart gives more points a lower score")
    if points not in chart:
        raise ValueError(f"the chart has no {points} points; it goes from {min(chart)} to {max(chart)}")
    return chart[points]


def sat_reading_and_writing(
    reading: int, writing: int, reading_chart: Mapping[int, int], writing_chart: Mapping[int, int]
) -> int:
    """SAT Evidence-Based Reading and Writing, 200 to 800: ten times the sum of the two tests' scores, 10 to 40 each."""
    return 10 * (charted(reading, reading_chart) + charted(writing, writing_chart))


def uniform_bar(accuracy: float) -> int:
    """The Uniform Bar Examination, of 400, from the share of its points (MBE, MEE and MPT together)."""
    return _rounded(400 * _share(accuracy))


def weighted(scores: Sequence[float], weights: Sequence[float]) -> float:
    """Sections' scores by their weights, which are scaled to a sum of 1.

    Raises:
        ValueError: no sections, lengths that differ, or weights below 0 or with a sum of 0.
    """
    if not scores or len(scores) != len(weights) or min(weights) < 0 or not sum(weights):
        raise ValueError(f"{len(scores)} sections have the weights {list(weights)}")
    return math.fsum(s * w for s, w in zip(scores, weights, strict=True)) / math.fsum(weights)


def combined(sections: Mapping[str, tuple[float, float]], cuts: Sequence[float]) -> int:
    """An AP grade, 1 to 5: sections' (accuracy, weight) to a composite of 0 to 1, and that by its four cuts.

    Cuts are an exam's and a year's (released exams and calculators print them): the lowest composite of a 2, 3, 4, 5.

    Raises:
        ValueError: not four rising cuts, or as `weighted` does.
    """
    if len(cuts) != 4 or list(cuts) != sorted(cuts):
        raise ValueError(f"the cuts are {list(cuts)}: they must be four, rising")
    accuracies, weights = zip(*sections.values(), strict=True)
    composite = weighted([_share(one) for one in accuracies], weights)
    return 1 + sum(composite >= cut for cut in cuts)


def _share(accuracy: float) -> float:
    if not 0 <= accuracy <= 1:
        raise ValueError(f"an accuracy is {accuracy}: it must be from 0 to 1")
    return accuracy


def _rounded(value: float) -> int:
    """To the nearest, halves up: as scores are rounded, and Python's round is not."""
    return math.floor(value + 0.5)


# Contamination, the report's appendix C. Of an exam all of which is contaminated there is no clean score: None.


def degradation(overall: float, clean: float | None) -> float | None:
    """How much less the uncontaminated questions give, as a share of the overall score: clean / overall - 1.

    The report's Table 10 has it so, though its caption reads like a difference.
    """
    return None if clean is None else clean / overall - 1


def lower_of_two(full: float, clean: float | None) -> float:
    """The score that is reported: the lower one of the whole exam's and of its uncontaminated questions'."""
    return full if clean is None else min(full, clean)


def exam_contamination(sections: Sequence[tuple[float, float]]) -> float:
    """An exam's contaminated share, from its sections' (share, weight)."""
    shares, weights = zip(*sections, strict=True)
    return weighted(shares, weights)
