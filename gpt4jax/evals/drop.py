"""DROP's score (Dua et al. 2019, section 5, and their evaluator): bags of spans, numbers exact, the best alignment."""

import re
import string
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from scipy.optimize import linear_sum_assignment

from gpt4jax.evals.sources import Row


class Reading(NamedTuple):
    """A question on a passage, and the answers that count as right: bags of spans."""

    passage: str
    question: str
    golds: tuple[tuple[str, ...], ...]


def rows(found: Iterable[tuple[str, Row | str]]) -> Iterator[tuple[str, Row | str]]:
    """One row a question: the authors' JSON has a passage with its `qa_pairs`, the hub's rows are questions."""
    for name, row in found:
        if isinstance(row, str) or "qa_pairs" not in row:
            yield name, row
            continue
        for pair in row["qa_pairs"]:
            yield str(pair.get("query_id", name)), {"passage": row["passage"], **pair}


def reading(row: Row) -> Reading:
    """A question with its answer and the validators' answers.

    Raises:
        ValueError: it has no answer.
    """
    answers = [row["answer"], *row.get("validated_answers", [])] if "answer" in row else []
    golds = [spans(answer) for answer in answers]
    if "answers_spans" in row:  # the hub's
        golds.append(tuple(row["answers_spans"]["spans"]))
    kept = tuple(dict.fromkeys(gold for gold in golds if gold))
    if not kept:
        raise ValueError("it has no answer")
    return Reading(row["passage"], row["question"], kept)


def spans(answer: Row) -> tuple[str, ...]:
    """The bag of spans of an annotated answer: a number, spans, or a date. Empty: none of them."""
    if answer.get("number"):
        return (str(answer["number"]),)
    if answer.get("spans"):
        return tuple(answer["spans"])
    date = answer.get("date") or {}
    words = " ".join(date[part] for part in ("day", "month", "year") if date.get(part))
    return (words,) if words else ()


def score(predicted: Sequence[str], golds: Iterable[Sequence[str]]) -> tuple[float, float]:
    """Exact match and F1 against the gold that fits best (by exact match, then F1)."""
    return max(_against(predicted, gold) for gold in golds)


def _against(predicted: Sequence[str], gold: Sequence[str]) -> tuple[float, float]:
    ours, theirs = [words(span) for span in predicted], [words(span) for span in gold]
    exact = set(ours) == set(theirs) and len(ours) == len(theirs)
    f1_pg = np.array([[_f1(set(span), set(other)) for other in theirs] for span in ours])
    best = linear_sum_assignment(f1_pg.reshape(len(ours), len(theirs)), maximize=True)
    # A span without a partner has F1 0.
    return float(exact), round(float(f1_pg[best].sum()) / max(len(ours), len(theirs), 1), 2)


def _f1(predicted: set[str], gold: set[str]) -> float:
    """Of two bags of words; 0 where the gold one has numbers and none is matched."""
    numbers = {word for word in gold if _is_number(word)}
    if numbers and not numbers & predicted:
        return 0.0
    if not predicted or not gold:
        return float(predicted == gold)
    return 2 * len(predicted & gold) / (len(predicted) + len(gold))


def words(span: str) -> tuple[str, ...]:
    """The words of a span: lower case, without articles and punctuation (but in numbers), numbers as floats."""
    found = (_word(token) for token in re.split(r"[ \-]", span))
    return tuple(word for word in found if word)


def _word(token: str) -> str:
    token = token.lower()
    if not _is_number(token):
        token = "".join(char for char in token if char not in string.punctuation)
    if _is_number(token):
        return str(float(token))
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", token).split())


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
