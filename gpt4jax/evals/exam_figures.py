"""The report's Figures 4 and 5 with any model's results beside its published ones, as PNG files.

`python -m gpt4jax.evals.exam_figures --out DIR [--percentiles FILE.json] [--languages FILE.json] [--name NAME]`, each
file a model's own numbers by name: {"LSAT": 40, ...} and {"German": 61.2, ...}.
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib

from gpt4jax import files, job
from gpt4jax.errors import UserError
from gpt4jax.evals import published

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure

_GPT4, _NO_VISION, _GPT35, _OURS = "#1a8f5a", "#8fcfae", "#5a7fb5", "#d9822b"


def exams(path: pathlib.Path, own: Mapping[str, float] | None = None, name: str = "this model") -> pathlib.Path:
    """Figure 4: the lower end of each exam's percentile, in the order of GPT-3.5's; `own` has a model's by exam.

    Raises:
        UserError: exams that the report has not, or percentiles outside 0 to 100.
    """
    own = own or {}
    if strange := sorted(own.keys() - published.PERCENTILES.keys()):
        raise UserError(f"the report has no exam {strange[0]!r}; it has {', '.join(published.PERCENTILES)}")
    _check(own)
    order = sorted(published.PERCENTILES, key=lambda exam: published.PERCENTILES[exam][::-1])
    figure, axes = _axes(9.5, 5.2)
    width = 0.8 / (4 if own else 3)
    series: list[tuple[str, str, Any]] = [
        (label, color, lambda exam, i=i: published.PERCENTILES[exam][i])
        for i, (label, color) in enumerate((("GPT-4", _GPT4), ("GPT-4 (no vision)", _NO_VISION), ("GPT-3.5", _GPT35)))
    ]
    if own:
        series.append((name, _OURS, lambda exam: own.get(exam, 0)))
    for i, (label, color, value) in enumerate(reversed(series)):
        places = [place + (i - (len(series) - 1) / 2) * width for place in range(len(order))]
        axes.bar(places, [value(exam) for exam in order], width, color=color, label=label)
    axes.set_xticks(range(len(order)), order, rotation=55, ha="right", rotation_mode="anchor", fontsize=7)
    axes.set(ylim=(0, 100), xlim=(-0.6, len(order) - 0.4), ylabel="Percentile, lower end (of test takers)")
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    return _save(figure, path)


def languages(path: pathlib.Path, own: Mapping[str, float] | None = None, name: str = "this model") -> pathlib.Path:
    """Figure 5: 3-shot MMLU by language, in percent; `own` has a model's, of these languages or others.

    Raises:
        UserError: accuracies outside 0 to 100.
    """
    own = own or {}
    _check(own)
    bars: list[tuple[str, float, str]] = [
        (f"{model} (English)", score, _GPT35) for model, score in published.ENGLISH_BY_MODEL.items()
    ]
    bars += [(f"GPT-4 {language}", score, _GPT4) for language, score in published.GPT4_BY_LANGUAGE.items()]
    bars += [(f"{name} {language}", score, _OURS) for language, score in own.items()]
    figure, axes = _axes(6.4, 0.8 + 0.2 * len(bars))
    for place, (label, score, color) in enumerate(reversed(bars)):
        axes.barh(place, score, 0.75, color=color)
        axes.text(score + 0.7, place, f"{score:.1f}", va="center", fontsize=7)
        axes.text(-1, place, label, va="center", ha="right", fontsize=7)
    axes.set_yticks([])
    axes.set(xlim=(0, 100), ylim=(-0.7, len(bars) - 0.3), xlabel="3-shot accuracy on MMLU (%)")
    return _save(figure, path)


def _check(own: Mapping[str, float]) -> None:
    for key, value in own.items():
        if not isinstance(value, int | float) or not 0 <= value <= 100:
            raise UserError(f"{key} has {value!r}: it must be a number from 0 to 100")


def _axes(width: float, height: float) -> tuple[Figure, Any]:
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Figure, path: pathlib.Path) -> pathlib.Path:
    figure.savefig(path, dpi=150)
    plt.close(figure)
    return path


def _numbers(path: pathlib.Path | None) -> dict[str, float] | None:
    if path is None:
        return None
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise UserError(f"{path} must be an object of numbers by name")
    return found


def main(argv: Sequence[str]) -> int:
    """Draws both figures; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.evals.exam_figures", description=__doc__.partition(".")[0])
    parser.add_argument("--out", type=files.user_path, required=True, help="a folder for figure_4.png and figure_5.png")
    parser.add_argument("--percentiles", type=files.user_path, help="a model's own, by exam: JSON")
    parser.add_argument(
        "--languages", type=files.user_path, help="a model's own accuracy in percent, by language: JSON"
    )
    parser.add_argument("--name", default="this model", help="what to call it")
    flags = parser.parse_args(argv)
    own = [_numbers(flags.percentiles), _numbers(flags.languages)]
    out = files.local_folder(flags.out, "--out")
    out.mkdir(parents=True, exist_ok=True)
    print(exams(out / "figure_4.png", own[0], flags.name))
    print(languages(out / "figure_5.png", own[1], flags.name))
    return 0


if __name__ == "__main__":
    job.main(main)
