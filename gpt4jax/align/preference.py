"""Which of two models' responses is preferred: win rates by a blind judge (OpenAI 2023, section 4: 70.2% for GPT-4).

Both models answer the same prompts, once each. A judge, which is one function, sees a prompt with two responses and not
whose they are; which stands first is drawn by a hash of seed and prompt, or each prompt is judged in both orders.
Answers are FIRST, SECOND or TIE; whatever else a judge says is counted as that, and nothing is guessed. The report's
judges are people who are asked which response the user would have wanted. Three that need none:

- `by_letter`: a decoder, by the log probability of the letters of both responses.
- `by_writing`: a decoder that writes the letter on a line of its own.
- `by_score`: a reward model, which scores each response by itself and so can't favour a place.

A judge that is asked in both orders and always says "first" has a share of "first" of 1 and a win rate of a half: the
share stands beside every win rate.
"""

import collections
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt4jax.align.grader import Ask
from gpt4jax.evals import oai_scoring, stats
from gpt4jax.evals.calls import Choose, Chosen, Generate, Generated
from gpt4jax.evals.stats import Estimate

FIRST, SECOND, TIE = "first", "second", "tie"
OUTSIDE, UNREAD = "outside_the_choices", "not_read"
REPORT = {"GPT-3.5, RLHF": 0.702, "GPT-3.5 Turbo, RLHF": 0.611}  # how often GPT-4's response is preferred to theirs
LETTERS = "AB"
MIN_WORDS, MOST = 4, 2  # of a prompt, and of the same prompt; ours, as the report says neither
_MAIL = re.compile(r"[\w.+-]+@[\w-]+\.\w+")
_NUMBER = re.compile(r"(?<![\w.])\+?\d[\d ()/.-]{7,}\d(?![\w.])")  # of a telephone, a card, an account
_DATES = re.compile(r"\d{4} ?- ?\d{4}|\d{4}-\d\d-\d\d")  # and years


class Shown(NamedTuple):
    """What a judge sees."""

    prompt: str
    first: str
    second: str


class Verdict(NamedTuple):
    """What it says, and what that comes from, as JSON has it."""

    answer: str
    detail: Mapping[str, Any] = {}


Judge = Callable[[Sequence[Shown]], Sequence[Verdict]]


class Judged(NamedTuple):
    """One verdict on a prompt's two responses; `swapped`: theirs stood first."""

    prompt: str
    swapped: bool
    verdict: Verdict

    @property
    def score(self) -> float | None:
        """1: ours is preferred; 0: theirs; 0.5: neither; None: the judge gave no answer."""
        if self.verdict.answer == TIE:
            return 0.5
        if self.verdict.answer in (FIRST, SECOND):
            return float((self.verdict.answer == FIRST) != self.swapped)
        return None


def _plain(prompt: str) -> str:
    return " ".join(re.findall(r"\w+", prompt.lower()))


def kept(prompts: Iterable[str], min_words: int = MIN_WORDS, most: int = MOST) -> tuple[list[str], dict[str, int]]:
    """The prompts that are worth a comparison, each once, and how many are left out, by why.

    As the report filters: prompts with personal data (mail addresses and long numbers, as far as patterns tell), short
    ones ("Hello, ChatGPT!") and overly common ones, which come more than `most` times but for case and punctuation;
    of others the first is kept. Its filters of sexual and hateful content take a classifier of the caller's.
    """
    prompts = list(prompts)
    counts = collections.Counter(map(_plain, prompts))
    found: dict[str, str] = {}
    left = {"personal": 0, "short": 0, "common": 0, "again": 0}
    for prompt in prompts:
        plain = _plain(prompt)
        reasons = {
            "personal": bool(_MAIL.search(prompt) or _NUMBER.search(_DATES.sub("", prompt))),
            "short": len(plain.split()) < min_words, "common": counts[plain] > most, "again": plain in found,
        }  # fmt: skip
        reason = next((name for name, holds in reasons.items() if holds), None)
        if reason is None:
            found[plain] = prompt
        else:
            left[reason] += 1
    return list(found.values()), left


def theirs_first(prompt: str, seed: int) -> bool:
    """Whether their response stands first: a draw of even chances, by a hash."""
    return hashlib.sha256(f"order {seed} {prompt}".encode()).digest()[0] < 128


def judged(
    prompts: Sequence[str], ours: Sequence[str], theirs: Sequence[str], judge: Judge, *, seed: int = 0,
    both_orders: bool = False,
) -> list[Judged]:  # fmt: skip
    """Verdicts on the responses to each prompt: one, or one for each order.

    Responses that are the same to the letter are a tie, which nobody is asked about.

    Raises:
        ValueError: not two responses to each prompt, or a judge that does not answer each question.
    """
    if not len(prompts) == len(ours) == len(theirs):
        raise ValueError(f"{len(prompts)} prompts, {len(ours)} responses of ours and {len(theirs)} of theirs")
    asked = []
    for prompt, our, their in zip(prompts, ours, theirs, strict=True):
        swapped = theirs_first(prompt, seed)
        for turn in (swapped, not swapped) if both_orders else (swapped,):
            asked.append((turn, Shown(prompt, *((their, our) if turn else (our, their)))))
    different = [shown for _, shown in asked if shown.first != shown.second]
    verdicts = list(judge(different)) if different else []
    if len(verdicts) != len(different):
        raise ValueError(f"the judge was asked {len(different)} times and gave {len(verdicts)} answers")
    answers = iter(verdicts)
    same = Verdict(TIE, {"same": True})
    return [Judged(shown.prompt, turn, same if shown.first == shown.second else next(answers)) for turn, shown in asked]


class WinRate(NamedTuple):
    """How often ours is preferred; None: there was nothing to take a mean of.

    Attributes:
        win_rate: the mean score, ties a half, verdicts without an answer left out; clustered by prompt.
        first: the share of FIRST among the verdicts that prefer one: a half for a judge without a favourite place.
        agree: of prompts whose responses differ and were judged in both orders, the share with the same score in both.
        counts: of verdicts: "ours", "theirs", TIE, and whatever else the judge said.
    """

    win_rate: Estimate | None
    first: Estimate | None
    agree: Estimate | None
    counts: Mapping[str, int]


def win_rate(verdicts: Sequence[Judged], level: float = 0.95) -> WinRate:
    """The win rate of some verdicts."""
    names = {1.0: "ours", 0.0: "theirs", 0.5: TIE}
    counts = collections.Counter(dict.fromkeys((*names.values(), OUTSIDE, UNREAD), 0))
    counts.update(one.verdict.answer if one.score is None else names[one.score] for one in verdicts)
    answered = [one for one in verdicts if one.score is not None]
    chosen = [one for one in answered if one.verdict.answer != TIE]
    by_prompt: dict[str, list[float | None]] = collections.defaultdict(list)
    for one in verdicts:
        if not one.verdict.detail.get("same"):  # nobody was asked
            by_prompt[one.prompt].append(one.score)
    twice = [scores[0] == scores[1] for scores in by_prompt.values() if len(scores) == 2 and None not in scores]

    def mean(values: Sequence[float | bool | None], clusters: Sequence[str] | None) -> Estimate | None:
        return stats.bounded(stats.mean(values, clusters, level)) if values else None  # type: ignore[arg-type]

    return WinRate(
        mean([one.score for one in answered], [one.prompt for one in answered]),
        mean([one.verdict.answer == FIRST for one in chosen], [one.prompt for one in chosen]),
        mean(twice, None), dict(counts),
    )  # fmt: skip


def _question(shown: Shown) -> str:
    return (
        f"[User]\n{shown.prompt.strip()}\n\n[Response A]\n{shown.first.strip()}\n\n[Response B]\n"
        f"{shown.second.strip()}\n\n[Question]\nTwo assistants have answered the user. Which of the responses would "
        "the user rather have had?\n"
    )


def by_letter(ask: Ask) -> Judge:
    """A decoder as a judge, by the likelier letter; equally likely ones are a tie; UNREAD is what it can't tell."""

    def judge(some: Sequence[Shown]) -> list[Verdict]:
        letters = tuple(f" {letter}" for letter in LETTERS)
        outputs = dict(
            ask([Choose(f"{_question(shown)}The letter of the better response:", letters) for shown in some])
        )
        return [_by_logprobs(outputs[i]) for i in range(len(some))]

    return judge


def _by_logprobs(output: Any) -> Verdict:
    if not isinstance(output, Chosen) or not np.isfinite(output.logprobs).all():
        return Verdict(UNREAD)
    return Verdict(_larger(*output.logprobs), {"logprobs": list(output.logprobs)})


def by_writing(ask: Ask, *, as_text: bool, max_tokens: int = 8) -> Judge:
    """A decoder as a judge, by the letter that it writes; `as_text` is for models without a chat template."""
    how = "Answer with one letter, A or B, on a line of its own."

    def judge(some: Sequence[Shown]) -> list[Verdict]:
        calls = []
        for shown in some:
            text = _question(shown) + how
            calls.append(Generate(f"{text}\n\n[Answer]\n" if as_text else (("user", text),), max_tokens))
        outputs = dict(ask(calls))
        return [_by_words(outputs[i]) for i in range(len(some))]

    return judge


def _by_words(output: Any) -> Verdict:
    if not isinstance(output, Generated):
        return Verdict(UNREAD)
    found = oai_scoring.choice(output.text.strip().partition("\n")[0], "classify_cot", "exact", LETTERS)
    answers = {"A": FIRST, "B": SECOND, oai_scoring.INVALID: OUTSIDE}
    return Verdict(answers[found], {"written": output.text})


def by_score(score: Callable[[Sequence[tuple[str, str]]], np.ndarray]) -> Judge:
    """A reward model as a judge: (prompt, response) pairs to scores, NaN for one that it can't read."""

    def judge(some: Sequence[Shown]) -> list[Verdict]:
        pairs = [(shown.prompt, response) for shown in some for response in (shown.first, shown.second)]
        scores = np.asarray(score(pairs), np.float64).reshape(-1, 2)
        return [
            Verdict(UNREAD) if np.isnan(both).any() else Verdict(_larger(*both), {"scores": both.tolist()})
            for both in scores
        ]

    return judge


def _larger(first: float, second: float) -> str:
    return TIE if first == second else FIRST if first > second else SECOND
