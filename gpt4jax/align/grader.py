"""A grader: (optional prompt, reply, rubric) -> the probability of each class, by any model, without examples.

OpenAI 2023, section 6: a rule-based reward model is a zero-shot classifier with three inputs, the prompt (which may be
left out), the policy's output, and a rubric in multiple-choice style. Here the model is one function, `ask`: it takes
calls (`evals.calls`) and yields each one's number and output, as `evals.asking.Asker.ask` does. Two ways to ask:

- `by_letter`: the log probability of each choice's letter behind the question. It gives probabilities, which the
  weight fit (`rbrm`) needs; a model that would not answer with a letter at all is forced to, so `Grade.mass` says how
  much of its probability the letters had.
- `by_writing`: the model writes the letter on a line and an explanation behind it, as in the report's rubrics. An
  answer that begins with another line, or another letter, is counted as that and is no class: nothing is guessed.

Two remedies, both off by default, as the report names neither, for graders that like a letter whatever it stands for:

- `rotations`: the choices are shown in so many orders, each turned on, and log probabilities are averaged per choice.
  Over a whole turn every choice has had every letter once: what a letter adds by itself cancels.
- `calibrated` (contextual calibration, Zhao et al. 2021, arXiv 2102.09690): from each log probability that of the same
  choice in the same order given no prompt and an empty reply is taken away. It takes out letters and descriptions that
  the model likes without reading anything, and it takes every choice for equally likely beforehand.
"""

import collections
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gpt4jax.align.rubric import CLASSES, Rubric
from gpt4jax.evals import oai_scoring
from gpt4jax.evals.asking import TooLong
from gpt4jax.evals.calls import Call, Choose, Chosen, Generate, Generated, Output

Ask = Callable[[Sequence[Call]], Iterator[tuple[int, Output | TooLong]]]

GRADED, NONE, OUTSIDE, TOO_LONG = "graded", "none_of_them", "outside_the_choices", "too_long"


class Reply(NamedTuple):
    """What is graded: a reply, the prompt that it answers (None: not shown), and the kind of prompt that it is."""

    output: str
    prompt: str | None = None
    kind: str = ""


class Grade(NamedTuple):
    """What a grader says of a reply.

    Attributes:
        phi: the probability of each of CLASSES; what is missing from 1 is on choices of no class, or on no choice.
        cls: the likeliest class; None where `status` is not GRADED.
        status: GRADED; NONE: the likeliest choices are of no class, or two classes are as likely; OUTSIDE: no order of
            the choices got an answer among them; TOO_LONG: the question does not fit the model's window.
        mass: by letter, the share of the model's probability that the letters had, the mean over orders; by writing,
            the share of orders with an answer among the choices.
        written: what the model wrote, an answer for each order; by letter nothing.
    """

    phi: tuple[float, ...]
    cls: str | None
    status: str
    mass: float
    written: tuple[str, ...] = ()


def orders(count: int, rotations: int) -> list[list[int]]:
    """Of each order the numbers of the choices as they are shown; `rotations` 0: each choice is first once.

    Raises:
        ValueError: more orders than choices, or fewer than none.
    """
    if not 0 <= rotations <= count:
        raise ValueError(f"rotations is {rotations}; it must be from 0, a whole turn, to {count}, as many as choices")
    turns = rotations or count
    return [[(i + turn * count // turns) % count for i in range(count)] for turn in range(turns)]


def transcript(reply: Reply) -> str:
    """What the grader reads first. An empty reply without a prompt is what calibration compares with."""
    asked = "" if reply.prompt is None else f"[User]\n{reply.prompt.strip()}\n\n"
    return f"{asked}[Assistant]\n{reply.output.strip()}\n\n[Question]\n"


def shown(rubric: Rubric, order: Sequence[int]) -> str:
    """The choices, a line each, behind their letters."""
    return "\n".join(f"({letter}) {rubric.choices[i].text}" for letter, i in zip(rubric.letters, order, strict=True))


def letter_calls(reply: Reply, rubric: Rubric, rotations: int) -> list[Choose]:
    """A call for each order. They share their beginning, up to the choices, which is read once."""
    header, letters = f"{transcript(reply)}{rubric.text}\n\n", tuple(f" {letter}" for letter in rubric.letters)
    return [
        Choose(f"{shown(rubric, order)}\n\nThe letter of the right description:", letters, header)
        for order in orders(len(rubric.choices), rotations)
    ]


def writing_calls(reply: Reply, rubric: Rubric, rotations: int, max_tokens: int, as_text: bool) -> list[Generate]:
    """A call for each order; `as_text` for models without a chat template."""
    first, last = f"'{rubric.letters[0]}'", f"'{rubric.letters[-1]}'"
    how = (
        f"Begin your answer with one character, from {first} to {last}, on a line of its own, without quotation marks "
        "or anything else. On the next line explain it: go through your reasons one by one, to where they lead, and do "
        "not open with the conclusion."
    )
    calls = []
    for order in orders(len(rubric.choices), rotations):
        text = f"{transcript(reply)}{rubric.text}\n\n{shown(rubric, order)}\n\n{how}"
        calls.append(Generate(f"{text}\n\n[Answer]\n" if as_text else (("user", text),), max_tokens))
    return calls


def choice_logprobs(
    outputs: Sequence[Chosen], rotations: int, empty: Sequence[Chosen] | None = None
) -> tuple[np.ndarray, float]:
    """The log probability of each choice in nats, normalized over the choices, and the letters' mass.

    Args:
        outputs: one for each order, its choices as they were shown.
        rotations: as `orders` takes it.
        empty: the same of an empty reply: it is taken away.
    """
    shown_rj = np.array([output.logprobs for output in outputs])
    mass = float(np.exp(shown_rj).sum(axis=1).mean())
    if empty is not None:
        shown_rj = shown_rj - np.array([output.logprobs for output in empty])
    count = shown_rj.shape[1]
    total_c = np.zeros(count)
    for row_j, order in zip(shown_rj, orders(count, rotations), strict=True):
        total_c[order] += row_j
    mean_c = total_c / len(shown_rj)
    return mean_c - np.logaddexp.reduce(mean_c), mass


def written_choice(text: str, rubric: Rubric, order: Sequence[int]) -> int | None:
    """The number of the choice whose letter is the first line, but for punctuation; None: it is something else."""
    first = text.strip().partition("\n")[0]
    found = oai_scoring.choice(first, "classify_cot", "exact", rubric.letters)
    return None if found == oai_scoring.INVALID else order[rubric.letters.index(found)]


def graded(choice_probs: Sequence[float], rubric: Rubric, kind: str, mass: float) -> Grade:
    """A grade of the probability of each choice; they may sum to less than 1."""
    by_class = dict.fromkeys(CLASSES, 0.0)
    without = 0.0
    for probability, choice in zip(choice_probs, rubric.choices, strict=True):
        cls = choice.of(kind)
        if cls is None:
            without += probability
        else:
            by_class[cls] += probability
    phi = tuple(by_class.values())
    if not sum(choice_probs):
        return Grade(phi, None, OUTSIDE, mass)
    likeliest = max(by_class, key=lambda cls: by_class[cls])
    # As likely up to rounding: sums of the same numbers in another order are no reason.
    tied = sum(math.isclose(one, by_class[likeliest], rel_tol=1e-12) for one in (*phi, without)) > 1
    if tied or without > by_class[likeliest]:
        return Grade(phi, None, NONE, mass)
    return Grade(phi, likeliest, GRADED, mass)


def _too_long() -> Grade:
    return Grade((0.0,) * len(CLASSES), None, TOO_LONG, 0.0)


def _asked(ask: Ask, calls: Sequence[Sequence[Call]]) -> list[list[Output | TooLong]]:
    """The outputs of each group of calls, all asked together."""
    flat: list[Call] = [call for group in calls for call in group]
    outputs = dict(ask(flat))
    found, start = [], 0
    for group in calls:
        found.append([outputs[i] for i in range(start, start + len(group))])
        start += len(group)
    return found


def by_letter(
    ask: Ask, replies: Sequence[Reply], rubric: Rubric, *, rotations: int = 1, calibrated: bool = False
) -> list[Grade]:
    """Grades by the log probability of the letters; see above.

    Raises:
        ValueError: as `orders`; or calibration of a model whose window does not even hold the rubric.
    """
    calls = [letter_calls(reply, rubric, rotations) for reply in (*replies, Reply(""))]
    *asked, empty = _asked(ask, calls if calibrated else calls[:-1]) + ([] if calibrated else [[]])
    without = [one for one in empty if isinstance(one, Chosen)]
    if len(without) < len(empty):
        raise ValueError(f"the rubric {rubric.name} alone does not fit this model's window")
    found = []
    for reply, outputs in zip(replies, asked, strict=True):
        chosen = [one for one in outputs if isinstance(one, Chosen)]
        if len(chosen) < len(outputs):
            found.append(_too_long())
            continue
        logprobs_c, mass = choice_logprobs(chosen, rotations, without if calibrated else None)
        found.append(graded(np.exp(logprobs_c).tolist(), rubric, reply.kind, mass))
    return found


def by_writing(
    ask: Ask, replies: Sequence[Reply], rubric: Rubric, *, rotations: int = 1, max_tokens: int = 128, as_text: bool
) -> list[Grade]:
    """Grades by what the model writes: each order has a vote; see above.

    Of `max_tokens`, which letter and explanation share, only the letter's count; `as_text` is for models without a chat
    template.

    Raises:
        ValueError: as `orders`.
    """
    calls = [writing_calls(reply, rubric, rotations, max_tokens, as_text) for reply in replies]
    turns = orders(len(rubric.choices), rotations)
    found = []
    for reply, outputs in zip(replies, _asked(ask, calls), strict=True):
        texts = [one.text for one in outputs if isinstance(one, Generated)]
        if len(texts) < len(outputs):
            found.append(_too_long())
            continue
        picked = [written_choice(text, rubric, order) for text, order in zip(texts, turns, strict=True)]
        votes = collections.Counter(number for number in picked if number is not None)
        shares = [votes[i] / len(turns) for i in range(len(rubric.choices))]
        found.append(graded(shares, rubric, reply.kind, sum(shares))._replace(written=tuple(texts)))
    return found


def tally(grades: Iterable[Grade]) -> Mapping[str, int]:
    """How many replies are of each class, and how many of none, by why."""
    counts = collections.Counter(grade.cls or grade.status for grade in grades)
    return {name: counts[name] for name in (*CLASSES, NONE, OUTSIDE, TOO_LONG)}


def phi(grades: Sequence[Grade]) -> np.ndarray:
    """(B, 4): the probabilities of replies' classes, as `rbrm` takes them.

    Raises:
        ValueError: a reply that got no answer, which has none: leave it out, and say so.
    """
    if bad := [i for i, grade in enumerate(grades) if grade.status in (OUTSIDE, TOO_LONG)]:
        raise ValueError(f"{len(bad)} of {len(grades)} replies have no grade, number {bad[0]} first: leave them out")
    return np.array([grade.phi for grade in grades], np.float32).reshape(len(grades), len(CLASSES))
