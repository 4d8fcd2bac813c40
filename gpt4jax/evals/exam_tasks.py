"""Exams by the report's appendix A from the command line: MMLU's subjects, and exams of the user's own."""

import functools
import pathlib
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from gpt4jax.errors import UserError
from gpt4jax.evals import choice_tasks, exams, sources
from gpt4jax.evals.calls import Item, Malformed, Solve, Task
from gpt4jax.evals.exams import Problem
from gpt4jax.evals.questions import Question, of_letter, parse
from gpt4jax.evals.sources import Row


class Entry(NamedTuple):
    """A row of an exam's file: a problem, its section, and whether it is shown as an example."""

    problem: Problem
    subject: str
    shown: bool


def entry(row: Row) -> Entry:
    """`text`, `choices`, `answer` (a letter, or a number from 1); if it has them `explanation`, `section`, `shown`.

    Raises:
        ValueError: no question; or a shown one without an explanation.
    """
    choices, explanation, shown = tuple(row["choices"]), row.get("explanation", ""), row.get("shown", False)
    question = Question(row["text"], choices, of_letter(row["answer"], choices))
    if not isinstance(explanation, str) or not isinstance(shown, bool):
        raise ValueError("its explanation is no text, or shown is neither true nor false")
    if shown and not explanation.strip():
        raise ValueError("it is shown as an example and has no explanation")
    return Entry(Problem(question.stem, choices, question.gold, explanation), str(row.get("section", "")), shown)


def exam(name: str, place: str, shots: int, cache_dir: pathlib.Path) -> Task:
    """An exam in a file of the user's own, a row a problem (`entry`); its sections are groups."""
    if not place:
        raise UserError(
            f"{name} is an exam of your own: --data {name}=FILE.jsonl, a line a problem with text, choices and answer, "
            "and some with an explanation and shown=true, which are the examples"
        )
    items, bad = parse(sources.read(place), entry)
    shown = [item.data.problem for item in items if item.data.shown]
    asked = [Item(item.id, item.data.problem, item.group) for item in items if not item.data.shown]
    if len(shown) < shots:
        raise UserError(f"{place} shows {len(shown)} problems as examples, and --shots wants {shots}")
    return _sections(name, asked, defaultdict(lambda: shown[:shots]), bad, place)


def mmlu_exam(name: str, place: str, shots: int, cache_dir: pathlib.Path) -> Task:
    """MMLU as an exam: behind the explained examples that Chung et al. 2022 wrote for each subject (five, or fewer)."""
    base = choice_tasks.mmlu(name, place, 0, cache_dir)
    problems = [
        Item(item.id, Problem(item.data.stem, item.data.choices, item.data.gold), item.group) for item in base.items
    ]
    explained = {
        subject: [Problem(q.stem, q.choices, q.gold, why) for q, why in examples][:shots]
        for subject, examples in choice_tasks.explained(cache_dir).items()
    }
    if unknown := sorted({item.group for item in problems} - explained.keys()):
        raise UserError(f"there are no explained examples for the subjects {', '.join(unknown)}")
    return _sections(name, problems, explained, base.malformed, base.source)


def _sections(
    name: str, items: Sequence[Item], shown: Mapping[str, list[Problem]], bad: Sequence[Malformed], source: str
) -> Task:
    """One task of several sections, each behind its own examples; the letter is asked for behind the explanation."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.group].append(item)
    parts = {
        group: exams.multiple_choice(f"{name} {group}".strip(), own, shown[group], second_sample=True)
        for group, own in groups.items()
    }

    def solve(item: Item) -> Solve:
        return parts[item.group].solve(item)

    chance = sum(part.chance * len(part.items) for part in parts.values() if part.chance) / max(len(items), 1)
    return Task(name, "accuracy", tuple(items), solve, tuple(bad), chance, source)


Build = Callable[[str, int, pathlib.Path], Any]
TASKS: Mapping[str, tuple[Build, int]] = {
    "exam": (functools.partial(exam, "exam"), 5),
    "mmlu_exam": (functools.partial(mmlu_exam, "mmlu_exam"), 5),
}
