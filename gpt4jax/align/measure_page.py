"""Measures of several models as one page of HTML: tables with intervals, and plots."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gpt4jax.align import preference, toxicity
from gpt4jax.evals import page, report, stats

SHOWN = 10  # pairs of prompts with all models' replies
_COLORS = (page.FAINT, page.OURS, "#5a7fb5", "#d9822b", "#8a63a8")
_MEANING = {
    "disallowed": "is no refusal of a prompt that asks for harm",
    "desired": "refuses it in the desired style",
    "over_refusal": "refuses a benign prompt like it",
    "expected_maximum": "the most toxic of a prompt's continuations",
    "any_toxic": "prompts with a toxic continuation",
    "share_toxic": "toxic continuations",
}
_STYLE = """
.row { display: flex; flex-wrap: wrap; gap: .5em; } .row figure { margin: 0; max-width: 24em; }
figcaption { color: #666; font-size: 13px; } .replies td { white-space: normal; text-align: left; vertical-align: top; }
"""


def of(results: Mapping[str, Any]) -> str:
    """The page, with its pictures in it."""
    names = list(results["models"])
    parts = [
        "<h1>Measures of alignment</h1>",
        f'<p class="note">{page.text(", ".join(names))}. Means with 95% intervals; differences are paired, item '
        f"by item, from the first model. They are in percentage points.</p>",
    ]
    sections: Mapping[str, Callable[[Mapping[str, Any]], Iterable[str]]] = {
        "safety": _safety, "preference": _preference, "toxicity": _toxicity, "truthfulness": _truthfulness,
        "calibration": _calibration,
    }  # fmt: skip
    for name, section in sections.items():
        if name in results["measures"]:
            parts += [f"<h2>{name.capitalize()}</h2>", *section(results["measures"][name])]
    return page.document("Measures of alignment", parts, _STYLE)


def bars(tasks: Mapping[str, Mapping[str, Any]], metrics: Sequence[tuple[str, str]], chance: float | None) -> Figure:
    """A group of bars for each (task, metric), a bar for each model, with intervals."""
    models = list(dict.fromkeys(name for task in tasks.values() for name in task["models"]))
    figure, axes = page.axes(1.6 + 1.7 * len(metrics), 3.4)
    width = 0.8 / len(models)
    for i, model in enumerate(models):
        found = [tasks[task]["models"][model]["metrics"].get(metric) for task, metric in metrics]
        here = [(place, one) for place, one in enumerate(found) if one is not None]
        means = [100 * one["mean"] for _, one in here]
        ends = [
            [
                abs(100 * (one["mean"] if one[end] is None else one[end]) - mean)
                for mean, (_, one) in zip(means, here, strict=True)
            ]
            for end in ("low", "high")
        ]
        places = [place + (i - (len(models) - 1) / 2) * width for place, _ in here]
        drawn = axes.bar(
            places, means, width, label=model, color=_COLORS[i % len(_COLORS)], alpha=0.75, yerr=ends,
            error_kw={"lw": 0.9, "ecolor": page.INK},
        )  # fmt: skip
        axes.bar_label(drawn, [f"{mean:.1f}" for mean in means], fontsize=7, color=page.INK, padding=1)
    if chance is not None:
        axes.axhline(100 * chance, ls=":", color=page.INK, lw=1, label="chance")
    several = len({task for task, _ in metrics}) > 1
    labels = [task if several else metric.replace("_", " ") for task, metric in metrics]
    axes.set_xticks(range(len(labels)), labels, fontsize=8)
    axes.set(ylabel="%", ylim=(0, None))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _rows(task: Mapping[str, Any]) -> list[tuple[object, ...]]:
    rows: list[tuple[object, ...]] = []
    for metric in dict.fromkeys(metric for one in task["models"].values() for metric in one["metrics"]):
        for name, one in task["models"].items():
            found = one["metrics"].get(metric)
            if found is not None:
                apart = task["differences"].get(name, {}).get(metric)
                more = (f"{100 * apart['mean']:+.1f}", page.interval(apart)) if apart else ("", "")
                rows.append((metric, name, page.percent(found["mean"]), page.interval(found), found["items"], *more,
                             _least(apart), _MEANING.get(metric, "")))  # fmt: skip
    return rows


def _least(apart: Mapping[str, Any] | None) -> str:
    known = apart is not None and apart["standard_error"]  # none, or 0 where all items differ by the same
    return f"{100 * stats.detectable(apart['standard_error']):.1f}" if apart is not None and known else ""


def _tasks(tasks: Mapping[str, Any]) -> Iterable[str]:
    """Each task's table, and what has no score."""
    header = ("metric", "model", "%", "95%", "items", "difference", "95%", "would show", "")
    for name, task in tasks.items():
        if len(tasks) > 1:
            yield f"<p>{page.text(name)}</p>"
        yield page.table(header, _rows(task), "meaning")
        for model, one in task["models"].items():
            if one["unscored"]["count"]:
                yield f'<p class="note">{page.text(model)}: {one["unscored"]["count"]} items do not fit its window.</p>'


def _figure(figure: Figure, caption: str = "") -> str:
    return f"<figure>{page.picture(figure)}<figcaption>{page.text(caption)}</figcaption></figure>"


def _safety(found: Mapping[str, Any]) -> Iterable[str]:
    metrics = [("safety", name) for name in ("disallowed", "desired", "over_refusal")]
    yield _figure(bars(found["tasks"], metrics, None))
    yield (
        '<p class="note">Replies to pairs of prompts that are as alike as can be: one asks for harm, one does not. '
        "Classes are told by words: whatever is no refusal of a prompt that asks for harm counts as disallowed.</p>"
    )
    yield from _tasks(found["tasks"])
    models = list(found["tasks"]["safety"]["models"])
    rows = []
    for line in found["pairs"]:
        for place, side in enumerate(("disallowed", "allowed")):
            said = [line["replies"].get(name) for name in models]
            cells = [f"[{one['classes'][place]}] {one['texts'][place]}" if one else "" for one in said]
            rows.append((line["prompt"][side], *cells))
    yield f"<p>{len(found['pairs'])} pairs, by a hash, and what the models said:</p>"
    yield page.table(("prompt", *models), rows, "replies")


def _preference(found: Mapping[str, Any]) -> Iterable[str]:
    rows = []
    for name, one in found["against"].items():
        cells = [
            f"{page.percent(one[key]['mean'])} ({page.interval(one[key])})" if one[key] else ""
            for key in ("win_rate", "first", "agree")
        ]
        counts = [f"{count} {what}" for what, count in one["counts"].items() if count]
        if found["unscored"][name]:
            counts.append(f"{found['unscored'][name]} prompts not answered by both")
        rows.append((name, *cells, "; ".join(counts)))
    yield page.table(
        ("model", "preferred to the first model %", "first place preferred %", "orders agree %", "verdicts"), rows
    )
    left = "; ".join(f"{count} {why}" for why, count in found["left_out"].items() if count) or "none"
    report_says = " and ".join(f"{100 * value:.1f}% over {name}" for name, value in preference.REPORT.items())
    yield (
        f'<p class="note">{found["prompts"]} prompts ({page.text(found["source"])}; left out: {left}), judged by '
        f"{page.text(found['judge'])}; ties count a half. A judge without a favourite place prefers the first in "
        f"half of the cases. The report's people prefer GPT-4 in {report_says}.</p>"
    )


def _toxicity(found: Mapping[str, Any]) -> Iterable[str]:
    metrics = [("toxicity", name) for name in ("share_toxic", "any_toxic", "expected_maximum")]
    yield _figure(bars(found["tasks"], metrics, None))
    yield from _tasks(found["tasks"])
    said = " and ".join(f"{name} {100 * share:.2f}%" for name, share in toxicity.REPORT.items())
    quality = found["classifier"]
    areas = ", ".join(f"{area:.3f} ({name})" for name, area in quality["auc"].items())
    alarms = ", ".join(f"{100 * share:.2f}% ({name})" for name, share in quality["false_alarms"].items())
    yield (
        f'<p class="note">{found["continuations"]} continuations of each prompt. The report has a share of toxic '
        f"generations of {said}, by another classifier on prompts that it does not name. The classifier here is a "
        f"regression on words and pieces of words; on held-out text its area under the curve is {areas}, it finds "
        f"{100 * quality['recall']:.0f}% of what Perspective calls toxic, with false alarms of {alarms}, and its rank "
        f"correlation with Perspective among toxic texts is {quality['spearman']:.2f}.</p>"
    )


def _truthfulness(found: Mapping[str, Any]) -> Iterable[str]:
    tasks = found["tasks"]
    chance = float(np.mean([one["chance"] for task in tasks.values() for one in task["models"].values()]))
    yield _figure(bars(tasks, [(name, "accuracy") for name in tasks], chance))
    yield from _tasks(tasks)


def _calibration(found: Mapping[str, Any]) -> Iterable[str]:
    (task,) = found["tasks"].values()
    yield '<div class="row">'
    for name, one in task["models"].items():
        if "calibration" in one:
            yield _figure(report.reliability_figure(one["calibration"]), name)
    yield "</div>"
    for name, one in task["models"].items():
        if "calibration" in one:
            yield f"<p>{page.text(name)}: {page.text(report.calibration_words(one['calibration']))}</p>"
    yield from _tasks(found["tasks"])
    for name, one in found["recalibrated"].items():
        if "none" in one:
            yield f'<p class="note">{page.text(name)}, recalibrated by a temperature: {page.text(one["none"])}.</p>'
            continue
        yield '<div class="row">'
        for side in ("before", "after"):
            at = 1.0 if side == "before" else one["temperature"]
            yield _figure(
                report.reliability_figure(one[side]), f"{name}, {one['questions']} questions, temperature {at:.2f}"
            )
        yield "</div>"
    yield '<p class="note">A temperature is fitted on one half of the questions and tried on the other.</p>'


def words(results: Mapping[str, Any]) -> Iterable[str]:
    """The results in lines for the person at the terminal."""
    for measure, found in results["measures"].items():
        for name, task in found.get("tasks", {}).items():
            for metric, model, mean, interval, items, apart, of_apart, *_ in _rows(task):
                less = f"; {apart} from the first model ({of_apart})" if apart else ""
                yield f"{name}: {metric} of {model} {mean}% ({interval or 'no interval'}), {items} items{less}"
        for name, one in found.get("against", {}).items():
            rate = one["win_rate"]
            said = f"{page.percent(rate['mean'])}% ({page.interval(rate)})" if rate else "of no verdict"
            yield f"{measure}: {name} is preferred to the first model in {said}; {one['counts']}"
