"""Means of evaluation results with the errors that they have: clustered, paired, by group.

Miller 2024 (arXiv 2411.00640): items of one passage or template go wrong together, and two models on the same items
are compared item by item.
"""

import dataclasses
import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats as distributions


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A mean over items; `low` and `high` are the ends of its interval at `level`.

    The standard error is nan and the interval everything there could be where one cluster says nothing of errors.
    """

    mean: float
    standard_error: float
    low: float
    high: float
    items: int
    clusters: int
    level: float = 0.95

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it: null for what is not known."""
        return {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in dataclasses.asdict(self).items()
        }


def mean(values: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = 0.95) -> Estimate:
    """The mean of items' values, its standard error and an interval.

    The error is cluster-robust, sqrt(G / (G - 1) * sum_g (sum_{i in g} (x_i - mean))^2) / n, which for items that stand
    alone (`clusters` None) is the usual one. Of values that are 0 or 1 the interval is Wilson's, with as many items as
    would give that error if they stood alone (G where all are 0 or all 1); of others Student's t with G - 1
    degrees of freedom.

    Raises:
        ValueError: no values, a value that is no finite number, or not one cluster for each.
    """
    x_i = np.asarray(values, np.float64)
    n = len(x_i) if x_i.ndim == 1 else 0
    if not n or not np.isfinite(x_i).all():
        raise ValueError(f"values of shape {x_i.shape} must be one or more finite numbers")
    if clusters is not None and len(clusters) != n:
        raise ValueError(f"{len(clusters)} clusters for {n} values: there must be one for each")
    _, of_i = np.unique(np.arange(n) if clusters is None else _numbered(clusters), return_inverse=True)
    groups = int(of_i.max()) + 1
    average = float(x_i.mean())
    binary = bool(np.isin(x_i, (0, 1)).all())
    if groups == 1:
        low, high = (0.0, 1.0) if binary else (-math.inf, math.inf)
        return Estimate(average, math.nan, low, high, n, 1, level)
    sums_g = np.bincount(of_i, x_i - average)
    error = math.sqrt(groups / (groups - 1) * float(sums_g @ sums_g)) / n
    t = float(distributions.t.ppf((1 + level) / 2, groups - 1))
    if not binary:
        return Estimate(average, error, average - t * error, average + t * error, n, groups, level)
    alone = average * (1 - average) / error**2 if error else groups
    return Estimate(average, error, *_wilson(average, alone, t), n, groups, level)


def _numbered(clusters: Sequence[Hashable]) -> list[int]:
    numbers: dict[Hashable, int] = {}
    return [numbers.setdefault(cluster, len(numbers)) for cluster in clusters]


def _wilson(share: float, n: float, z: float) -> tuple[float, float]:
    """Wilson 1927: the shares that a test of that level would not reject."""
    center = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(center - half, 0.0), min(center + half, 1.0)


def difference(
    ours: ArrayLike, theirs: ArrayLike, clusters: Sequence[Hashable] | None = None, level: float = 0.95
) -> Estimate:
    """The mean of ours - theirs, item by item, by Student's t: far surer than from two means with an error each.

    Raises:
        ValueError: not the same number of values, or as `mean` does.
    """
    a_i, b_i = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    if a_i.shape != b_i.shape:
        raise ValueError(f"{len(a_i)} values and {len(b_i)}: a paired difference needs the same items")
    found = mean(a_i - b_i, clusters, level)
    if found.clusters == 1 or not found.standard_error:  # values that are all the same say nothing of errors
        return dataclasses.replace(found, low=-math.inf, high=math.inf)
    t = float(distributions.t.ppf((1 + level) / 2, found.clusters - 1))
    low, high = found.mean - t * found.standard_error, found.mean + t * found.standard_error
    return dataclasses.replace(found, low=low, high=high)


def bounded(one: Estimate) -> Estimate:
    """A mean of numbers from 0 to 1, its interval cut to what such a mean can be."""
    return dataclasses.replace(one, low=max(one.low, 0.0), high=min(one.high, 1.0))


def macro(groups: Sequence[Estimate], level: float = 0.95) -> Estimate:
    """The mean of groups' means, each counted once, whatever its size; groups are taken as independent.

    Raises:
        ValueError: no groups.
    """
    if not groups:
        raise ValueError("there are no groups to take the mean of")
    average = float(np.mean([group.mean for group in groups]))
    error = math.sqrt(sum(group.standard_error**2 for group in groups)) / len(groups)
    z = float(distributions.norm.ppf((1 + level) / 2))
    counts = sum(group.items for group in groups), sum(group.clusters for group in groups)
    return Estimate(average, error, average - z * error, average + z * error, *counts, level)


def detectable(standard_error: float, level: float = 0.95, power: float = 0.8) -> float:
    """The smallest difference that a two-sided test of that level finds with that power, given its standard error."""
    if not standard_error >= 0:
        raise ValueError(f"a standard error is {standard_error}; it must be at least 0")
    return float(distributions.norm.ppf((1 + level) / 2) + distributions.norm.ppf(power)) * standard_error
