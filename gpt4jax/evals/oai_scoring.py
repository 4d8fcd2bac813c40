"""The rules of OpenAI Evals' basic classes and of its model-graded one: pure functions of texts."""

import json
import random
import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

INVALID = "__invalid__"
# What is asked of a grader; these sentences are part of the protocol.
ANSWER_PROMPTS = {
    "classify": (
        "Answer the question by printing only a single choice from {choices} (without quotes or punctuation) "
        "corresponding to the correct answer with no other text."
    ),
    "classify_cot": (
        "First, answer by printing a single choice from {choices} (without quotes or punctuation) corresponding to the "
        "correct answer. Then, from the next line, explain your reasonings step by step."
    ),
    "cot_classify": (
        "First, write out in a step by step manner your reasoning to be sure that your conclusion is correct. Avoid "
        "simply stating the correct answer at the outset. Then print only a single choice from {choices} (without "
        "quotes or punctuation) on its own line corresponding to the correct answer. At the end, repeat just the "
        "answer by itself on a new line.\n\nReasoning:"
    ),
}
MATCHES: Mapping[str, Callable[[str, str], bool]] = {
    "include": lambda line, choice: line in choice,  # this way round
    "exact": lambda line, choice: line == choice,
    "endswith": lambda line, choice: line.endswith(choice),
    "starts_or_endswith": lambda line, choice: line.startswith(choice) or line.endswith(choice),
}
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def match(sampled: str, ideals: Sequence[str]) -> str | None:
    """Match: the first ideal with which the answer begins."""
    return next((ideal for ideal in ideals if sampled.startswith(ideal)), None)


def includes(sampled: str, ideals: Sequence[str], ignore_case: bool = False) -> bool:
    """Includes: whether any ideal is somewhere in the answer."""
    if ignore_case:
        sampled, ideals = sampled.lower(), [ideal.lower() for ideal in ideals]
    return any(ideal in sampled for ideal in ideals)


def normalized(text: str) -> str:
    """Lower case, without ASCII punctuation, English articles and more than single spaces."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text.lower().translate(_PUNCTUATION)).split())


def fuzzy(sampled: str, ideal: str) -> bool:
    """FuzzyMatch: whether one, normalized, is in the other; nothing is in everything only if both are nothing."""
    ours, theirs = normalized(sampled), normalized(ideal)
    return ours == theirs if not ours or not theirs else ours in theirs or theirs in ours


def f1(sampled: str, ideals: Sequence[str]) -> float:
    """FuzzyMatch's second score: the best F1 over normalized words, counted as often as they come."""

    def one(ideal: str) -> float:
        ours, theirs = normalized(sampled).split(), normalized(ideal).split()
        common = sum((Counter(ours) & Counter(theirs)).values())
        if not common:
            return 0.0
        precision, recall = common / len(ours), common / len(theirs)
        return 2 * precision * recall / (precision + recall)

    return max(map(one, ideals))


def json_match(sampled: str, ideals: Sequence[str]) -> bool:
    """JsonMatch: whether the answer is the same JSON as any ideal; null is never equal to anything.

    Raises:
        ValueError: an ideal that is no JSON.
    """
    try:
        ours = json.loads(sampled)
    except (ValueError, RecursionError):
        ours = None
    return any(_same(ours, json.loads(ideal)) for ideal in ideals)


def _same(ours: Any, theirs: Any) -> bool:
    if ours is None or theirs is None:
        return False
    if isinstance(ours, dict):
        return isinstance(theirs, dict) and all(_same(ours.get(k), theirs.get(k)) for k in ours.keys() | theirs.keys())
    if isinstance(ours, list):
        return isinstance(theirs, list) and len(ours) == len(theirs) and all(map(_same, ours, theirs))
    return bool(ours == theirs)


def boostrap_std(correct: Sequence[float], seed: int = 0, resamples: int = 1000) -> float:
    """The library's error of an accuracy (its spelling): of the mean of half the samples, over 1,000 drawings."""
    rng, half = random.Random(seed), len(correct) // 2
    if not half:
        return float("nan")
    return float(np.std([np.mean(rng.sample(list(correct), half)) for _ in range(resamples)]))


def choices(declared: str | Sequence[str], n: int = 1) -> list[str]:
    """A grader's choices: a list, each character of a string, or 1, 2, ... / a, b, ... / A, B, ... for n completions.

    Raises:
        ValueError: a choice with punctuation, which no line could give.
    """
    made = {
        "from_n": [str(i + 1) for i in range(n)],
        "from_n_abc": [string.ascii_lowercase[i % 26] for i in range(n)],
        "from_n_ABC": [string.ascii_uppercase[i % 26] for i in range(n)],
    }
    found = made[declared] if isinstance(declared, str) and declared in made else [str(one) for one in declared]
    if odd := [one for one in found if one.translate(_PUNCTUATION) != one]:
        raise ValueError(f"the choice {odd[0]!r} has punctuation")
    return found


def choice(text: str, kind: str, match_fn: str, among: Sequence[str]) -> str:
    """A grader's choice: of the first line (of the last, where it reasons first) that any matches; or INVALID."""
    lines = text.strip().split("\n")
    for line in reversed(lines) if kind.startswith("cot_classify") else lines:
        line = line.strip().translate(_PUNCTUATION)
        found = next((one for one in among if line and MATCHES[match_fn](line, one)), None)
        if found is not None:
            return found
    return INVALID


def choice_score(chosen: str, among: Sequence[str], scores: Mapping[str, float] | str | None) -> float | None:
    """What a choice is worth; an invalid one as little as the worst. None: this grader gives no scores."""
    if scores is None:
        return None
    table = {one: float(one) for one in among} if isinstance(scores, str) else scores
    return float(min(table.values()) if chosen == INVALID else table[chosen])


def as_text(messages: Sequence[Mapping[str, str]], to_complete: bool = True) -> str:
    """A chat as one text: a line each, behind "User: " and so on; one message alone is itself."""
    if len(messages) == 1:
        return messages[0]["content"]
    prefixes = {"system": "", "example_user": "User: ", "example_assistant": "Assistant: "}
    lines = []
    for message in messages:
        role = message.get("name", message["role"])
        lines.append(f"{prefixes.get(role, role.capitalize() + ': ')}{message['content']}\n")
    return ("".join(lines) + ("Assistant:" if to_complete else "")).lstrip()
