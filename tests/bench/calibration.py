"""Calibration estimates on synthetic truth: bias of the debiased squared error and coverage of its interval.

python -m tests.bench.calibration [--simulations 2000] [--pairs 1000]

Of each forecaster the confidences are drawn, the true probabilities are a function of them, and outcomes are drawn anew
in each simulation, and confidences too. Prints the mean plug-in ECE, the plug-in squared error, the bias of the
debiased one (with its Monte Carlo error), and how often the 95% interval holds the truth.
"""

import argparse
from collections.abc import Callable

import numpy as np

from gpt4jax.evals import calibration

Forecaster = tuple[Callable[[np.random.Generator, int], np.ndarray], Callable[[np.ndarray], np.ndarray]]


def _uniform(rng: np.random.Generator, n: int) -> np.ndarray:
    return rng.random(n)


def _of_four(rng: np.random.Generator, n: int) -> np.ndarray:
    """The softmax of four choices, as of a benchmark."""
    return calibration.softmax(1.5 * rng.standard_normal((n // 4, 4))).ravel()


def _sharper(by: float) -> Callable[[np.ndarray], np.ndarray]:
    """Truth whose log odds are `by` times the confidence's: below 1, the forecaster is too sure."""
    return lambda c: 1 / (1 + (1 / np.clip(c, 1e-9, 1 - 1e-9) - 1) ** by)


FORECASTERS: dict[str, Forecaster] = {
    "calibrated, uniform": (_uniform, lambda c: c),
    "calibrated, four choices": (_of_four, lambda c: c),
    "a little too sure": (_uniform, _sharper(0.85)),
    "too sure": (_uniform, _sharper(0.6)),
    "far too sure": (_uniform, _sharper(0.3)),
    "not sure enough": (_uniform, _sharper(1.5)),
    "too sure, four choices": (_of_four, _sharper(0.7)),
    "0.05 too high": (_uniform, lambda c: np.clip(c - 0.05, 0, 1)),
    "always says a half, right": (lambda rng, n: 0.45 + 0.1 * rng.random(n), lambda c: c),
    "says a half, 0.6 is true": (lambda rng, n: 0.45 + 0.1 * rng.random(n), lambda c: c + 0.1),
    "one bin in five is off": (_uniform, lambda c: np.where((c > 0.6) & (c < 0.8), c - 0.2, c)),
}


def simulate(forecaster: Forecaster, pairs: int, simulations: int, seed: int) -> np.ndarray:
    """Plug-in ECE, plug-in and debiased squared error, truth, whether the interval holds it: (simulations, 5)."""
    draw, true = forecaster
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(simulations):
        confidence = draw(rng, pairs)
        probability = true(confidence)
        correct = rng.random(len(confidence)) < probability
        found = calibration.reliability(confidence, correct, equal_mass=True)
        # The truth in the same bins: what the accuracies would be without noise.
        order = np.argsort(confidence, kind="stable")
        p_b = [probability[part].mean() for part in np.split(order, np.cumsum(found.count_b)[:-1])]
        truth = float(found.weight_b @ (np.array(p_b) - found.confidence_b) ** 2)
        low, high = calibration.squared_error_interval(found, seed=i)
        plug_in = float(found.weight_b @ (found.accuracy_b - found.confidence_b) ** 2)
        ece = calibration.expected_calibration_error(confidence, correct)
        rows.append((ece, plug_in, calibration.squared_error(found), truth, low - 1e-12 <= truth <= high + 1e-12))
    return np.array(rows)


def main() -> None:
    """Prints a line a forecaster."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=1000)
    flags = parser.parse_args()
    for number, (name, forecaster) in enumerate(FORECASTERS.items()):
        rows = simulate(forecaster, flags.pairs, flags.simulations, number)
        ece, plug_in, debiased, truth, inside = rows.mean(axis=0)
        error = (rows[:, 2] - rows[:, 3]).std() / len(rows) ** 0.5
        print(
            f"{name:28s} plug-in ECE {ece:.4f}; squared error: truth {truth:.5f}, plug-in {plug_in:.5f}, debiased "
            f"{debiased:.5f} (bias {debiased - truth:+.5f} ± {error:.5f}); the 95% interval covers {inside:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
