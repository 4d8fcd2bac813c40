"""How well a grader or a detector finds what there is: F1 and its parts, with clustered intervals.

Several replies to one prompt are right or wrong together (`evals.stats.mean`). Rates of models: `measures`.
"""

from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from gpt4jax.evals import stats
from gpt4jax.evals.stats import Estimate


class Detection(NamedTuple):
    """How well something is detected; None: not defined, as nothing was found or there was nothing to find."""

    accuracy: Estimate
    precision: Estimate | None
    recall: Estimate | None
    f1: Estimate | None


def detection(
    found: ArrayLike, gold: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Detection:
    """Accuracy, precision, recall and F1 of yes or no beside the gold, with intervals.

    F1 = 2 TP / (2 TP + FP + FN) is the mean of a list with two ones for each true positive and a zero for each false
    one and each one missed; so its interval is that of a mean whose clusters keep an item's entries together. To first
    order that is the ratio's own error (the delta method).

    Args:
        found: what was said; an item without an answer counts as no.
        gold: what is so.
        clusters: of items that go wrong together; None: each stands alone.
        level: of the intervals.

    Raises:
        ValueError: no items, or not as many of one as of the other.
    """
    found_b, gold_b = np.asarray(found, bool), np.asarray(gold, bool)
    if found_b.shape != gold_b.shape or found_b.ndim != 1:
        raise ValueError(f"answers of shape {found_b.shape} and gold of shape {gold_b.shape}: they must be as many")
    names = list(range(len(gold_b))) if clusters is None else list(clusters)

    def mean(values_b: np.ndarray, times_b: np.ndarray) -> Estimate | None:
        """Of the items, each so many times."""
        numbers = np.repeat(np.arange(len(times_b)), times_b)
        if not len(numbers):
            return None
        return stats.mean(values_b[numbers], [names[i] for i in numbers], level)

    right_b = found_b & gold_b
    return Detection(
        stats.mean(found_b == gold_b, names, level),
        mean(right_b, found_b.astype(int)),
        mean(right_b, gold_b.astype(int)),
        mean(right_b, found_b.astype(int) + gold_b),
    )
