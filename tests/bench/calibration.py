"""Calibration estimates on synthetic truth: bias of the debiased squared error and coverage of its interval.

python -m tests.bench.calibration [--simulations 2000] [--pairs 1000]

Of each forecaster the confidences are drawn, the true probabilities are a function of them, and outcomes are drawn anew
in each simulation, and confidences too. Outcomes are independent, or ("questions") one of four choices is right.
Prints the mean plug-in ECE, the plug-in squared error, the bias of the debiased one (with its Monte Carlo error), and
how often the 95% interval holds the truth.
"""

import argparse
from collections.abc import Callable

import numpy as np

from gpt4jax.evals import calibration

Pairs = tuple[np.ndarray, np.ndarray, np.ndarray | None]  # confidences, true probabilities, question numbers


def _single(true: Callable[[np.ndarray], np.ndarray], low: float = 0.0, high: float = 1.0):
    """Confidences between bounds, and pairs that do not depend on each other."""

    def draw(rng: np.random.Generator, n: int) -> Pairs:
        confidence = rng.uniform(low, high, n)
        return confidence, true(confidence), None

    return draw


def _sharper(by: float) -> Callable[[np.ndarray], np.ndarray]:
    """Truth whose log odds are `by` times the confidence's: below 1, the forecaster is too sure."""
    return lambda c: 1 / (1 + (1 / np.clip(c, 1e-9, 1 - 1e-9) - 1) ** by)


def _of_four(spread: float, by: float, dependent: bool):
    """The softmax of four choices, as of a benchmark; the truth's logits are `by` times the forecaster's."""

    def draw(rng: np.random.Generator, n: int) -> Pairs:
        logits = spread * rng.standard_normal((n // 4, 4))
        question = np.repeat(np.arange(n // 4), 4) if dependent else None
        return calibration.softmax(logits).ravel(), calibration.softmax(by * logits).ravel(), question

    return draw


FORECASTERS: dict[str, Callable[[np.random.Generator, int], Pairs]] = {
    "calibrated": _single(lambda c: c),
    "a little too sure": _single(_sharper(0.85)),
    "too sure": _single(_sharper(0.6)),
    "far too sure": _single(_sharper(0.3)),
    "not sure enough": _single(_sharper(1.5)),
    "0.05 too high": _single(lambda c: np.clip(c - 0.05, 0, 1)),
    "always says a half, right": _single(lambda c: c, 0.45, 0.55),
    "says a half, 0.6 is true": _single(lambda c: c + 0.1, 0.45, 0.55),
    "one bin in five is off": _single(lambda c: np.where((c > 0.6) & (c < 0.8), c - 0.2, c)),
    "softmax, calibrated": _of_four(1.5, 1.0, False),
    "softmax, too sure": _of_four(1.5, 0.6, False),
    "questions, calibrated": _of_four(1.5, 1.0, True),
    "questions, too sure": _of_four(1.5, 0.6, True),
    "questions, near chance": _of_four(0.3, 1.0, True),
    "questions, chance, too sure": _of_four(0.6, 0.0, True),
}


def simulate(name: str, pairs: int, simulations: int, seed: int) -> np.ndarray:
    """Plug-in ECE, plug-in and debiased squared error, truth, whether the interval holds it: (simulations, 5)."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(simulations):
        confidence, probability, question = FORECASTERS[name](rng, pairs)
        if question is None:
            correct = rng.random(len(confidence)) < probability
        else:
            ends = probability.reshape(-1, 4).cumsum(axis=1)
            right = (rng.random((len(ends), 1)) * ends[:, -1:] > ends).sum(axis=1)
            correct = (np.arange(4) == right[:, None]).ravel()
        found = calibration.reliability(confidence, correct, question=question, equal_mass=True)
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
    for number, name in enumerate(FORECASTERS):
        rows = simulate(name, flags.pairs, flags.simulations, number)
        ece, plug_in, debiased, truth, inside = rows.mean(axis=0)
        error = (rows[:, 2] - rows[:, 3]).std() / len(rows) ** 0.5
        print(
            f"{name:28s} plug-in ECE {ece:.4f}; squared error: truth {truth:.5f}, plug-in {plug_in:.5f}, debiased "
            f"{debiased:.5f} (bias {debiased - truth:+.5f} ± {error:.5f}); the 95% interval covers {inside:.1%}",
            flush=True,
        )


if __name__ == "__main__":
    main()
