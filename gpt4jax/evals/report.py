"""Results as one page of HTML: tables and plots, beside what the GPT-4 report prints of GPT-4 and GPT-3.5."""

import pathlib
from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from gpt4jax import files
from gpt4jax.evals import page, published

# Which row of the report's Table 2 a task stands beside; prompts and shots are not the report's, which it keeps.
_BESIDE = {
    "mmlu": "MMLU", "hellaswag": "HellaSwag", "arc_challenge": "ARC challenge", "arc_letters": "ARC challenge",
    "winogrande": "WinoGrande", "humaneval": "HumanEval", "humaneval_chat": "HumanEval",
    "humaneval_samples": "HumanEval", "drop": "DROP", "gsm8k": "GSM-8K", "gsm8k_self_consistency": "GSM-8K",
}  # fmt: skip
_MEANING = {
    "accuracy": "the right answer is the likeliest, or the one that is written",
    "accuracy_by_character": "the same by log likelihood per character of the answer",
    "mass": "probability that the letters asked about have together",
    "agreement": "share of the drawn chains that end with the majority's answer",
    "exact": "exact match",
    "f1": "overlap of words, numbers having to agree",
    "pass@1": "one sample passes all tests",
    "person": "ambiguous passages: a person is named all the same",
    "unknown": "passages that tell: the answer is that it can't be known",
    "stereotype": "the more stereotyped sentence is the likelier one; 50% is no preference",
    "refusal": "the answer reads as a refusal, by its words",
}


def write(folder: pathlib.Path, results: Mapping[str, Any]) -> pathlib.Path:
    """Writes `report.html`, with its pictures in it."""
    path = folder / "report.html"
    files.replace(path, of(results))
    return path


def of(results: Mapping[str, Any]) -> str:
    """The page."""
    parts = [
        f"<h1>{page.text(results['name'])}</h1>",
        '<p class="note">Means with 95% intervals, clustered where items belong together. GPT-4 and GPT-3.5: as the '
        "GPT-4 technical report prints them (Table 2; of calibration Figure 8), with its own prompts and shots, which "
        "it does not publish; they show where a score lies, not who is better at the same prompts.</p>",
        _overview(results["tasks"]),
    ]
    for name, task in results["tasks"].items():
        parts.append(f"<h2>{page.text(name)}</h2>")
        parts.append(f'<p class="note">{page.text(_about(task))}</p>')
        parts.append(_metrics_table(task["metrics"]))
        if "groups" in task:
            parts.append(page.picture(_groups_figure(name, task)))
            parts.append(_groups_table(task))
        if "calibration" in task:
            parts.append(page.picture(reliability_figure(task["calibration"])))
            parts.append(f"<p>{page.text(calibration_words(task['calibration']))}</p>")
        parts.append(_left_out(task))
    return page.document(results["name"], parts)


def _overview(tasks: Mapping[str, Any]) -> str:
    rows = []
    for name, task in tasks.items():
        main = task["metrics"].get(task["metric"])
        beside = published.BENCHMARKS.get(_BESIDE.get(name, ""))
        own = (page.percent(main["mean"]), page.interval(main)) if main else ("no score", "")
        theirs = (beside.gpt4, beside.gpt35) if beside else ("", "")
        rows.append(
            (name, task["metric"], *own, page.percent(task["chance"]), *theirs, f"{task['scored']} of {task['of']}")
        )
    return page.table(("task", "metric", "score %", "95%", "chance %", "GPT-4", "GPT-3.5", "items"), rows)


def _about(task: Mapping[str, Any]) -> str:
    fewest, most = task["shots"]["fewest"], task["shots"]["most"]
    shots = f"{most} shots" if fewest == most else f"{fewest} to {most} shots"
    about = f"{task['source']}. {task['scored']} of {task['of']} items, {shots}, {task['seconds']} s"
    if task["asked"]:
        about += f" for {task['asked']} new answers"
    return about + "."


def _metrics_table(metrics: Mapping[str, Any]) -> str:
    rows = [
        (name, f"{one['mean']:.4f}", "" if one["standard_error"] is None else f"{one['standard_error']:.4f}",
         "" if one["low"] is None else f"{one['low']:.4f} to {one['high']:.4f}", one["items"], one["clusters"],
         _MEANING.get(name, ""))
        for name, one in metrics.items()
    ]  # fmt: skip
    return page.table(("metric", "mean", "standard error", "95%", "items", "clusters", ""), rows, "meaning")


def _groups_table(task: Mapping[str, Any]) -> str:
    rows = []
    for name, metrics in task["groups"].items():
        one = metrics.get(task["metric"])
        if one:
            rows.append((name, page.percent(one["mean"]), page.interval(one), one["items"]))
    return f"<details><summary>all groups</summary>{page.table(('group', 'score %', '95%', 'items'), rows)}</details>"


def _left_out(task: Mapping[str, Any]) -> str:
    said = []
    for what in ("malformed", "unscored"):
        found = task[what]
        if found["count"]:
            named = "; ".join(f"{one['id']} ({one['reason']})" for one in found["first"][:5])
            said.append(f"{found['count']} {what}: {named}{' ...' if found['count'] > 5 else ''}")
    if task["unparsed"]:
        said.append(f"{task['unparsed']:.1%} of the answers could not be parsed")
    if task["shots_dropped"]["items"]:
        said.append(f"shots were dropped in {task['shots_dropped']['items']} items, as they did not fit")
    return "".join(f'<p class="note">{page.text(one)}</p>' for one in said)


def calibration_words(found: Mapping[str, Any]) -> str:
    """What a summary says of calibration, in sentences."""
    words = (
        f"Expected calibration error (plug-in) {found['expected_calibration_error']:.4f} over {found['pairs']} pairs"
    )
    theirs = published.CALIBRATION
    words += f"; the report has {theirs['pre-trained']} for its pre-trained model and {theirs['after PPO']} after PPO."
    if squared := found.get("squared_error"):
        interval = f"95% {squared['low']:.5f} to {squared['high']:.5f}"
        words += f" Squared error without bias {squared['debiased']:.5f} ({interval})."
    if "value" in found.get("temperature", {}):
        t = found["temperature"]
        words += (
            f" At a temperature of {t['value']:.2f}, fitted on half of the items, the error of the others goes from "
            f"{t['error_before']:.4f} to {t['error_after']:.4f}."
        )
    return words


def reliability_figure(found: Mapping[str, Any]) -> Figure:
    """The report's Figure 8: accuracy by confidence, and where both are equal."""
    figure, axes = page.axes(4.4, 4.2)
    bins = found["bins"]
    axes.plot([0, 1], [0, 1], ":", color=page.FAINT)
    axes.bar(bins["confidence_b"], bins["accuracy_b"], width=0.07, color=page.OURS, alpha=0.5)
    axes.plot(bins["confidence_b"], bins["accuracy_b"], "o", color=page.OURS, ms=4)
    axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="P(answer)", ylabel="P(correct)")
    axes.text(0.04, 0.93, f"ECE {found['expected_calibration_error']:.3f}", color=page.INK)
    return figure


def _groups_figure(name: str, task: Mapping[str, Any]) -> Figure:
    """Figure 5's form: a bar a group, best first, with intervals; chance, and of MMLU what the report prints."""
    groups = {key: one[task["metric"]] for key, one in task["groups"].items() if task["metric"] in one}
    order = sorted(groups, key=lambda key: groups[key]["mean"])
    figure, axes = page.axes(6.4, 0.9 + 0.19 * len(order))
    means = [100 * groups[key]["mean"] for key in order]
    ends = [
        [100 * abs((groups[key][end] if groups[key][end] is not None else groups[key]["mean"]) - groups[key]["mean"])
         for key in order] for end in ("low", "high")
    ]  # fmt: skip
    axes.barh(order, means, height=0.7, color=page.OURS, alpha=0.6, xerr=ends, error_kw={"lw": 0.8, "ecolor": page.INK})
    if task["chance"]:
        axes.axvline(100 * task["chance"], ls=":", color=page.INK, lw=1)
        axes.text(100 * task["chance"], len(order) - 0.4, " chance", fontsize=7, color=page.INK, va="bottom")
    if (beside := published.BENCHMARKS.get(_BESIDE.get(name, ""))) is not None:
        for label, value in (("GPT-3.5", beside.gpt35), ("GPT-4", beside.gpt4)):
            axes.axvline(value, color=page.FAINT, lw=1)
            axes.text(value, len(order) - 0.4, f" {label}", fontsize=7, color=page.FAINT, va="bottom")
    axes.tick_params(axis="y", labelsize=7, length=0)
    axes.set(xlim=(0, 100), ylim=(-0.6, len(order) - 0.2), xlabel=f"{task['metric']} (%)")
    return figure
