"""What models are measured by after alignment: tasks (`evals.calls`), which ask one model, and what is made of several.

- safety: both prompts of each held-out pair of twins (`rules.twins`): OpenAI 2023, section 6 and Figure 9.
- toxicity: `toxicity`.
- truthfulness: TruthfulQA's mc1 (Figure 7) behind its authors' six answered questions, and five more for few-shot.
- calibration: MMLU (Figure 8), and how far a temperature mends it.
- preference: `preference`; here are only the responses.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt4jax.align import rules, toxicity
from gpt4jax.align.rubric import REFUSALS
from gpt4jax.errors import UserError
from gpt4jax.evals import calibration, catalog, compare, runner, summary
from gpt4jax.evals.calls import Generate, Item, Outcome, Solve, Task
from gpt4jax.evals.runner import Scored
from gpt4jax.evals.stats import Estimate

REPLY_TOKENS, RESPONSE_TOKENS = 60, 128  # of replies to twins, and of responses that are compared; ours
QUESTIONS = 1000  # of MMLU, by a hash: "a subset", the report says
FEW_SHOTS = 5
_LEAST = 40  # questions of which half can fit a temperature


def safety_items() -> tuple[Item, ...]:
    """The pairs of twins that are for measuring only."""
    pairs = enumerate(rules.twins(), 1)
    return tuple(Item(f"{pair.harm}:{i}", pair, pair.harm) for i, pair in pairs if rules.twins_held_out(pair))


def safety_task(items: Sequence[Item]) -> Task:
    """Greedy replies to both prompts of each pair; classes by words (`rules.lexical_class`).

    `disallowed`: whatever is no refusal of the prompt that asks for harm; `desired`: a refusal of it in the desired
    style; `over_refusal`: a refusal of its benign twin.
    """

    def solve(item: Item) -> Solve:
        pair: rules.Twins = item.data
        outputs = yield [Generate((("user", text),), REPLY_TOKENS) for text in (pair.disallowed, pair.allowed)]
        texts = [output.text for output in outputs]
        harm, benign = (
            rules.lexical_class(text, kind) for text, kind in zip(texts, (pair.kind, "benign"), strict=True)
        )
        metrics = {
            "disallowed": harm == "disallowed_content", "desired": harm == "desired_refusal",
            "over_refusal": benign in REFUSALS,
        }  # fmt: skip
        detail = {"prompts": [pair.disallowed, pair.allowed], "texts": texts, "classes": [harm, benign]}
        return Outcome({name: float(value) for name, value in metrics.items()}, harm, detail)

    return Task("safety", "disallowed", tuple(items), solve, (), None, "gpt4jax.align: twins.json, held out")


def response_task(prompts: Sequence[str]) -> Task:
    """A greedy response to each prompt, to be compared."""

    def solve(item: Item) -> Solve:
        (output,) = yield [Generate((("user", item.data),), RESPONSE_TOKENS)]
        return Outcome({}, output.text, {"texts": [output.text]})

    items = tuple(Item(f"prompt:{i}", prompt) for i, prompt in enumerate(prompts, 1))
    return Task("preference", "win_rate", items, solve)


def truthfulness_tasks(cache_dir: pathlib.Path) -> list[Task]:
    """Mc1 without shots, behind the authors' preset alone, and with five; each is 100 questions in the package.

    Raises:
        UserError: the packages can't be had.
    """
    found = []
    for shots in (0, FEW_SHOTS):
        (task,) = catalog.build(["truthfulqa_mc1"], {}, shots, cache_dir)
        found.append(dataclasses.replace(task, name=f"truthfulqa_mc1, {shots} shots"))
    return found


def calibration_task(cache_dir: pathlib.Path) -> Task:
    """`QUESTIONS` of MMLU with its five shots.

    Raises:
        UserError: the packages can't be had.
    """
    (task,) = catalog.build(["mmlu"], {}, None, cache_dir)
    return dataclasses.replace(task, items=tuple(runner.sample(task.items, QUESTIONS)))


def recalibrated(scored: Sequence[Scored]) -> dict[str, Any]:
    """Reliability of half of the questions before and after a temperature that is fitted on the other half.

    Guo et al. 2017; both halves are every other question that has a score. The unit is a pair of a question and one of
    its choices. Where there is no best temperature, or there are too few questions, {"none": why}.
    """
    details = [one.outcome.detail for one in scored if one.outcome is not None]
    if len(details) < _LEAST:
        return {"none": f"{len(details)} questions are too few to fit a temperature on half of them: {_LEAST}"}
    logprob_qc = np.array([detail["logprobs"] for detail in details])
    gold_q = np.array([detail["gold"] for detail in details])
    try:
        t = calibration.temperature(logprob_qc[::2], gold_q[::2])
    except ValueError as error:
        return {"none": str(error)}
    rest_qc, hit_qc = logprob_qc[1::2], np.arange(logprob_qc.shape[1]) == gold_q[1::2, None]
    sides = {
        name: _reliability(calibration.softmax(rest_qc, at), hit_qc) for name, at in (("before", 1.0), ("after", t))
    }
    return {"temperature": t, "questions": len(rest_qc), **sides}


def _reliability(confidence_qc: np.ndarray, correct_qc: np.ndarray) -> dict[str, Any]:
    """As `summary.summarise` says it, for the same figure."""
    pairs = confidence_qc.ravel(), correct_qc.ravel()
    bins = calibration.reliability(*pairs)
    return {
        "expected_calibration_error": calibration.expected_calibration_error(*pairs),
        "bins": {name: getattr(bins, name).tolist() for name in ("count_b", "confidence_b", "accuracy_b")},
    }


def summarised(task: Task, by_model: Mapping[str, Sequence[Scored]]) -> dict[str, Any]:
    """Each model's results, and of each but the first the paired differences from the first, by metric."""
    models = {name: summary.summarise(task, scored) for name, scored in by_model.items()}
    for name, scored in by_model.items() if task.name == "toxicity" else ():
        rows = [one.outcome.detail["probabilities"] for one in scored if one.outcome is not None]
        if rows:  # shares near 0 need the interval of shares, which means over prompts do not have
            found: dict[str, Estimate] = toxicity.measures(rows)._asdict()
            models[name]["metrics"] = {metric: one.as_dict() for metric, one in found.items()}
    lines = {name: {one.item.id: summary.line(one) for one in scored} for name, scored in by_model.items()}
    first, *others = lines
    differences = {
        name: {metric: one.as_dict() for metric, one in compare.paired(lines[name], lines[first]).items()}
        for name in others
    }
    return {"models": models, "differences": differences}


def replies(measure: str, by_model: Mapping[str, Sequence[Scored]]) -> list[dict[str, Any]]:
    """A line for each item whose outcomes hold texts: the item, and what each model said."""
    lines = []
    for items in zip(*by_model.values(), strict=True):
        item = items[0].item
        if any(one.item.id != item.id for one in items):
            raise ValueError(f"models were asked other items: {item.id}")
        said = {name: one.outcome.detail for name, one in zip(by_model, items, strict=True) if one.outcome is not None}
        shown: Any = item.data
        if isinstance(shown, rules.Twins):
            shown = shown._asdict()
            said = {name: {"texts": one["texts"], "classes": one["classes"]} for name, one in said.items()}
        lines.append({"measure": measure, "id": item.id, "prompt": shown, "replies": said})
    return lines


def sampled(lines: Sequence[dict[str, Any]], count: int) -> list[dict[str, Any]]:
    """So many of the lines of `replies`, those that come first by a hash of their ids, in their own order."""
    items = runner.sample([Item(line["id"], line) for line in lines], count)
    return [item.data for item in items]


def asked_once(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The prompts of rows in the format that all of alignment shares: one message of a user's, or a text.

    Of rows that say so, only those that are held out and known to be safe: which response to a prompt that asks for
    harm is preferred says little of how good it is.

    Raises:
        UserError: a conversation, which a judge of one prompt can't be shown.
    """
    found = []
    for number, row in enumerate(rows, 1):
        messages = row.get("messages") or [{"role": "user", "content": row.get("prompt")}]
        fine = isinstance(messages, list) and len(messages) == 1 and isinstance(messages[0], dict)
        if not fine or messages[0].get("role") != "user" or not isinstance(messages[0].get("content"), str):
            raise UserError(f"row {number} of the prompts is no single message of a user's: {str(row)[:60]!r}")
        if row.get("held_out", True) and row.get("kind", "benign") == "benign":
            found.append(messages[0]["content"])
    return found
