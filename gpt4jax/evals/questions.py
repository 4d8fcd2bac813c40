"""Multiple-choice questions: what they are, how a model is asked, and how its choice is scored."""

import dataclasses
import math
import string
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from gpt4jax.evals.calls import Choose, Chosen, Item, Malformed, Outcome, Solve, Task
from gpt4jax.evals.sources import Row

LETTERS = string.ascii_uppercase


@dataclasses.dataclass(frozen=True)
class Question:
    """A question with choices, of which number `gold` is right.

    Raises:
        ValueError: fewer than two choices, an empty one, no text, or a `gold` that is none of them.
    """

    stem: str
    choices: tuple[str, ...]
    gold: int
    subject: str = ""
    passage: str = ""

    def __post_init__(self) -> None:
        texts = (self.stem, self.subject, self.passage, *self.choices)
        if not all(isinstance(text, str) for text in texts):
            raise ValueError(f"{next(text for text in texts if not isinstance(text, str))!r} is no text")
        if not (self.stem + self.passage).strip():
            raise ValueError("it asks nothing")
        if len(self.choices) < 2:
            raise ValueError(f"it has {len(self.choices)} choices")
        if any(not choice.strip() for choice in self.choices):
            raise ValueError("a choice is empty")
        if not isinstance(self.gold, int) or self.gold not in range(len(self.choices)):
            raise ValueError(f"the answer {self.gold!r} is none of its {len(self.choices)} choices")


def of_letter(letter: str, choices: Sequence[str]) -> int:
    """Which choice a letter (or a number from 1) means.

    Raises:
        ValueError: none of them.
    """
    letter = str(letter).strip()
    number = LETTERS.find(letter.upper()) if letter.isalpha() and len(letter) == 1 else -1
    if letter.isdecimal():
        number = int(letter) - 1
    if number not in range(len(choices)):
        raise ValueError(f"the answer {letter!r} is none of its {len(choices)} choices")
    return number


def parse(rows: Iterable[tuple[str, Row | str]], read: Callable[[Row], Any]) -> tuple[list[Item], list[Malformed]]:
    """Items of what `read` can read, and the names of what it can't and why.

    An item's group is what was read's `subject`, its cluster its `passage`, if it has them.
    """
    items: list[Item] = []
    malformed: list[Malformed] = []
    for name, row in rows:
        if isinstance(row, str):
            malformed.append(Malformed(name, row))
            continue
        try:
            data = read(row)
        except KeyError as error:
            malformed.append(Malformed(name, f"it lacks the field {error}"))
        except (ValueError, TypeError, AttributeError, IndexError) as error:
            malformed.append(Malformed(name, str(error)))
        else:
            items.append(Item(name, data, getattr(data, "subject", ""), getattr(data, "passage", "")))
    return items, malformed


def lettered(question: Question, mark: str = "{}. ") -> str:
    """The choices, a line each, behind their letters."""
    return "\n".join(mark.format(letter) + one for letter, one in zip(LETTERS, question.choices, strict=False))


@dataclasses.dataclass(frozen=True)
class Format:
    """How questions are put.

    Attributes:
        header: of a subject, in front of everything.
        ask: a question up to where the answer follows.
        answers: what the model chooses among.
        between: what stands behind a shot.
    """

    header: Callable[[str], str]
    ask: Callable[[Question], str]
    answers: Callable[[Question], Sequence[str]]
    between: str = "\n\n"

    def shot(self, question: Question) -> str:
        """A question with its answer."""
        return self.ask(question) + self.answers(question)[question.gold] + self.between


def _letters(question: Question) -> list[str]:
    return [f" {letter}" for letter in LETTERS[: len(question.choices)]]


def _passage(question: Question) -> str:
    return f"{question.passage.strip()}\n" if question.passage else ""


# Hendrycks et al. 2021, as hendrycks/test and lm-evaluation-harness have it.
MMLU = Format(
    lambda subject: f"The following are multiple choice questions (with answers) about {subject}.\n\n",
    lambda q: f"{_passage(q)}{q.stem.strip()}\n{lettered(q)}\nAnswer:",
    _letters,
)
# The GPT-4 report, appendix F. The instruction is translated with the rest; "Answer" and letters are not.
APPENDIX_F = Format(
    lambda subject: (
        "A highly knowledgeable and intelligent artificial intelligence model answers multiple-choice questions about "
        f"{subject}\n\n"
    ),
    lambda q: f"{_passage(q)}{q.stem.strip()}\n\n{lettered(q, '{}) ')}\n\nAnswer:",
    _letters,
)
PLAIN_LETTERS = Format(lambda subject: "", MMLU.ask, _letters)
CONTINUE = Format(lambda subject: "", lambda q: _passage(q) + q.stem, lambda q: [f" {one}" for one in q.choices])
QUESTION = Format(
    lambda subject: "",
    lambda q: f"{_passage(q)}Question: {q.stem}\nAnswer:",
    lambda q: [f" {one}" for one in q.choices],
)


def outcome(question: Question, chosen: Chosen, letters: bool) -> Outcome:
    """Accuracy by the likeliest answer and, of answers that are no letters, by the likeliest a character.

    Of n that are equally likely to the last bit, each counts as chosen with weight 1/n: then no order of choices gives
    a model that says nothing more than chance. `mass` is the probability that the letters have together.
    """
    metrics = {"accuracy": share(chosen.logprobs, question.gold)}
    if not letters:
        by_length = [x / len(one) for x, one in zip(chosen.logprobs, question.choices, strict=True)]
        metrics["accuracy_by_character"] = share(by_length, question.gold)
    else:
        metrics["mass"] = math.fsum(math.exp(x) for x in chosen.logprobs)
    best = max(range(len(question.choices)), key=lambda i: chosen.logprobs[i])
    answer = LETTERS[best] if letters else question.choices[best]
    return Outcome(metrics, answer, {"gold": question.gold, "letters": letters, "logprobs": list(chosen.logprobs)})


def share(scores: Sequence[float], gold: int) -> float:
    """1 if the gold one has the highest score, of n such 1/n, else 0."""
    best = [i for i, score in enumerate(scores) if score == max(scores)]
    return (gold in best) / len(best)


def task(
    name: str,
    items: Iterable[Item],
    malformed: Iterable[Malformed],
    how: Format,
    source: str,
    shots: Callable[[Item], Sequence[Question]] = lambda item: (),
    metric: str = "accuracy",
) -> Task:
    """A task of questions; `shots` gives the solved ones in front of an item."""
    items = tuple(items)
    letters = how.answers is _letters

    def solve(item: Item) -> Solve:
        question: Question = item.data
        call = Choose(
            how.ask(question), tuple(how.answers(question)), how.header(question.subject),
            tuple(how.shot(one) for one in shots(item)),
        )  # fmt: skip
        (chosen,) = yield [call]
        return outcome(question, chosen, letters)

    chance = math.fsum(1 / len(item.data.choices) for item in items) / max(len(items), 1)
    return Task(name, metric, items, solve, tuple(malformed), chance, source)
