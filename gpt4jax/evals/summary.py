"""From items' outcomes to a task's results: means with intervals, by group, and all that was left out, by name."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from gpt4jax.evals import calibration, stats
from gpt4jax.evals.calls import Task
from gpt4jax.evals.runner import Scored

NAMED = 20  # items without a score that are named in the results; all are counted


def summarise(task: Task, scored: Sequence[Scored]) -> dict[str, Any]:
    """A task's results as JSON has them.

    Items that have no score are in no mean: `unscored` (they don't fit the window) and `malformed` (rows of the data
    that are no items) say how many there are and which. Answers that could not be parsed are scored, as the task
    does it, and `unparsed` is their share.
    """
    done = [one for one in scored if one.outcome is not None]
    unscored = [{"id": one.item.id, "reason": one.unscored} for one in scored if one.outcome is None]
    shots = [one.shots for one in done]
    malformed = [one._asdict() for one in task.malformed]
    found: dict[str, Any] = {
        "metric": task.metric, "chance": task.chance, "source": task.source, "items": len(scored),
        "of": len(task.items), "scored": len(done),
        "unscored": {"count": len(unscored), "first": unscored[:NAMED]},
        "malformed": {"count": len(malformed), "first": malformed[:NAMED]},
        "unparsed": _mean([one.outcome.answer is None for one in done if one.outcome]),
        "shots": {"fewest": min(shots, default=0), "most": max(shots, default=0)},
        "shots_dropped": {"items": sum(one.dropped > 0 for one in done), "shots": sum(one.dropped for one in done)},
        "metrics": _metrics(done),
    }  # fmt: skip
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in done:
        groups[one.item.group].append(one)
    if len(groups) > 1:
        found["groups"] = {name: _metrics(groups[name]) for name in sorted(groups)}
    if lettered := _lettered(done):
        found["calibration"] = _calibration(lettered)
    return found


def _mean(values: Iterable[bool]) -> float | None:
    values = list(values)
    return float(np.mean(values)) if values else None


def _metrics(scored: Sequence[Scored]) -> dict[str, Any]:
    """Each metric's mean over the items that have it, standard error and 95% interval, clustered as items are."""
    values: dict[str, list[float]] = defaultdict(list)
    clusters: dict[str, list[str]] = defaultdict(list)
    for one in scored:
        for name, value in one.outcome.metrics.items() if one.outcome else ():
            values[name].append(value)
            clusters[name].append(one.item.cluster or f"item {one.item.id}")
    return {name: stats.mean(values[name], clusters[name]).as_dict() for name in values}


def _lettered(scored: Sequence[Scored]) -> list[tuple[np.ndarray, int]]:
    """Of items whose answers are letters: their log probabilities, and the number of the right one. Others: none."""
    details = [one.outcome.detail for one in scored if one.outcome is not None]
    if not all(detail.get("letters") for detail in details):
        return []
    return [(np.array(detail["logprobs"]), detail["gold"]) for detail in details]


def _calibration(items: Sequence[tuple[np.ndarray, int]]) -> dict[str, Any]:
    """The report's section 5 and Figure 8: pairs of an item and a choice, probabilities of the choices alone.

    `temperature` is fitted on every other item, and the errors before and after it are those of the rest.
    """
    confidence, correct = _pairs(items)
    question = np.repeat(np.arange(len(items)), [len(logprobs) for logprobs, _ in items])
    bins = calibration.reliability(confidence, correct, question=question)
    told = ("count_b", "confidence_b", "accuracy_b")
    found: dict[str, Any] = {
        "pairs": len(confidence),
        "expected_calibration_error": calibration.expected_calibration_error(confidence, correct),
        "bins": {name: getattr(bins, name).tolist() for name in told},
    }
    even = calibration.reliability(confidence, correct, question=question, equal_mass=True)
    if np.isfinite(even.noise_bb).all():
        low, high = calibration.squared_error_interval(even)
        found["squared_error"] = {"debiased": calibration.squared_error(even), "low": low, "high": high}
    if len({len(logprobs) for logprobs, _ in items}) == 1 and len(items) >= 40:
        fitted, rest = items[::2], items[1::2]
        try:
            t = calibration.temperature([logprobs for logprobs, _ in fitted], [gold for _, gold in fitted])
        except ValueError as error:
            found["temperature"] = {"none": str(error)}
        else:
            errors = [calibration.expected_calibration_error(*_pairs(rest, at)) for at in (1.0, t)]
            found["temperature"] = {"value": t, "error_before": errors[0], "error_after": errors[1]}
    return found


def _pairs(items: Sequence[tuple[np.ndarray, int]], temperature: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    confidence = [calibration.softmax(logprobs, temperature) for logprobs, _ in items]
    correct = [np.arange(len(logprobs)) == gold for logprobs, gold in items]
    return np.concatenate(confidence), np.concatenate(correct)


def line(one: Scored) -> dict[str, Any]:
    """An item's end as a line of its task's file."""
    about: dict[str, Any] = {
        "id": one.item.id, "group": one.item.group, "cluster": one.item.cluster, "shots_dropped": one.dropped,
    }  # fmt: skip
    if one.outcome is None:
        return {**about, "unscored": one.unscored}
    return {**about, "metrics": one.outcome.metrics, "answer": one.outcome.answer, "detail": one.outcome.detail}


def words(name: str, found: dict[str, Any]) -> str:
    """A task's results in a line for the person at the terminal."""
    main = found["metrics"].get(found["metric"])
    if main is None:
        return f"{name}: no item was scored"
    known = main["low"] is not None  # of a single cluster no interval is
    interval = f"95% {main['low']:.4f} to {main['high']:.4f}" if known else "no interval: one cluster"
    text = f"{name}: {found['metric']} {main['mean']:.4f} ({interval})"
    text += f", {found['scored']} of {found['of']} items"
    extra = {
        "unscored": found["unscored"]["count"], "malformed": found["malformed"]["count"],
        "with shots dropped": found["shots_dropped"]["items"],
    }  # fmt: skip
    said = [f"{count} {what}" for what, count in extra.items() if count]
    if found["unparsed"]:
        said.append(f"{found['unparsed']:.1%} unparsed")
    return text + (f" ({', '.join(said)})" if said else "")
