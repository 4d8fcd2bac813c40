"""A task's results as OpenAI Evals' recorder writes them: a line that says what was run, events, and the report."""

import base64
import datetime
import json
import pathlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from gpt4jax import files
from gpt4jax.evals import oai_scoring
from gpt4jax.evals.calls import Task
from gpt4jax.evals.runner import Scored

RUN_SEED = 20220722  # the library's, of each sample's own numbers; nothing here draws any


def run_id(now: datetime.datetime, random_bytes: bytes) -> str:
    """The UTC time to the second, and five random bytes in base 32."""
    return now.strftime("%y%m%d%H%M%S") + base64.b32encode(random_bytes[:5]).decode()


def lines(
    task: Task, scored: Sequence[Scored], model: str, run: str, now: datetime.datetime, command: str
) -> Iterable[dict[str, Any]]:
    """The records, in their order. Samples that have no score are events of the type "error"."""
    base, split = (*task.name.split("."), "default")[:2]
    created = now.strftime("%Y-%m-%d %H:%M:%S.%f")
    config = {
        "completion_fns": [model], "eval_spec": {"key": task.name, "source": task.source}, "seed": RUN_SEED,
        "max_samples": len(scored), "command": command, "initial_settings": {},
    }  # fmt: skip
    yield {
        "spec": {
            "completion_fns": [model], "eval_name": task.name, "base_eval": base, "split": split, "run_config": config,
            "created_by": "gpt4jax", "run_id": run, "created_at": created,
        }
    }  # fmt: skip
    number = 0
    for one in scored:
        for kind, data in _events(one):
            yield {
                "run_id": run, "event_id": number, "sample_id": one.item.id, "type": kind, "data": data,
                "created_by": "gpt4jax", "created_at": created,
            }  # fmt: skip
            number += 1
    yield {"final_report": report(scored), "run_id": run}


def _events(one: Scored) -> Iterable[tuple[str, Mapping[str, Any]]]:
    if one.outcome is None:
        return [("error", {"type": "unscored", "message": one.unscored})]
    detail, metrics = one.outcome.detail, one.outcome.metrics
    sampling = ("sampling", {"prompt": one.item.data.get("input"), "sampled": detail.get("sampled")})
    if "choice" in detail:
        graded = {key: metrics[key] for key in ("score", "metascore") if key in metrics}
        return [sampling, ("metrics", {"choice": detail["choice"], **graded})]
    own = {key: value for key, value in metrics.items() if key == "f1_score"}
    events = [sampling, ("match", {key: detail[key] for key in ("correct", "expected", "picked", "sampled")})]
    return [*events, ("metrics", {"accuracy": metrics["accuracy"], **own})] if own else events


def report(scored: Sequence[Scored]) -> dict[str, float]:
    """The library's final report: an accuracy and its error, or a grader's counts and mean score."""
    outcomes = [one.outcome for one in scored if one.outcome is not None]
    chosen = [outcome.detail["choice"] for outcome in outcomes if "choice" in outcome.detail]
    if chosen:
        found: dict[str, float] = {f"counts/{name}": count for name, count in Counter(chosen).items()}
        names = ("score", "metascore")
    else:
        found, names = {}, ("accuracy", "f1_score")
    for name in names:
        if values := [outcome.metrics[name] for outcome in outcomes if name in outcome.metrics]:
            found[name] = float(np.mean(values))
    if "accuracy" in found and "f1_score" not in found and len(outcomes) > 1:
        found["boostrap_std"] = oai_scoring.boostrap_std([outcome.metrics["accuracy"] for outcome in outcomes])
    return found


def write(
    folder: pathlib.Path, task: Task, scored: Sequence[Scored], model: str, run: str, command: str
) -> pathlib.Path:
    """Writes `{run}_{model}_{eval}.jsonl` and gives its path."""
    now = datetime.datetime.now(datetime.UTC)
    name = f"{run}_{model}_{task.name}".replace("/", "_")
    path = folder / f"{name}.jsonl"
    records = lines(task, scored, model, run, now, command)
    files.replace(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
    return path
