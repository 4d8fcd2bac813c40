"""Measures models before and after alignment: `python -m gpt4jax.align.measure --weights A --weights B --out DIR`.

Safety on held-out pairs of prompts, toxicity of continuations, TruthfulQA, calibration, and with --judge which of two
models is preferred (`measures`). Models after the first are compared with it. DIR gets measures.json, replies.jsonl,
report.html, and answers-*.jsonl, from which a killed run goes on (a judge is asked again); later runs of the same
models add their measures.
"""

import argparse
import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gpt4jax import files, job
from gpt4jax.errors import UserError

MEASURES = ("safety", "toxicity", "truthfulness", "calibration", "preference")
ROWS, WINDOW = 16, 1024  # generations at once, and tokens of each with its prompt
CHATS = ("safety", "preference")  # which need a chat template


def main(argv: Sequence[str]) -> int:
    """Reads the flags, asks the models and writes the results; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt4jax.align.measure", description=__doc__.partition(":")[0] + "."
    )
    parser.add_argument("--weights", action="append", required=True, help="a model as `gpt4jax.sample` has it; repeat")
    parser.add_argument("--out", type=files.user_path, required=True, help="a folder; the same one goes on")
    parser.add_argument("--measures", help=f"with commas between: {','.join(MEASURES)} (default: all that can be)")
    parser.add_argument("--limit", type=int, help="items of each measure: those that come first by a hash")
    parser.add_argument("--continuations", type=int, default=25, help="of each prompt of toxicity (default 25)")
    parser.add_argument("--prompts", default="twins", help="of preference: jsonl:PATH, or benign twins (the default)")
    parser.add_argument("--judge", help="of preference: a reward model's export, or any decoder")
    parser.add_argument("--judge_by", choices=("letter", "writing"), default="letter", help="how a decoder is asked")
    parser.add_argument("--both_orders", action="store_true", help="each two responses are judged in both orders")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    flags = parser.parse_args(argv)
    if (flags.limit is not None and flags.limit < 1) or flags.continuations < 1:
        raise UserError(f"--limit is {flags.limit}, --continuations {flags.continuations}: at least 1")
    if again := sorted({name for name in flags.weights if flags.weights.count(name) > 1}):
        raise UserError(f"--weights {again[0]} is there twice")
    return measure(flags, _wanted(flags))


def _wanted(flags: argparse.Namespace) -> list[str]:
    """The measures; by default preference only where there is somebody to judge, and something.

    Raises:
        UserError: a measure that there is not, or one that lacks what it needs.
    """
    possible = bool(flags.judge) and len(flags.weights) > 1
    if flags.measures is None:
        if not possible:
            job.say("without --judge and two models: no preference")
        return [name for name in MEASURES if name != "preference" or possible]
    names = flags.measures.split(",")
    if flags.judge and "preference" not in names:
        raise UserError("--judge is for preference, which --measures leaves out")
    if unknown := [name for name in names if name not in MEASURES]:
        raise UserError(f"there is no measure {unknown[0]!r}; there are {', '.join(MEASURES)}")
    if "preference" in names and not possible:
        raise UserError("preference is between two models and by a judge: give two --weights and --judge")
    return [name for name in MEASURES if name in names]


def labels(names: Sequence[str]) -> list[str]:
    """The shortest ends of weights' names that tell them apart, without the `export` that stages end theirs with."""
    from gpt4jax.align import exports

    parts = [[part for part in pathlib.PurePath(name).parts if part != exports.FOLDER] or [name] for name in names]
    for count in range(1, max(map(len, parts)) + 1):
        ends = ["/".join(some[-count:]) for some in parts]
        if len(set(ends)) == len(ends):
            return ends
    return list(names)


class About(NamedTuple):
    """What is known of a model before its parameters are read."""

    name: str
    facts: dict[str, Any]  # that its answers are a function of, beside the questions
    template: str | None


def about(name: str, seed: int) -> About:
    """What there is under that name.

    Raises:
        UserError: there are no such weights, or they have no tokenizer.
    """
    from gpt4jax import weights

    found = weights.open_weights(name)
    if found.tokenizer is None:
        raise UserError(f"{name} has no tokenizer: without it there are no texts")
    facts = {"files": _fingerprint(found.source), "max_len": min(WINDOW, found.config.max_seq_len), "seed": seed}
    return About(name, facts, found.tokenizer.chat_template)


def asker(one: About):
    """A model, ready to be asked."""
    from gpt4jax import weights
    from gpt4jax.evals.asking import Asker
    from gpt4jax.inference import Engine, chat

    loaded = weights.load(one.name, dtype="", say=job.say)
    assert loaded.tokenizer is not None
    template = chat.of_model(one.template, loaded.tokenizer.roles, one.name) if one.template else None
    engine = Engine(
        loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=ROWS, max_len=one.facts["max_len"], consume=True
    )
    return Asker(engine, template, ROWS, one.facts["seed"]).ask


def _fingerprint(source: pathlib.Path) -> str:
    """A hash of all files of the weights: parameters, config, tokenizer and template."""
    folder, names = source.parent, [source.name]
    if source.is_dir():
        folder, names = source, sorted(path.name for path in source.iterdir() if path.is_file())
    found = zip(names, files.checksums(folder, names), strict=True)
    return hashlib.sha256(repr(list(found)).encode()).hexdigest()[:16]


def measure(flags: argparse.Namespace, wanted: Sequence[str]) -> int:
    """Asks each model in turn, then the judge, and writes."""
    from gpt4jax.align import measure_page, measures

    out = files.local_folder(flags.out, "--out")
    # All that can be wrong is found before the first question.
    names = dict(zip(labels(flags.weights), flags.weights, strict=True))
    opened = {label: about(name, flags.seed) for label, name in names.items()}
    _need_templates([one for one in opened.values() if not one.template], wanted)
    judge = about(flags.judge, flags.seed) if "preference" in wanted else None
    models = {label: {"weights": one.name, **one.facts} for label, one in opened.items()}
    results: dict[str, Any] = {"models": models, "measures": _before(out / "measures.json", models)}
    tasks, told = _tasks(flags, wanted)
    scored: dict[str, dict[str, list[Any]]] = {task.name: {} for some in tasks.values() for task in some}
    for label, one in opened.items():
        _ask_all(label, one, flags.limit, tasks, out, scored)
    lines: list[dict[str, Any]] = []
    for measure_name in wanted:
        found = {**told.get(measure_name, {})}
        by_task = {task.name: measures.summarised(task, scored[task.name]) for task in tasks[measure_name]}
        if measure_name == "preference":
            assert judge is not None
            found |= _preference(flags, judge, scored["preference"])
        else:
            found["tasks"] = by_task
        if measure_name in ("safety", "toxicity", "preference"):
            lines += (said := measures.replies(measure_name, scored[measure_name]))
        if measure_name == "safety":
            found["pairs"] = measures.sampled(said, measure_page.SHOWN)
        if measure_name == "calibration":
            found["recalibrated"] = {label: measures.recalibrated(one) for label, one in scored["mmlu"].items()}
        results["measures"][measure_name] = {"limit": flags.limit, **found}
    _write(out, results, lines, wanted)
    for line in measure_page.words(results):
        print(line, flush=True)
    job.say(f"{out / 'report.html'}")
    return 0


def _tasks(flags: argparse.Namespace, wanted: Sequence[str]) -> tuple[dict[str, list[Any]], dict[str, dict[str, Any]]]:
    """The tasks of each measure, and what is told of it beside their results."""
    from gpt4jax.align import measures, preference, sources, toxic_words, toxicity
    from gpt4jax.evals import runner

    cache_dir = files.cache_dir()
    tasks: dict[str, list[Any]] = {}
    about: dict[str, dict[str, Any]] = {}
    if "safety" in wanted:
        tasks["safety"] = [measures.safety_task(runner.sample(measures.safety_items(), flags.limit))]
    if "toxicity" in wanted:
        classifier, quality = toxic_words.load(cache_dir)
        items = runner.sample(toxicity.prompts(cache_dir), flags.limit)
        tasks["toxicity"] = [toxicity.task(items, classifier, flags.continuations)]
        about["toxicity"] = {"continuations": flags.continuations, "classifier": quality._asdict()}
    if "truthfulness" in wanted:
        tasks["truthfulness"] = measures.truthfulness_tasks(cache_dir)
    if "calibration" in wanted:
        tasks["calibration"] = [measures.calibration_task(cache_dir)]
    if "preference" in wanted:
        rows = sources.rows(flags.prompts, "prompts", flags.seed, cache_dir)
        kept, left = preference.kept(measures.asked_once(rows))
        if not kept:
            raise UserError(f"--prompts {flags.prompts}: no prompt is left ({left})")
        tasks["preference"] = [measures.response_task(kept)]
        about["preference"] = {"source": flags.prompts, "left_out": left}
    return tasks, about


def _need_templates(without: Sequence[About], wanted: Sequence[str]) -> None:
    if without and (needs := [name for name in CHATS if name in wanted]):
        raise UserError(
            f"{without[0].name} has no chat template, which {' and '.join(needs)} needs: leave it out of --measures"
        )


def _ask_all(label: str, one: About, limit: int | None, tasks, out: pathlib.Path, scored) -> None:
    """Asks one model all that is not kept already; what it came to goes into `scored`, by task and model."""
    from gpt4jax.evals import runner

    ask = asker(one)
    kept = runner.Kept(out / f"answers-{one.facts['files']}.jsonl", one.facts)
    for task in (task for some in tasks.values() for task in some):
        items = runner.sample(task.items, limit)
        job.say(f"{label}: {task.name}, {len(items)} items")
        scored[task.name][label] = runner.run(task, items, ask, kept, lambda done, known, new: None)
    kept.close()


def _preference(flags: argparse.Namespace, of: About, by_model: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """Win rates of each later model over the first."""
    from gpt4jax.align import preference

    judge, words = _judge(of, flags.judge_by)
    first, *others = by_model
    found: dict[str, Any] = {"judge": words, "against": {}, "verdicts": {}, "prompts": len(by_model[first])}
    found["unscored"] = {}  # prompts that one of the two models could not answer
    for name in others:
        both = [
            (one.item.data, one.outcome.answer, other.outcome.answer)
            for one, other in zip(by_model[name], by_model[first], strict=True)
            if one.outcome is not None and other.outcome is not None
        ]
        if not both:
            raise UserError("no prompt has a response by both models: do they fit their windows?")
        found["unscored"][name] = len(by_model[first]) - len(both)
        prompts, ours, theirs = zip(*both, strict=True)
        verdicts = preference.judged(
            prompts, ours, theirs, judge, seed=flags.seed, both_orders=flags.both_orders
        )  # fmt: skip
        rate = preference.win_rate(verdicts)._asdict()
        found["against"][name] = {
            key: one.as_dict() if hasattr(one, "as_dict") else one for key, one in rate.items()
        }  # fmt: skip
        found["verdicts"][name] = [
            {"prompt": one.prompt, "swapped": one.swapped, "answer": one.verdict.answer, **one.verdict.detail}
            for one in verdicts
        ]
    return found


def _judge(of: About, by: str):
    """A judge, and what it is in words."""
    from gpt4jax.align import exports, preference, scorer

    folder = files.user_path(of.name)
    if isinstance(folder, pathlib.Path) and (folder / exports.HEAD).is_file():
        return preference.by_score(scorer.of_export(of.name)), f"the reward model {of.name}"
    words = f"{of.name}, asked by {by}"
    if by == "letter":
        return preference.by_letter(asker(of)), words
    return preference.by_writing(asker(of), as_text=not of.template), words


def _before(path: pathlib.Path, models: Mapping[str, Any]) -> dict[str, Any]:
    """Measures of an earlier run in the same folder.

    Raises:
        UserError: they are of other models.
    """
    found = files.read_json(path)
    if not found:
        return {}
    if list(found.get("models", {}).items()) != list(models.items()):
        raise UserError(
            f"{path} has measures of other models, in another order, or with another seed: use another --out"
        )
    return dict(found["measures"])


def _write(
    out: pathlib.Path, results: Mapping[str, Any], lines: Sequence[Mapping[str, Any]], new: Sequence[str]
) -> None:
    """The three files; replies of measures that were not taken now stay."""
    from gpt4jax.align import measure_page

    old = (files.text(out / "replies.jsonl") or "").split("\n")
    kept = [line for line in old if line and json.loads(line)["measure"] not in new]
    kept += [json.dumps(line, ensure_ascii=False) for line in lines]
    files.replace(out / "replies.jsonl", "".join(line + "\n" for line in kept))
    files.replace(out / "measures.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    files.replace(out / "report.html", measure_page.of(results))


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
