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
    malformed = [one._asdict() for one in task.malformed]
    found: dict[str, Any] = {
        "metric": task.metric, "chance": task.chance, "source": task.source, "items": len(scored),
        "of": len(task.items), "scored": len(done),
        "unscored": {"count": len(unscored), "first": unscored[:NAMED]},
        "malformed": {"count": len(malformed), "first": malformed[:NAMED]},
        "unparsed": _mean([one.outcome.answer is None for one in done if one.outcome]),
        "shots_dropped": {"items": sum(one.dropped > 0 for one in done), "shots": sum(one.dropped for one in done)},
        "metrics": _metrics(done),
    }  # fmt: skip
    groups: dict[str, list[Scored]] = defaultdict(list)
    for one in done:
        groups[one.item.group].append(one)
    if len(groups) > 1:
        found["groups"] = {name: _metrics(groups[name]) for name in sorted(groups)}
    if pairs := _pairs(done):
        found["calibration"] = _calibration(*pairs)
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


def _pairs(scored: Sequence[Scored]) -> tuple[np.ndarray, np.ndarray] | None:
    """The report's section 5: each choice's probability, of the choices alone, and whether it is right.

    Of tasks whose answers are letters; None: this is none.
    """
    confidence, correct = [], []
    for one in scored:
        detail = one.outcome.detail if one.outcome else {}
        if "logprobs" not in detail or "gold" not in detail or not detail.get("letters"):
            return None
        logprobs = np.array(detail["logprobs"])
        weights = np.exp(logprobs - logprobs.max())
        confidence += list(weights / weights.sum())
        correct += [i == detail["gold"] for i in range(len(logprobs))]
    return (np.array(confidence), np.array(correct)) if confidence else None


def _calibration(confidence: np.ndarray, correct: np.ndarray) -> dict[str, Any]:
    return {
        "pairs": len(confidence),
        "expected_calibration_error": calibration.expected_calibration_error(confidence, correct),
    }


def line(one: Scored) -> dict[str, Any]:
    """An item's end as a line of its task's file."""
    about: dict[str, Any] = {"id": one.item.id, "group": one.item.group, "shots_dropped": one.dropped}
    if one.outcome is None:
        return {**about, "unscored": one.unscored}
    return {**about, "metrics": one.outcome.metrics, "answer": one.outcome.answer, "detail": one.outcome.detail}


def words(name: str, found: dict[str, Any]) -> str:
    """A task's results in a line for the person at the terminal."""
    main = found["metrics"].get(found["metric"])
    if main is None:
        return f"{name}: no item was scored"
    text = f"{name}: {found['metric']} {main['mean']:.4f} (95% {main['low']:.4f} to {main['high']:.4f})"
    text += f", {found['scored']} of {found['of']} items"
    extra = {
        "unscored": found["unscored"]["count"], "malformed": found["malformed"]["count"],
        "with shots dropped": found["shots_dropped"]["items"],
    }  # fmt: skip
    said = [f"{count} {what}" for what, count in extra.items() if count]
    if found["unparsed"]:
        said.append(f"{found['unparsed']:.1%} unparsed")
    return text + (f" ({', '.join(said)})" if said else "")
