"""OpenAI Evals' basic and model-graded classes as tasks.

Where the library leaves a setting to the service that it calls, it is ours: Includes is greedy, as the others are.
"""

import pathlib
import random
import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from gpt4jax.errors import UserError
from gpt4jax.evals import oai_scoring as rules
from gpt4jax.evals import registry as registries
from gpt4jax.evals.calls import Generate, Item, Malformed, Outcome, Solve, Task
from gpt4jax.evals.registry import Registry, Spec

BASIC = ("Match", "Includes", "FuzzyMatch", "JsonMatch")
GRADED = "ModelBasedClassify"
SHUFFLE_SEED = 123  # of the library's order of samples
_TOKENS = {"Match": 500, "Includes": 500, "FuzzyMatch": 100, "JsonMatch": 512}
_GRADER_TOKENS = 1024

Messages = Sequence[Mapping[str, str]]


def task(registry: Registry, name: str, *, max_samples: int | None = None, as_text: bool = False) -> Task:
    """The task of an eval's name: of the first `max_samples` samples in the library's order.

    With `as_text` prompts are plain texts ("User: ..."), for models without a chat template.

    Raises:
        UserError: there is no such eval or file, it is of another class, or of a licence that is left out.
    """
    spec = registry.resolve(name)
    kind = spec.cls.rpartition(":")[2]
    if kind not in (*BASIC, GRADED):
        raise UserError(f"the eval {spec.name} is of the class {spec.cls}; there are {', '.join((*BASIC, GRADED))}")
    if registries.is_restricted(spec):
        raise UserError(f"the data of {spec.name} are not free for every use: they are left out")
    if not isinstance(spec.args.get("samples_jsonl"), str):
        raise UserError(f"the eval {spec.name} of {registry.where} names no samples_jsonl")
    rows = registry.samples(spec.args["samples_jsonl"])
    order = list(range(len(rows)))
    random.Random(SHUFFLE_SEED).shuffle(order)
    base, split = (*spec.name.split("."), "default")[:2]
    grader = _grader(registry, spec) if kind == GRADED else {}
    items, bad = [], []
    for i in order[:max_samples]:
        where, row = rows[i]
        reason = row if isinstance(row, str) else (_graded_fault(row, grader, spec) if grader else _fault(row, kind))
        if reason:
            bad.append(Malformed(where, reason))
        else:
            items.append(Item(f"{base}.{split}.{i}", row))
    solve = _graded(grader, spec, as_text) if grader else _basic(registry, spec, kind, as_text)
    metric = "score" if kind == GRADED else "accuracy"
    return Task(spec.name, metric, tuple(items), solve, tuple(bad), None, f"{registry.where}: {spec.name}")


def _fault(row: Any, kind: str) -> str:
    """Why a row is no sample of that class; nothing if it is one."""
    if missing := [field for field in ("input", "ideal") if field not in row]:
        return f"it lacks the field {missing[0]!r}"
    if reason := _no_prompt(row, "input"):
        return reason
    ideals = row["ideal"] if isinstance(row["ideal"], list) else [row["ideal"]]
    if not ideals or not all(isinstance(ideal, str) for ideal in ideals):
        return f"its ideal {row['ideal']!r} is neither a text nor a list of texts"
    if kind == "JsonMatch":
        try:
            rules.json_match("", ideals)
        except ValueError:
            return f"its ideal {row['ideal']!r} is no JSON"
    return ""


def _no_prompt(row: Any, field: str) -> str:
    if field not in row:
        return f"it lacks the field {field!r}"
    if not _is_chat(row[field]) and not isinstance(row[field], str):
        return f"its {field} is neither a text nor messages"
    return ""


def _graded_fault(row: Any, grader: Mapping[str, Any], spec: Spec) -> str:
    """The same of a sample that a grader judges: its fields are those that the grader names."""
    asked = {key: into for key, into in grader["input_outputs"].items() if into not in row}
    if reason := next(filter(None, (_no_prompt(row, key) for key in asked)), ""):
        return reason
    prompt = grader["prompt"]
    texts = [prompt] if isinstance(prompt, str) else [one["content"] for one in prompt]
    named = {name for text in texts for name in _fields(text)} | ({"choice"} if spec.args.get("metaeval") else set())
    given = {*row, *asked.values(), *(spec.args.get("modelgraded_spec_args") or {})}
    return f"it lacks the field {min(named - given)!r}" if named - given else ""


def _is_chat(prompt: Any) -> bool:
    def is_message(one: Any) -> bool:
        return isinstance(one, dict) and isinstance(one.get("content"), str) and isinstance(one.get("role"), str)

    return isinstance(prompt, list) and bool(prompt) and all(map(is_message, prompt))


def _prompt(prompt: str | Messages, as_text: bool) -> str | tuple[tuple[str, str], ...]:
    """As `Generate` takes it. A text is what the user says."""
    if as_text:
        return prompt if isinstance(prompt, str) else rules.as_text(prompt)
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    return tuple((message["role"], message["content"]) for message in messages)


def _basic(registry: Registry, spec: Spec, kind: str, as_text: bool) -> Callable[[Item], Solve]:
    shots = _shots(registry, spec) if kind == "Match" else []
    tokens = int(spec.args.get("max_tokens", _TOKENS[kind]))

    def solve(item: Item) -> Solve:
        row = item.data
        prompt = row["input"]
        if shots:
            prompt = [*prompt[:-1], *shots, *prompt[-1:]]
        (output,) = yield [Generate(_prompt(prompt, as_text), tokens)]
        return scored(kind, output.text, row["ideal"], spec.args)

    return solve


def scored(kind: str, sampled: str, ideal: str | list[str], args: Mapping[str, Any]) -> Outcome:
    """What a completion is worth by one of the BASIC classes."""
    ideals = [ideal] if isinstance(ideal, str) else ideal
    metrics: dict[str, float] = {}
    picked: Any = None
    if kind == "Match":
        picked = rules.match(sampled, ideals)
        correct = picked is not None
    elif kind == "Includes":
        correct = rules.includes(sampled, ideals, bool(args.get("ignore_case", False)))
        picked = sampled
    elif kind == "FuzzyMatch":
        picked = [sampled for one in ideals if rules.fuzzy(sampled, one)]
        correct = bool(picked)
        metrics["f1_score"] = rules.f1(sampled, ideals)
    else:
        correct = rules.json_match(sampled, ideals)
        picked = [sampled for one in ideals if rules.json_match(sampled, [one])]
    detail = {"correct": correct, "expected": ideal, "picked": picked, "sampled": sampled}
    return Outcome({"accuracy": float(correct), **metrics}, sampled.strip() or None, detail)


def _shots(registry: Registry, spec: Spec) -> list[dict[str, str]]:
    """The messages of the first examples."""
    count = int(spec.args.get("num_few_shot", 0))
    if not count:
        return []
    path = spec.args.get("few_shot_jsonl")
    rows = registry.samples(path) if isinstance(path, str) else []
    if len(rows) < count or any(isinstance(row, str) or not _is_chat(row.get("sample")) for _, row in rows[:count]):
        raise UserError(f"the eval {spec.name} of {registry.where} has not the {count} examples that it shows")
    return [message for _, row in rows[:count] if not isinstance(row, str) for message in row["sample"]]


def _grader(registry: Registry, spec: Spec) -> Mapping[str, Any]:
    """What an eval's answers are graded by.

    Raises:
        UserError: there is none of that name, or it is asked for in a way that is not ours.
    """
    name, kind = str(spec.args.get("modelgraded_spec")), spec.args.get("eval_type")
    grader = registry.graders.get(name)
    if not isinstance(grader, dict) or not {"prompt", "choice_strings", "input_outputs"} <= grader.keys():
        raise UserError(f"{registry.where} has no grader {name}, which the eval {spec.name} names")
    if kind and kind not in rules.ANSWER_PROMPTS:
        raise UserError(f"the eval {spec.name} is of the type {kind!r}; there are {', '.join(rules.ANSWER_PROMPTS)}")
    return grader


def _graded(grader: Mapping[str, Any], spec: Spec, as_text: bool) -> Callable[[Item], Solve]:
    """The model answers, and then grades its own answers."""
    n = int(spec.args.get("multicomp_n", 1)) if spec.args.get("multicomp_n") != "from_models" else 1
    kind, match_fn = spec.args.get("eval_type"), spec.args.get("match_fn") or "starts_or_endswith"
    among = rules.choices(grader["choice_strings"], n)
    sampling = {"max_tokens": _GRADER_TOKENS, **(spec.args.get("sample_kwargs") or {})}

    def solve(item: Item) -> Solve:
        row = dict(item.data)
        pairs = {key: into for key, into in grader["input_outputs"].items() if into not in row}
        asked = [
            Generate(_prompt(row[key], as_text), sampling["max_tokens"], temperature=0.0 if n == 1 else 1.0, sample=i)
            for key in pairs
            for i in range(n)
        ]
        outputs = yield asked
        for i, into in enumerate(pairs.values()):
            row[into] = joined([output.text for output in outputs[i * n : (i + 1) * n]], grader.get("output_template"))
        prompt = grading_prompt(grader, {**row, **(spec.args.get("modelgraded_spec_args") or {})}, kind, among)
        (graded,) = yield [Generate(_prompt(prompt, as_text), _GRADER_TOKENS)]
        chosen = rules.choice(graded.text, str(grader.get("eval_type") or kind), match_fn, among)
        score = rules.choice_score(chosen, among, grader.get("choice_scores"))
        metrics = {f"counts/{one}": float(chosen == one) for one in (*among, rules.INVALID)}
        if score is not None:
            metrics["score"] = score
        if spec.args.get("metaeval"):
            metrics["metascore"] = float(chosen == item.data["choice"])
        return Outcome(metrics, None if chosen == rules.INVALID else chosen, {"choice": chosen, "sampled": graded.text})

    return solve


def joined(completions: Sequence[str], template: str | None) -> str:
    """Several completions as one text by the grader's template; one alone as it is.

    Raises:
        ValueError: several, and no template.
    """
    if len(completions) == 1:
        return completions[0]
    if not template:
        raise ValueError(f"a grader of {len(completions)} completions needs an output_template")
    return "".join(
        template.format(
            i=i + 1, i_abc=string.ascii_lowercase[i % 26], i_ABC=string.ascii_uppercase[i % 26], output=completion,
            n=len(completions),
        )
        for i, completion in enumerate(completions)
    ).strip()  # fmt: skip


def grading_prompt(
    grader: Mapping[str, Any], fields: Mapping[str, Any], kind: str | None, among: Sequence[str]
) -> list[dict[str, str]]:
    """The grader's messages, with the sample's fields in the places that they name.

    Raises:
        KeyError: a field that neither the sample nor the eval has.
    """
    prompt = grader["prompt"]
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]
    if kind:
        asked = rules.ANSWER_PROMPTS[kind].format(choices=" or ".join(f'"{one}"' for one in among))
        messages[-1]["content"] += "\n\n" + asked
    texts = {
        key: rules.as_text(value, to_complete=False) if _is_chat(value) else value for key, value in fields.items()
    }
    return [{**message, "content": _filled(message["content"], texts)} for message in messages]


def _filled(template: str, fields: Mapping[str, Any]) -> str:
    return template.format(**{name: fields[name] for name in _fields(template)})


def _fields(template: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(template) if name}


def build(names: Sequence[str], folder: str, as_text: bool, cache_dir: pathlib.Path) -> list[Task]:
    """Tasks of evals, and of sets of evals, by name; from a folder, or ("") from the pinned package."""
    registry = registries.of_folder(pathlib.Path(folder)) if folder else registries.of_package(cache_dir)
    wanted = [one for name in names for one in (registry.of_set(name) if name in registry.sets else [name])]
    return [task(registry, name, as_text=as_text) for name in dict.fromkeys(wanted)]
