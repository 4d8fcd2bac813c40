"""What the scaling laws recover, how often their intervals hold the truth, and how far ahead they see.

pip install '.[test]'
python -m tests.bench.laws hoffmann
python -m tests.bench.laws coverage [--truths 200]
python -m tests.bench.laws backtest
python -m tests.bench.laws choice [--truths 200]

The public runs are in tests/fixtures/scaling_points.csv, made from two repositories by

git clone https://github.com/epoch-research/analyzing-chinchilla
git clone https://github.com/mlfoundations/scaling
python -m tests.bench.laws points --chinchilla analyzing-chinchilla --gadre scaling
"""

import argparse
import csv
import dataclasses
import json
import pathlib

import numpy as np

from gpt4jax.scaling import backtest, chinchilla, laws
from gpt4jax.scaling.backtest import Runs

KINDS = ("mean", "run")
FACTORS = np.array([10.0, 100.0, 1000.0])  # compute of the forecast over the largest of the ladder


@dataclasses.dataclass(frozen=True)
class Ladder:
    """A simulated ladder of runs, the true mean losses at FACTORS beyond it, and one more run at each."""

    compute: np.ndarray
    loss: np.ndarray
    ahead: np.ndarray
    mean: np.ndarray
    run: np.ndarray


def ladder(rng: np.random.Generator) -> Ladder:
    """5 to 8 levels over 2 to 3 decades, 1 to 4 runs each, log noise of 0.1% to 0.5%; c is 20% to 70% of the least."""
    compute = 10 ** np.linspace(15, 15 + rng.uniform(2, 3), rng.integers(5, 9))
    b, share, noise = -rng.uniform(0.05, 0.3), rng.uniform(0.2, 0.7), np.exp(rng.uniform(*np.log([1e-3, 5e-3])))
    ahead = compute.max() * FACTORS
    compute = np.repeat(compute, rng.integers(1, 5))

    def mean(at: np.ndarray) -> np.ndarray:
        return 3 * (share + (1 - share) * (at / compute.max()) ** b)

    def runs(at: np.ndarray) -> np.ndarray:
        return mean(at) * np.exp(noise * rng.normal(size=at.shape))

    return Ladder(compute, runs(compute), ahead, mean(ahead), runs(ahead))


def simulate(truths: int, levels: tuple[float, ...], seed: int = 0) -> tuple[dict, np.ndarray, np.ndarray]:
    """By (level, kind), whether each interval holds, (truths, FACTORS); half the 90% widths; errors of the law."""
    rng = np.random.default_rng(seed)
    held: dict[tuple[float, str], list[np.ndarray]] = {(level, kind): [] for level in levels for kind in KINDS}
    widths, errors = [], []
    for _ in range(truths):
        sample = ladder(rng)
        law = laws.fit(sample.compute, sample.loss)
        for level, kind in held:
            truth = sample.mean if kind == "mean" else sample.run
            low, high = law.interval(sample.ahead, level, kind)
            held[level, kind].append((low <= truth) & (truth <= high))
            if (level, kind) == (0.9, "mean"):
                widths.append((high - low) / 2 / truth)
        errors.append(np.abs(law.predict(sample.ahead) / sample.mean - 1))
    return {key: np.array(rows) for key, rows in held.items()}, np.array(widths), np.array(errors)


def coverage(truths: int) -> None:
    """Prints a table of coverage by extrapolation factor."""
    held, widths, errors = simulate(truths, (0.5, 0.9, 0.95))

    def show(shares: np.ndarray) -> str:
        return "  ".join(f"{factor:g}x {100 * share:.2f}%" for factor, share in zip(FACTORS, shares, strict=True))

    for (level, kind), rows in held.items():
        print(f"{100 * level:g}% interval for the {kind:4} holds in {truths} truths: {show(rows.mean(0))}")
    print(f"median half width of the 90% interval for the mean: {show(np.median(widths, 0))}")
    print(f"median error of the forecast mean: {show(np.median(errors, 0))}")
    for sizes, budgets, noise in ((4, 4, 0.003), (9, 8, 0.003)):
        for kind, rows in simulate_chinchilla(truths, sizes, budgets, noise).items():
            print(
                f"90% interval for the {kind:4} of L(N, D), {sizes} x {budgets} runs: {show(rows.mean(0))}", flush=True
            )


# Levels, decades that they span, runs a level, log noise of a run, compute of the forecast over the largest run's.
SHORT = ((4, 0.8, 4, 0.004, 1000), (6, 1.0, 3, 0.003, 100), (10, 1.7, 4, 0.003, 100))


def choice(truths: int) -> None:
    """Prints median errors of the law with c, of that without, and of c where the runs identify one.

    The truths have b from -0.3 to -0.03 and a c of 0 to 70% of the largest run's loss.
    """
    for levels, decades, seeds, noise, ahead in SHORT:
        rng = np.random.default_rng(1)
        errors, identified = [], []
        compute = np.repeat(np.geomspace(10**-decades, 1, levels), seeds)
        for _ in range(truths):
            b, share = -np.exp(rng.uniform(*np.log([0.03, 0.3]))), rng.uniform(0, 0.7)
            loss = (share + (1 - share) * compute**b) * np.exp(noise * rng.normal(size=compute.shape))
            with_c, without = (laws.fit(compute, loss, irreducible=irreducible) for irreducible in (True, False))
            truth = share + (1 - share) * ahead**b
            errors.append([abs(law.predict(ahead) / truth - 1) for law in (with_c, without)])
            identified.append(with_c.identified)
        error, known = 100 * np.array(errors), np.array(identified)
        print(f"{levels} levels over {decades} decades, {seeds} runs each, noise {noise:.1%}, {ahead}x ahead:")
        for name, some in (("identified", known), ("not identified", ~known)):
            medians = np.median(error[some], 0)
            print(f"  c {name} in {some.sum()}: with c {medians[0]:.2f}%, without {medians[1]:.2f}%")
        chosen = np.where(known, error[:, 0], error[:, 1])
        print(f"  all: with c {np.median(error[:, 0]):.2f}%, c where identified {np.median(chosen):.2f}%", flush=True)


HOFFMANN = (6.0073404, 6.0179186, 0.5267228, 0.33917084, 0.2849083)  # log A, log B, log E, alpha, beta; unrounded


def grid(sizes: int, budgets: int) -> tuple[np.ndarray, np.ndarray]:
    """Parameters and tokens of sizes * budgets runs, over the ranges of Hoffmann et al.'s suite."""
    n, d = np.meshgrid(np.geomspace(5e7, 1.6e10, sizes), np.geomspace(1e9, 5e11, budgets))
    return n.ravel(), d.ravel()


def hoffmann_loss(n: np.ndarray, d: np.ndarray) -> np.ndarray:
    """The law with the parameters that Hoffmann et al. published, unrounded as Besiroglu et al. 2024 quote them."""
    a, b, e, alpha, beta = HOFFMANN
    return np.exp(e) + np.exp(a) * n**-alpha + np.exp(b) * d**-beta


def logs(law: chinchilla.Chinchilla) -> np.ndarray:
    """The five parameters as HOFFMANN has them."""
    return np.array([*np.log([law.A, law.B, law.E]), law.alpha, law.beta])


def hoffmann() -> None:
    """Prints the largest relative error of a parameter, from points without noise."""
    n, d = grid(9, 8)
    law = chinchilla.fit(n, d, hoffmann_loss(n, d))
    a, b, e, alpha, beta = HOFFMANN
    errors = np.array([law.A, law.B, law.E, law.alpha, law.beta]) / [*np.exp([a, b, e]), alpha, beta] - 1
    print(
        f"Hoffmann et al.'s A, B, E, alpha, beta from {len(n)} points: relative errors up to {np.abs(errors).max():.1e}"
    )


def simulate_chinchilla(truths: int, sizes: int, budgets: int, noise: float, seed: int = 0) -> dict[str, np.ndarray]:
    """By kind, whether the 90% interval at 10, 100 and 1000 times the largest compute (square roots in N) holds."""
    rng = np.random.default_rng(seed)
    n, d = grid(sizes, budgets)
    ahead = n.max() * FACTORS**0.5, d.max() * FACTORS**0.5
    held: dict[str, list[np.ndarray]] = {kind: [] for kind in KINDS}
    for _ in range(truths):
        law = chinchilla.fit(n, d, hoffmann_loss(n, d) * np.exp(noise * rng.normal(size=n.shape)))
        for kind in KINDS:
            truth = hoffmann_loss(*ahead) * (np.exp(noise * rng.normal(size=FACTORS.shape)) if kind == "run" else 1)
            low, high = law.interval(*ahead, 0.9, kind, resamples=300, seed=int(rng.integers(1 << 30)))
            held[kind].append((low <= truth) & (truth <= high))
    return {kind: np.array(rows) for kind, rows in held.items()}


POINTS = pathlib.Path(__file__).parents[1] / "fixtures" / "scaling_points.csv"
SOURCES = """\
# Parameters, tokens and final losses of published training runs.
# chinchilla: read off figure 4 of Hoffmann et al. 2022 by Besiroglu et al. 2024 (github.com/epoch-research/
#   analyzing-chinchilla, data/svg_extracted_data.csv); tokens are FLOPs / 6 / parameters.
# the others: Gadre et al. 2024 by training set, losses on C4's validation set (github.com/mlfoundations/scaling,
#   exp_data/models; MIT License, Copyright (c) 2024 mlfoundations).
"""


def write_points(besiroglu: pathlib.Path, gadre: pathlib.Path) -> None:
    """Makes the fixture from clones of the two repositories."""
    lines = ["suite,num_params,num_tokens,loss"]
    with open(besiroglu / "data" / "svg_extracted_data.csv") as file:
        for row in csv.DictReader(file):
            if row["loss"]:
                n, compute, loss = (float(row[key]) for key in ("Model Size", "Training FLOP", "loss"))
                lines.append(f"chinchilla,{n:.10g},{compute / 6 / n:.10g},{loss:.10g}")
    for path in sorted((gadre / "exp_data" / "models").glob("*.json")):
        run = json.loads(path.read_text())
        (loss,) = (result["loss"] for result in run["results"] if "c4_val" in result["val_data"][0])
        settings = run["hyperparameters"]
        lines.append(f"{run['dataset_name']},{settings['params']},{settings['tokens']},{loss:.10g}")
    POINTS.write_text(SOURCES + "\n".join(lines) + "\n")


def points() -> dict[str, Runs]:
    """The public runs, by suite."""
    lines = [line for line in POINTS.read_text().splitlines() if not line.startswith("#")]
    suites: dict[str, list[list[float]]] = {}
    for row in csv.DictReader(lines):
        suites.setdefault(row["suite"], []).append([float(row[key]) for key in ("num_params", "num_tokens", "loss")])
    return {name: Runs(*np.array(rows).T) for name, rows in suites.items()}


RATIOS = (10, 100, 300, 1000)
FAMILY = {
    "approach 3, as published": backtest.approach_3(),
    "  one exponent": backtest.approach_3(shared_exponent=True),
    "  10 tokens a parameter or more": backtest.approach_3(min_tokens_per_param=10),
    "  both": backtest.approach_3(shared_exponent=True, min_tokens_per_param=10),
}
POWER_LAWS = {
    "a C^b + c on the frontier": backtest.power_law(frontier=True),
    "a C^b on the frontier": backtest.power_law(irreducible=False, frontier=True),
}


def show_backtest(suites: list[Runs], largest: int) -> None:
    """Prints median and largest errors by candidate and ratio."""
    print("  " + " " * 40 + "".join(f"{f'{ratio}x':>20}" for ratio in RATIOS) + "   median / max % (forecasts)")
    table = backtest.table(suites, FAMILY | POWER_LAWS, RATIOS, largest)
    ours = {ratio: {"x": backtest.chosen(FAMILY, ratio)} for ratio in RATIOS}
    table["chosen of the four by back-test"] = {
        ratio: backtest.table(suites, candidate, [ratio], largest)["x"][ratio] for ratio, candidate in ours.items()
    }
    for name, row in table.items():
        cells = []
        for found in row.values():
            sizes = 100 * np.abs(found[np.isfinite(found)])
            cells.append(f"{np.median(sizes):.2f} / {sizes.max():.2f} ({len(sizes)})" if len(sizes) else "-")
        print(f"  {name:40}" + "".join(f"{cell:>20}" for cell in cells), flush=True)


def public() -> None:
    """Besiroglu et al.'s fits from their points, and the tables of both back-tests."""
    suites = points()
    runs = suites.pop("chinchilla")
    kept = runs.where(runs.loss < np.sort(runs.loss)[-5])
    for name, some in (("all", runs), ("less the five highest losses", kept)):
        law = chinchilla.fit(some.num_params, some.num_tokens, some.loss)
        print(f"{len(some)} points, {name}: log A, log B, log E, alpha, beta = {np.round(logs(law), 5)},")
        print(f"  A {law.A:.1f}, B {law.B:.1f}, E {law.E:.4f}; sum of Huber's losses {law.objective:.9f}")
    print("Forecasts of the 10 largest of these 240 runs:")
    show_backtest([kept], 10)
    print("Forecasts of the 3 largest runs of each of Gadre et al.'s 3 suites:")
    show_backtest(list(suites.values()), 3)


def main() -> None:
    """Runs what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["hoffmann", "coverage", "backtest", "choice", "points"])
    parser.add_argument("--truths", type=int, default=200)
    parser.add_argument("--chinchilla", type=pathlib.Path, help="a clone of epoch-research/analyzing-chinchilla")
    parser.add_argument("--gadre", type=pathlib.Path, help="a clone of mlfoundations/scaling")
    options = parser.parse_args()
    if options.what == "hoffmann":
        hoffmann()
    elif options.what == "coverage":
        coverage(options.truths)
    elif options.what == "backtest":
        public()
    elif options.what == "choice":
        choice(options.truths)
    elif options.chinchilla is None or options.gadre is None:
        parser.error("points needs --chinchilla and --gadre")
    else:
        write_points(options.chinchilla, options.gadre)


if __name__ == "__main__":
    main()
