"""Which law to trust: each forecasts the largest runs from those with a fraction of their compute.

A candidate is a function from runs to a forecast, which is a function from runs to losses; so a choice
among candidates by back-test is a candidate itself, and can be back-tested beside them.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from gpt4jax.scaling import chinchilla, laws


@dataclasses.dataclass(frozen=True)
class Runs:
    """Parameters, tokens and final losses of n runs, arrays (n,); `compute` is 6 N D FLOPs unless given."""

    num_params: np.ndarray
    num_tokens: np.ndarray
    loss: np.ndarray
    compute: np.ndarray = None  # type: ignore[assignment]  # set below

    def __post_init__(self) -> None:
        columns = {"num_params": self.num_params, "num_tokens": self.num_tokens, "loss": self.loss}
        columns = {name: np.atleast_1d(np.asarray(column, np.float64)) for name, column in columns.items()}
        compute = 6 * columns["num_params"] * columns["num_tokens"] if self.compute is None else self.compute
        columns["compute"] = np.atleast_1d(np.asarray(compute, np.float64))
        if len({column.shape for column in columns.values()}) > 1:
            raise ValueError(f"Columns of runs differ in length: { {k: v.shape for k, v in columns.items()} }.")
        for name, column in columns.items():
            object.__setattr__(self, name, column)

    def __len__(self) -> int:
        return len(self.loss)

    def where(self, keep: np.ndarray) -> "Runs":
        """The runs that a mask or indices pick."""
        return Runs(*(getattr(self, field.name)[keep] for field in dataclasses.fields(self)))


Forecast = Callable[[Runs], np.ndarray]
Candidate = Callable[[Runs], Forecast]


def power_law(*, irreducible: bool = True, frontier: bool = False) -> Candidate:
    """L(C) = a C^b + c, or a C^b without c, in compute alone.

    It suits runs whose sizes and tokens follow one rule. With `frontier` it goes through the best run of each half
    decade of compute only: Henighan et al. 2020's compute-efficient frontier, for suites that follow none.
    """
    fewest = 4 if irreducible else 3

    def candidate(runs: Runs) -> Forecast:
        if frontier and len(runs):
            bins = np.floor(2 * np.log10(runs.compute / runs.compute.min()))
            best = [np.flatnonzero(bins == i)[np.argmin(runs.loss[bins == i])] for i in np.unique(bins)]
            runs = runs.where(np.array(best))
        if (levels := len(np.unique(runs.compute))) < fewest:
            raise ValueError(f"{levels} levels of compute are too few to judge a power law by: have {fewest} or more.")
        law = laws.fit(runs.compute, runs.loss, irreducible=irreducible)
        return lambda ahead: law.predict(ahead.compute)

    return candidate


def approach_3(*, shared_exponent: bool = False, min_tokens_per_param: float = 0.0) -> Candidate:
    """L(N, D) of Hoffmann et al.; by default as published, on all runs alike.

    Args:
        shared_exponent: one exponent for parameters and tokens, as in Gadre et al. 2024: one parameter less.
        min_tokens_per_param: runs trained on less are left out: most of such a run is warm-up, of which the law
            knows nothing.
    """

    def candidate(runs: Runs) -> Forecast:
        kept = runs.where(runs.num_tokens >= min_tokens_per_param * runs.num_params)
        law = chinchilla.fit(kept.num_params, kept.num_tokens, kept.loss, shared_exponent=shared_exponent)
        return lambda ahead: law.predict(ahead.num_params, ahead.num_tokens)

    return candidate


def chosen(candidates: Mapping[str, Candidate], ratio: float, largest: int = 3) -> Candidate:
    """The candidate that `choose` picks from the runs it is given, fitted to all of them."""

    def candidate(runs: Runs) -> Forecast:
        return candidates[choose(runs, candidates, ratio, largest)](runs)

    return candidate


def choose(runs: Runs, candidates: Mapping[str, Candidate], ratio: float, largest: int = 3) -> str:
    """The name of the candidate that best forecasts the `largest` runs from 1/ratio of their compute, by mean error.

    Candidates that can't be fitted to `runs` are out; of the largest runs those count that all the others can forecast.
    Where the ladder is too short for any, the ratio is divided by 3 until it isn't. The run to be forecast in the end
    must not be among `runs`: a choice that has seen it says nothing.

    Raises:
        ValueError: no candidate can forecast the largest runs from the others at any ratio.
    """
    able = [name for name, candidate in candidates.items() if _can_fit(candidate, runs)]
    while able and ratio > 1:
        sizes = np.abs([errors(runs, candidates[name], ratio, largest) for name in able])
        known = np.isfinite(sizes).all(0)
        if known.any():
            return able[int(np.argmin(sizes[:, known].mean(1)))]
        ratio /= 3
    raise ValueError(
        f"None of {list(candidates)} can forecast the largest {largest} of {len(runs)} runs from the others."
    )


def _can_fit(candidate: Candidate, runs: Runs) -> bool:
    try:
        candidate(runs)
    except ValueError:
        return False
    return True


def errors(runs: Runs, candidate: Candidate, ratio: float, largest: int) -> np.ndarray:
    """Relative errors, forecast / loss - 1, of the `largest` runs by compute: (largest,), the largest run first.

    Each is forecast from all runs of at most 1/ratio of its own compute; NaN where the candidate raises
    ValueError: those are too few, or of too few sizes.

    Raises:
        ValueError: a ratio of 1 or less.
    """
    if ratio <= 1:
        raise ValueError(f"ratio is {ratio}: a forecast is from runs with less compute, so it is above 1.")
    found = []
    for i in np.argsort(-runs.compute, kind="stable")[:largest]:
        target = runs.where(np.array([i]))
        try:
            forecast = candidate(runs.where(runs.compute <= runs.compute[i] / ratio))
        except ValueError:
            found.append(np.nan)
        else:
            found.append(float(forecast(target)[0] / target.loss[0] - 1))
    return np.array(found)


def table(
    suites: Sequence[Runs], candidates: Mapping[str, Candidate], ratios: Sequence[float], largest: int
) -> dict[str, dict[float, np.ndarray]]:
    """By candidate and ratio, the `errors` of all suites, one after the other."""
    return {
        name: {ratio: np.concatenate([errors(runs, candidate, ratio, largest) for runs in suites]) for ratio in ratios}
        for name, candidate in candidates.items()
    }
