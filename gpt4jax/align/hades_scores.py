"""The measures of HADES (Liu et al. 2021, arXiv 2104.08704), with clustered intervals (`evals.stats`)."""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gpt4jax.align import detection
from gpt4jax.align.detection import Detection
from gpt4jax.evals import stats
from gpt4jax.evals.stats import Estimate


class Scores(NamedTuple):
    """The measures of HADES; None: not defined, as there is but one class.

    Attributes:
        hallucination, consistent: accuracy, precision, recall and F1 of finding each of the two classes.
        g_mean: sqrt(recall of one class * recall of the other).
        brier: the mean squared distance of the probability from what is so.
        auc: the chance that a hallucination has a larger probability than what is none; equal ones count half.
    """

    hallucination: Detection
    consistent: Detection
    g_mean: Estimate | None
    brier: Estimate
    auc: Estimate | None

    @property
    def accuracy(self) -> Estimate:
        """The share of spans that are told right."""
        return self.hallucination.accuracy


def scores(
    probability_b: ArrayLike, gold: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Scores:
    """How well spans are told; those of a probability above 0.5 are said to be hallucinations.

    Args:
        probability_b: of each span, that it is a hallucination.
        gold: whether it is.
        clusters: of spans that go wrong together, such as those of one text; None: each stands alone.
        level: of the intervals.

    Raises:
        ValueError: no spans, not as many of one as of the other, or a probability that is none.
    """
    p_b, gold_b = np.asarray(probability_b, np.float64), np.asarray(gold, bool)
    if not ((p_b >= 0) & (p_b <= 1)).all():
        raise ValueError(f"a probability is {p_b[~((p_b >= 0) & (p_b <= 1))][0]}; it must be from 0 to 1")
    found_b = p_b > 0.5
    one, other = (detection.detection(a, b, clusters, level) for a, b in ((found_b, gold_b), (~found_b, ~gold_b)))
    both = 0 < gold_b.sum() < len(gold_b)
    return Scores(
        one, other, _g_mean(found_b == gold_b, gold_b, clusters, level) if both else None,
        stats.bounded(stats.mean((p_b - gold_b) ** 2, clusters, level)),
        stats.bounded(stats.mean(auc_values(p_b, gold_b), clusters, level)) if both else None,
    )  # fmt: skip


def auc_values(score: ArrayLike, gold: ArrayLike) -> np.ndarray:
    """A value for each span, whose mean is the area under the ROC curve, and whose error is the area's.

    The area's first-order dependence on each span (DeLong et al. 1988; with clusters, Obuchowski 1997): so two
    detectors on the same spans are compared by `stats.difference` of their values.

    Raises:
        ValueError: there is but one class.
    """
    x_b, gold_b = np.asarray(score, np.float64), np.asarray(gold, bool)
    ours, others = x_b[gold_b], x_b[~gold_b]
    if not len(ours) or not len(others):
        raise ValueError(f"{len(ours)} hallucinations and {len(others)} others: the area needs both")

    def above(values: np.ndarray, among: np.ndarray) -> np.ndarray:
        """The share that each is above, of `among`; equal ones count half."""
        among = np.sort(among)
        return (np.searchsorted(among, values, "left") + np.searchsorted(among, values, "right")) / 2 / len(among)

    own_i, own_j = above(ours, others), 1 - above(others, ours)
    area = own_i.mean()
    found_b = np.zeros(len(x_b))
    found_b[gold_b] = area + (own_i - area) * len(x_b) / len(ours)
    found_b[~gold_b] = area + (own_j - area) * len(x_b) / len(others)
    return found_b


def _g_mean(right_b: np.ndarray, gold_b: np.ndarray, clusters: Sequence[Hashable] | None, level: float) -> Estimate:
    """By the delta method, as `auc_values`; where a recall is 0 that has no error to give."""
    recalls = [float(right_b[gold_b == cls].mean()) for cls in (True, False)]
    mean = float(np.sqrt(recalls[0] * recalls[1]))
    values_b = np.full(len(gold_b), mean)
    if not mean:
        known = stats.mean(values_b, clusters, level)
        return Estimate(0.0, float("nan"), 0.0, 1.0, known.items, known.clusters, level)
    for cls, recall in zip((True, False), recalls, strict=True):
        here = gold_b == cls
        values_b[here] += mean / 2 / recall * (right_b[here] - recall) * len(gold_b) / here.sum()
    return stats.bounded(stats.mean(values_b, clusters, level))
