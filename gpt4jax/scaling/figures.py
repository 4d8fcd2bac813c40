"""The figures of predictable scaling, as PNG files."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

from gpt4jax.scaling.forecast import Result, Units
from gpt4jax.scaling.laws import PowerLaw
from gpt4jax.training import metrics

INK, TARGET, FAINT = "#3b3b3b", "#1a8f5a", "#9a9a9a"


def _axes(width: float = 6.0, height: float = 4.2) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    """Writes a figure and frees it."""
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def ladder(
    document: Mapping[str, Any], results: Sequence[Result], targets: Sequence[Result] | None, units: Units,
    folder: pathlib.Path,
) -> None:  # fmt: skip
    """The report's Figure 1 (figure1.png) and the runs' residuals (residuals.png); targets once there are any."""
    goal, forecast = document["target"]["compute"], document["forecasts"][0]
    law = PowerLaw.from_dict(forecast["law"])
    used = [r for r in results if r.run.name in forecast["runs"]]
    bent = [r for r in results if r.ended and r.run.name in forecast["left_out"]]  # these too had a loss
    done = [r for r in targets or () if r.ended]

    figure, axes = _axes()
    x = np.geomspace(min(r.run.compute for r in used + bent) / 2, goal * 2, 200)
    to_bits = np.vectorize(units.bits_per_word)
    axes.plot(x / goal, to_bits(law.predict(x)), ":", color=FAINT, label="Prediction")
    axes.plot([r.run.compute / goal for r in used], [units.bits_per_word(r.loss) for r in used], "o", color=INK, ms=4,
              alpha=0.7, label="Observed")  # fmt: skip
    if bent:
        axes.plot([r.run.compute / goal for r in bent], [units.bits_per_word(r.loss) for r in bent], "o", color=INK,
                  ms=4, alpha=0.7, mfc="none", label="Left out")  # fmt: skip
    if "interval_run" in forecast:
        low, high = map(units.bits_per_word, forecast["interval_run"])
        axes.plot([1, 1], [low, high], "-", color=TARGET, lw=1, label=f"{document['level']:.0%} interval of one run")
    if done:
        axes.plot([1] * len(done), [units.bits_per_word(r.loss) for r in done], "o", color=TARGET, label="Target")
    axes.set(xscale="log", xlabel="Compute (target = 1)", ylabel="Bits per word",
             title=f"{document['corpus']['dataset']} next word prediction")  # fmt: skip
    axes.legend(frameon=False)
    save(figure, folder / "figure1.png")

    figure, axes = _axes(height=3.2)
    for some, colour, fill, label in (
        (used, INK, INK, "ladder"), (bent, INK, "none", "left out"), (done, TARGET, TARGET, "target")
    ):  # fmt: skip
        if some:
            errors = [100 * (r.loss / law.predict(r.run.compute) - 1) for r in some]
            at = [r.run.compute for r in some]
            axes.plot(at, errors, "o", color=colour, mfc=fill, ms=4, alpha=0.7, label=label)
    axes.axhline(0, ls=":", color=FAINT)
    axes.set(xscale="log", xlabel="Training FLOPs", ylabel="Loss above the law, %")
    axes.legend(frameon=False)
    save(figure, folder / "residuals.png")


def curves(results: Sequence[Result], folders: Sequence[pathlib.Path]) -> list[tuple[Result, np.ndarray, np.ndarray]]:
    """Each run's held-out losses over the fraction of its training that is done."""
    out = []
    for result, folder in zip(results, folders, strict=True):
        lines = [line for line in metrics.read(folder) if "eval/heldout/loss" in line]
        done = np.array([line["step"] / result.run.config.num_steps for line in lines])
        out.append((result, done, np.array([line["eval/heldout/loss"] for line in lines])))
    return out


def collapse(results: Sequence[Result], document: Mapping[str, Any], workdir: pathlib.Path) -> None:
    """The supercollapse plot (Qiu et al. 2025): (L(t) - c) / (L(T) - c) against t / T, one line a run."""
    law = PowerLaw.from_dict(document["forecasts"][0]["law"])
    kept = [r for r in results if r.ended]
    folders = [workdir / ("target" if r.run.name.startswith("target") else "runs") / r.run.name for r in kept]
    figure, axes = _axes()
    least, most = min(r.run.compute for r in kept), max(r.run.compute for r in kept)
    highest = 1.0
    for result, done, loss in sorted(curves(kept, folders), key=lambda curve: curve[0].run.compute):
        highest = max(highest, float((loss[0] - law.c) / (loss[-1] - law.c)))
        shade = np.log(result.run.compute / least) / max(np.log(most / least), 1e-9)
        axes.plot(done, (loss - law.c) / (loss[-1] - law.c), "-", color=plt.cm.viridis(0.9 * shade), lw=1,
                  label=f"{result.run.compute:.1e} FLOPs")  # fmt: skip
    handles, labels = axes.get_legend_handles_labels()
    once = dict(zip(labels, handles, strict=True))
    axes.set(xlabel="Fraction of the training", ylabel="Reducible loss (end = 1)", ylim=(0.98, min(3, 1.02 * highest)))
    axes.legend(once.values(), once.keys(), frameon=False, fontsize=7)
    save(figure, workdir / "supercollapse.png")


def coordinates(measured: Mapping[str, Mapping[int, Mapping[str, Sequence[float]]]], places: Sequence[str],
                path: pathlib.Path) -> None:  # fmt: skip
    """Sizes of changes against width, muP beside the standard parametrisation; a line a place."""
    figure, both = plt.subplots(1, 2, figsize=(8.4, 3.8), layout="constrained", sharey=True)
    for axes, (name, by_width) in zip(both, measured.items(), strict=True):
        axes.spines[["top", "right"]].set_visible(False)
        for i, place in enumerate(places):
            sizes = [np.mean(at[place]) for at in by_width.values()]
            axes.plot(list(by_width), sizes, "o-", ms=3, lw=1, color=plt.cm.tab10(i), label=place)
        axes.set(xscale="log", yscale="log", xlabel="embed_dim", title=name)
        axes.set_xticks(list(by_width), [str(width) for width in by_width])
        axes.minorticks_off()
    both[0].set_ylabel("RMS of the change")
    both[1].legend(frameon=False, fontsize=7)
    save(figure, path)


def transfer(report: Mapping[str, Any], path: pathlib.Path) -> None:
    """Loss against learning rate, a line a size, its best rate marked; widths above, depths below."""
    figure, grid = plt.subplots(2, 2, figsize=(8.4, 6.4), layout="constrained", sharex=True)
    for column, name in enumerate(report):
        for row, axis in enumerate(("width", "depth")):
            axes = grid[row][column]
            axes.spines[["top", "right"]].set_visible(False)
            found = report[name][axis]["best"]
            for i, (size, best) in enumerate(found.items()):
                colour = plt.cm.viridis(0.9 * i / max(1, len(found) - 1))
                loss = [float("nan") if value is None else value for value in best["loss"]]
                axes.plot(best["learning_rates"], loss, "o-", ms=3, lw=1, color=colour, label=f"{axis} {size}")
                if "log2_rate" in best:
                    axes.axvline(2 ** best["log2_rate"], color=colour, lw=0.8, ls=":")
            axes.set(xscale="log", title=f"{name}, {axis}", xlabel="learning rate" if row else "")
            if found and column == len(report) - 1:  # the others have the same sizes
                axes.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    grid[0][0].set_ylabel("nats per token")
    grid[1][0].set_ylabel("nats per token")
    save(figure, path)


def capability(document: Mapping[str, Any], report: Mapping[str, Any], path: pathlib.Path) -> None:
    """The report's Figure 2 for every bucket: mean -log pass rate against compute, the law dotted, the target apart."""
    registered, measured = document["capability"][0], report["capability"][0]
    goal = document["target"]["compute"]
    columns = max(1, len(registered["buckets"]))
    figure, row = plt.subplots(
        1, columns, figsize=(2.4 * columns, 2.8), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    for i, (axes, bucket, found) in enumerate(zip(row[0], registered["buckets"], measured, strict=False)):
        axes.spines[["top", "right"]].set_visible(False)
        if bucket["problems"]:
            axes.plot(np.array(registered["compute"]) / goal, bucket["mean_neg_log"], "o", color=INK, ms=4, alpha=0.7)
        if "k" in bucket:
            x = np.geomspace(min(registered["compute"]) / 2, 2 * goal, 100)
            axes.plot(x / goal, bucket["alpha"] * x ** -bucket["k"], ":", color=FAINT)
        seen = [value for value in found["observed"] if value is not None]
        axes.plot([1] * len(seen), seen, "o", color=TARGET)
        axes.set(xscale="log", title=f"bucket {i + 1}, {len(bucket['problems'])} problems", xlabel="Compute")
        axes.title.set_fontsize(8)
    row[0][0].set_ylabel("-Mean log pass rate")
    save(figure, path)


def inverse(report: Mapping[str, Mapping[str, float]], path: pathlib.Path) -> None:
    """The report's Figure 3: accuracy on hindsight neglect, a bar a model."""
    figure, axes = _axes(2.2 + 1.4 * len(report), 3.6)
    values = [100 * row["accuracy"] for row in report.values()]
    errors = [100 * row["standard_error"] for row in report.values()]
    axes.bar(range(len(report)), values, yerr=errors, color=TARGET, width=0.6)
    axes.axhline(50, ls=":", color=FAINT)
    axes.set_xticks(range(len(report)), [pathlib.PurePath(name).name for name in report])
    axes.set(xlim=(-0.8, len(report) - 0.2), ylim=(0, 100), ylabel="Accuracy, %", title="Hindsight neglect")
    save(figure, path)
