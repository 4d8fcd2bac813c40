"""Exams as the report's appendix A gives them: an explanation first, then a letter; essays with an example; rubrics.

Prompts are the report's (appendix A.8). Where its printed template numbers the sixth problem's explanation "4", a slip,
ours says 6.
"""

import dataclasses
import hashlib
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from gpt4jax.errors import UserError
from gpt4jax.evals import scoring
from gpt4jax.evals.calls import Generate, Item, Malformed, Outcome, Solve, Task
from gpt4jax.evals.questions import LETTERS
from gpt4jax.evals.sources import Row

EXPLANATION = dict(temperature=0.3, max_tokens=512)
_BEFORE_LETTER = "\nThe answer is therefore"  # where an explanation ends
_NEXT = "\n\nProblem "  # where it ends with its letter
ESSAY_TEMPERATURE, ESSAY_TOKENS = 0.6, 1024  # the report says no limit
IMAGE = "<|image|>"  # where a problem's text has a picture

_HEADER = "ANSWER KEY\n\nHere are the answers for the problems in the exam.\n\n"


@dataclasses.dataclass(frozen=True)
class Problem:
    """A multiple-choice problem.

    Attributes:
        text: with IMAGE where a picture stands.
        choices: their texts, of which number `gold` is right.
        explanation: why, written by a person: needed of the problems that are shown as examples.
    """

    text: str
    choices: tuple[str, ...]
    gold: int
    explanation: str = ""


def without_images(item_id: str, text: str) -> str:
    """Each picture as the tag that the report's runs without vision have: a file's name that means nothing."""
    parts = text.split(IMAGE)
    names = (hashlib.sha256(f"{item_id} {i}".encode()).hexdigest()[:12] for i in range(1, len(parts)))
    return parts[0] + "".join(f"IMAGE: {name}.png{part}" for name, part in zip(names, parts[1:], strict=True))


def problem_text(number: int, item_id: str, problem: Problem, vision: bool) -> str:
    """A problem up to where its explanation follows."""
    options = " ".join(f"[{letter}] {choice}" for letter, choice in zip(LETTERS, problem.choices, strict=False))
    text = f"{problem.text}\n\nChoose from the following options: {options}\n\n"
    text = text if vision else without_images(item_id, text)
    return f"Problem {number}. {text}Explanation for Problem {number}:"


def multiple_choice(
    name: str, items: Sequence[Item], shown: Sequence[Problem], *, second_sample: bool, vision: bool = False
) -> Task:
    """Problems (each item's `data`), of an exam or one of its sections, behind solved ones of a similar exam.

    The report shows five. With `second_sample` the letter is asked for behind the explanation, at temperature 0; else
    it is read from the explanation: the report did the one for some exams and models and the other for the rest. With
    `vision` pictures stay where they are; else they become tags (`without_images`).

    Raises:
        ValueError: a shown problem without an explanation.
    """
    if bare := [problem.text[:40] for problem in shown if not problem.explanation.strip()]:
        raise ValueError(f"the shown problem {bare[0]!r} has no explanation")
    shots = tuple(
        f"{problem_text(i, f'{name} shown {i}', problem, vision)} {problem.explanation.strip()}\n\n"
        f"The answer is therefore [{LETTERS[problem.gold]}]\n\n"
        for i, problem in enumerate(shown, 1)
    )

    def solve(item: Item) -> Solve:
        problem: Problem = item.data
        prompt = problem_text(len(shots) + 1, item.id, problem, vision)
        stop = (_BEFORE_LETTER if second_sample else _NEXT,)
        (explained,) = yield [Generate(prompt, stop=stop, header=_HEADER, shots=shots, **EXPLANATION)]  # type: ignore[arg-type]
        letters = LETTERS[: len(problem.choices)]
        if second_sample:
            more = f"{prompt}{explained.text.rstrip()}\n\nThe answer is therefore ["
            (said,) = yield [Generate(more, 4, stop=("]",), header=_HEADER, shots=shots)]
            answer = letter_of(said.text, letters)
        else:
            answer = letter_in(explained.text, letters)
        metrics = {"accuracy": float(answer == LETTERS[problem.gold])}
        return Outcome(metrics, answer, {"gold": LETTERS[problem.gold], "explanation": explained.text})

    chance = sum(1 / len(item.data.choices) for item in items) / max(len(items), 1)
    return Task(name, "accuracy", tuple(items), solve, (), chance, "an exam of the user's")


def letter_of(text: str, letters: str) -> str | None:
    """The letter that an answer is; None: it is none."""
    text = text.strip().strip("[](). ").upper()
    return text if len(text) == 1 and text in letters else None


def letter_in(explanation: str, letters: str) -> str | None:
    """The letter that an explanation ends on: the last that "answer is" names, else the last in brackets.

    A bare letter has to be a capital: "the answer is a mammal" names none.
    """
    either = f"{letters}{letters.lower()}"
    named = re.findall(rf"[Aa]nswer is(?: therefore)?:? *(?:[\[(]([{either}])[\])]|([{letters}])\b)", explanation)
    found = [bracketed or bare for bracketed, bare in named] or re.findall(rf"\[([{letters}])\]", explanation)
    return found[-1].upper() if found else None


def free_response(name: str, items: Sequence[Item], example: tuple[str, str] | None) -> Task:
    """Essays and other answers in words, once each at a temperature of 0.6; they are graded afterwards.

    `example` is a sample task and its best-scored essay, which sets the style (the report: of the GRE, for essays);
    None: a plain instruction. Items' `data` are the tasks' texts.
    """
    header = ""
    if example is not None:
        task, essay = example
        header = f"Analytical Writing: Issue Essay\n{task}\nResponse: {essay}\n\n"

    def solve(item: Item) -> Solve:
        prompt = f"{item.data}\nResponse:" if example is not None else (("user", item.data),)
        stop = ("\nAnalytical Writing:",) if example is not None else ()
        (written,) = yield [Generate(prompt, ESSAY_TOKENS, ESSAY_TEMPERATURE, stop=stop, header=header)]
        return Outcome(
            {"words": float(len(written.text.split()))}, written.text.strip() or None, {"text": written.text}
        )

    return Task(name, "words", tuple(items), solve, (), None, "an exam of the user's")


class Criterion(NamedTuple):
    """A line of a rubric, and the points that it gives."""

    text: str
    points: float


def grading(name: str, items: Sequence[Item], rubric: Sequence[Criterion]) -> Task:
    """Grades answers (items' `data`: (task, answer)) by a rubric, a yes or no for each line; `share` of its points.

    A model's grades are not a person's: the report's were given by people, which `human_scores` reads.
    """
    most = sum(criterion.points for criterion in rubric)

    def solve(item: Item) -> Solve:
        task, answer = item.data
        said = yield [Generate((("user", _asks(task, answer, criterion)),), 4) for criterion in rubric]
        verdicts = [yes_or_no(one.text) for one in said]
        points = sum(criterion.points for criterion, verdict in zip(rubric, verdicts, strict=True) if verdict)
        parsed = None if None in verdicts else f"{points:g} of {most:g}"
        return Outcome({"share": points / most}, parsed, {"verdicts": verdicts})

    return Task(name, "share", tuple(items), solve, (), None, "graded by a model")


def _asks(task: str, answer: str, criterion: Criterion) -> str:
    return (
        f"An exam's task:\n{task}\n\nAn answer to it:\n{answer}\n\nDoes the answer meet this criterion of the rubric?\n"
        f"{criterion.text}\n\nSay Yes or No."
    )


def yes_or_no(text: str) -> bool | None:
    """What a grader's first word says; None: neither."""
    word = re.match(r"\W*(yes|no)\b", text, re.I)
    return None if word is None else word[1].lower() == "yes"


def human_scores(rows: Sequence[tuple[str, Row | str]], most: float) -> tuple[dict[str, float], list[Malformed]]:
    """Scores that people gave, 0 to `most`, as shares by item: rows with "id" and "score"; of one id their mean."""
    given: dict[str, list[float]] = {}
    bad: list[Malformed] = []
    for name, row in rows:
        try:
            if isinstance(row, str):
                raise ValueError(row)
            score = float(row["score"])
            if not 0 <= score <= most:
                raise ValueError(f"the score {score:g} is not from 0 to {most:g}")
            given.setdefault(str(row["id"]), []).append(score / most)
        except (KeyError, ValueError, TypeError) as error:
            bad.append(Malformed(name, f"it lacks the field {error}" if isinstance(error, KeyError) else str(error)))
    return {key: sum(scores) / len(scores) for key, scores in given.items()}, bad


class Section(NamedTuple):
    """A part of an exam: each item's score, 0 to 1, its weight, and the items that were found in training data."""

    scores: Mapping[str, float]
    weight: float
    contaminated: frozenset[str] = frozenset()


class Report(NamedTuple):
    """An exam's accuracy, that of its uncontaminated items (None: there are none), and what is reported."""

    full: float
    clean: float | None
    reported: float
    contaminated: float  # share, by the sections' weights
    degradation: float | None


def report(sections: Mapping[str, Section]) -> Report:
    """The score of all items and of the uncontaminated ones, sections by their weights, and the lower of the two.

    A section that is contaminated as a whole leaves no uncontaminated score of the exam, as in the report's Table 9.

    Raises:
        UserError: a section without items, or contaminated items that it does not have.
    """
    full, clean, shares, weights = [], [], [], []
    for name, section in sections.items():
        if not section.scores or (strange := section.contaminated - section.scores.keys()):
            what = f"the contaminated item {min(strange)}, which it has not" if section.scores else "no items"
            raise UserError(f"the section {name} has {what}")
        kept = [score for item, score in section.scores.items() if item not in section.contaminated]
        full.append(sum(section.scores.values()) / len(section.scores))
        clean.append(sum(kept) / len(kept) if kept else None)
        shares.append(len(section.contaminated) / len(section.scores))
        weights.append(section.weight)
    whole = scoring.weighted(full, weights)
    parts = [one for one in clean if one is not None]
    rest = scoring.weighted(parts, weights) if len(parts) == len(clean) else None
    degraded = scoring.degradation(whole, rest) if whole else None
    contaminated = scoring.exam_contamination(list(zip(shares, weights, strict=True)))
    return Report(whole, rest, scoring.lower_of_two(whole, rest), contaminated, degraded)


class Band(NamedTuple):
    """Percentiles of test takers with a score: below it at most `low` of 100, and at or below it `high`."""

    low: float
    high: float


def percentile(score: float, table: Mapping[float, Band]) -> Band:
    """The band of a scale score, of the table's nearest score at or below it.

    Raises:
        ValueError: a score below all of the table's.
    """
    known = [one for one in table if one <= score]
    if not known:
        raise ValueError(f"the score {score:g} is below the table's lowest, {min(table):g}")
    return table[max(known)]


def span(bands: Sequence[Band]) -> Band:
    """The band that covers several administrations, as the report gives AMC 10 and 12."""
    return Band(min(band.low for band in bands), max(band.high for band in bands))
