"""A Codeforces rating from simulated contests, as the report's appendix A.6 describes it."""

import math
from collections.abc import Sequence

import numpy as np


def expected_rank(rating: float, others: Sequence[float]) -> float:
    """1 + the chance of each other participant to be better, by Elo's formula."""
    gap_j = (np.asarray(others, np.float64) - rating) / 400
    return float(1 + np.sum(1 / (1 + 10.0**-gap_j)))


def equilibrium(rank: float, others: Sequence[float], most: float = 4000.0) -> float:
    """The rating at which a rank is what is expected; 0 for one at or behind that of a rating of 0.

    No rating is expected to be the first of all, so rank 1 gives `most`, which is a convention and no measurement.

    Raises:
        ValueError: a rank that no participant can have.
    """
    if not others or not 1 <= rank <= len(others) + 1:
        raise ValueError(f"the rank {rank} among {len(others)} others must be from 1 to one more")
    low, high = 0.0, most
    if rank >= expected_rank(low, others):
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if expected_rank(middle, others) > rank else (low, middle)
    return low


def simulate(
    pass_rate_p: Sequence[float],
    solved_jp: Sequence[Sequence[bool]],
    ratings_j: Sequence[float],
    *,
    attempts: int = 10,
    runs: int = 100,
    seed: int = 0,
) -> np.ndarray:
    """Ratings of a model in `runs` simulations of one contest, (runs,); 0 where it solves nothing.

    Of each problem the model has the chance of one attempt, and up to `attempts`. Ranks are by problems solved, those
    with as many sharing the middle of their places; penalties for time are left out, which the report does not tell of.

    Raises:
        ValueError: sizes that don't fit together.
    """  # fmt: skip
    rate_p, solved = np.asarray(pass_rate_p, np.float64), np.asarray(solved_jp)
    if solved.shape != (len(ratings_j), len(rate_p)) or not ((rate_p >= 0) & (rate_p <= 1)).all():
        raise ValueError(
            f"pass rates of {len(rate_p)} problems, from 0 to 1, and solutions of shape {solved.shape} by "
            f"{len(ratings_j)} participants don't fit"
        )
    rng = np.random.default_rng(seed)
    ours_r = np.sum(rng.random((runs, len(rate_p))) < 1 - (1 - rate_p) ** attempts, axis=1)
    theirs_j = solved.sum(axis=1)
    found = []
    for ours in ours_r:
        rank = 1 + np.sum(theirs_j > ours) + np.sum(theirs_j == ours) / 2
        found.append(equilibrium(float(rank), list(ratings_j)) if ours else 0.0)
    return np.array(found)


def rating(contests: Sequence[np.ndarray]) -> float:
    """The mean over contests of the mean over simulations."""
    if not contests:
        return math.nan
    return float(np.mean([np.mean(one) for one in contests]))
