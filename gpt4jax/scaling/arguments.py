"""Checks of the arguments that all laws share."""

import numpy as np
from numpy.typing import ArrayLike


def level(level: float) -> None:
    """Checks the level of an interval.

    Raises:
        ValueError: it is not inside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: it is a probability between 0 and 1, such as 0.9.")


def kind(kind: str) -> None:
    """Checks what an interval is for.

    Raises:
        ValueError: neither "mean" nor "run".
    """
    if kind not in ("mean", "run"):
        raise ValueError(f'kind is {kind!r}: it is "mean" (the law) or "run" (one more run).')


def positive(**columns: ArrayLike) -> tuple[np.ndarray, ...]:
    """The columns in float64.

    Raises:
        ValueError: an entry that is not above 0 (infinity is: a law has a limit).
    """
    arrays = {name: np.asarray(column, np.float64) for name, column in columns.items()}
    for name, array in arrays.items():
        if not (array > 0).all():
            raise ValueError(f"{name} is {array.tolist()}: it must be above 0.")
    return tuple(arrays.values())


def points(weights: ArrayLike | None, **columns: ArrayLike) -> tuple[np.ndarray, ...]:
    """The columns and the weights (ones by default) as float64 vectors of one length.

    Raises:
        ValueError: lengths that differ, or an entry that is not finite and positive (a weight may be 0).
    """
    arrays = {name: np.atleast_1d(np.asarray(column, np.float64)) for name, column in columns.items()}
    (first, size), *_ = ((name, array.shape) for name, array in arrays.items())
    arrays["weights"] = np.ones(size) if weights is None else np.asarray(weights, np.float64)
    for name, array in arrays.items():
        if array.ndim != 1 or array.shape != size:
            raise ValueError(f"{name} has shape {array.shape} and {first} {size}: give one number a run in each.")
        good = np.isfinite(array) & ((array >= 0) if name == "weights" else (array > 0))
        if not good.all():
            i = int(np.argmin(good))
            wanted = "finite and not negative" if name == "weights" else "finite and positive"
            raise ValueError(f"{name}[{i}] is {array[i]}, not {wanted}: leave diverged or missing runs out, by name.")
    if not arrays["weights"].any():
        raise ValueError("All weights are 0: no run is left to fit.")
    return tuple(arrays.values())
