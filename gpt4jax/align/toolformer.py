"""Toolformer: a model finds out by itself where a call to a tool would have helped it, and learns to write such calls.

Schick et al. 2023, section 2. In plain texts calls are sampled where the model itself would begin one, run, and kept
only if the result makes the text behind it likelier. The model is fine-tuned on the texts with these calls, and then
`generate` runs what it calls.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpt4jax.align import tools
from gpt4jax.align.tools import Call, Tool
from gpt4jax.errors import UserError
from gpt4jax.inference import Candidates, Engine, Request, Result

HORIZON = 5  # tokens behind a call that count; later ones have weight 0


@dataclasses.dataclass(frozen=True)
class Settings:
    """How calls are sampled and filtered; the defaults are the paper's (appendix A).

    Attributes:
        least_probability: tau_s; a call may begin where it is more probable than that.
        positions: k; at most so many places of a text, the most probable ones.
        calls: m; so many are drawn at each.
        least_gain: tau_f, in nats; by so much a call must lower the weighted loss.
        temperature, max_tokens: of a drawn call.
        seed: of all draws.

    Raises:
        ValueError: numbers that can't be.
    """

    least_probability: float = 0.05
    positions: int = 5
    calls: int = 5
    least_gain: float = 1.0
    temperature: float = 1.0
    max_tokens: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.least_probability < 1 or self.positions < 1 or self.calls < 1:
            raise ValueError(f"{self}: a probability from 0 to below 1, and at least one position and one call")
        if not np.isfinite(self.least_gain):
            raise ValueError(f"{self}: the least gain must be a finite number")


CALCULATOR = Settings(least_probability=0.0, positions=20, calls=10, least_gain=0.5)  # the paper's for this tool


class Sampled(NamedTuple):
    """A call that was run, for the place `at` (a character) of the text number `text`."""

    text: int
    at: int
    call: Call
    result: str


class Judged(NamedTuple):
    """A call and the weighted losses of the text behind it: without it, with the call alone, with its result."""

    sampled: Sampled
    without: float
    unanswered: float
    answered: float

    @property
    def gain(self) -> float:
        """L- - L+ (section 2, Filtering API Calls)."""
        return min(self.without, self.unanswered) - self.answered


class Annotated(NamedTuple):
    """Texts with the calls that were kept, None where there are none; and what there was on the way.

    Attributes:
        drawn: calls that were sampled.
        run: different calls of a place that a tool had a result for.
        kept: those of them that lowered the loss enough.
    """

    texts: list[str | None]
    judged: list[Judged]
    drawn: int
    run: int
    kept: int

    @property
    def share_kept(self) -> float:
        """Of the calls that were run."""
        return self.kept / self.run if self.run else float("nan")


def weights(count: int) -> np.ndarray:
    """w_t of the first `count` tokens behind a call: max(0, 1 - 0.2 t), divided by the sum over all t."""
    tilde = np.maximum(0.0, 1 - np.arange(max(count, HORIZON)) / HORIZON)
    return (tilde / tilde.sum())[:count]


def places(text: str) -> list[int]:
    """Where a call may stand: before the white space behind a word. (The paper: before any token.)"""
    return [i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace()]


def annotate(
    engine: Engine, texts: Sequence[str], available: dict[str, Tool], settings: Settings,
    prompt: Callable[[str], str] = lambda text: "",
) -> Annotated:  # fmt: skip
    """Samples calls for texts, filters them, and puts the kept ones in, at each place the one with the largest gain.

    `prompt` gives what stands before a text to ask for calls (the paper's P(x)); the filter reads texts without it.

    Raises:
        UserError: the engine has no tokenizer, or a text with its prompt does not fit.
    """
    likely = positions(engine, texts, settings, prompt)
    drawn, sampled = sample(engine, texts, likely, available, settings, prompt)
    judged = judge(engine, texts, sampled)
    kept = [one for one in judged if one.gain >= settings.least_gain]
    out: list[str | None] = [None] * len(texts)
    for i in {one.sampled.text for one in kept}:
        out[i] = insert(texts[i], [one for one in kept if one.sampled.text == i])
    return Annotated(out, judged, drawn, len(sampled), len(kept))


def positions(
    engine: Engine, texts: Sequence[str], settings: Settings, prompt: Callable[[str], str]
) -> list[list[int]]:
    """The places of each text where a call is most probable, the most probable one first."""
    start = _tokenizer(engine).encode(tools.START)
    items, places_of = [], [(i, places(text)) for i, text in enumerate(texts)]
    places_of = [(i, found) for i, found in places_of if found]
    for i, found in places_of:
        before = [_prefix(engine, prompt(texts[i]) + texts[i][:at]) for at in found]
        items.append(Candidates(tuple((*ids, *start) for ids in before), tuple(map(len, before))))
    out: list[list[int]] = [[] for _ in texts]
    for number, scores in engine.score(items):
        i, found = places_of[number]
        probable = [(float(np.exp(score.logprob)), at) for score, at in zip(scores, found, strict=True)]
        probable = [one for one in probable if one[0] > settings.least_probability]
        out[i] = [at for _, at in sorted(probable, key=lambda one: (-one[0], one[1]))[: settings.positions]]
    return out


def sample(
    engine: Engine, texts: Sequence[str], likely: Sequence[Sequence[int]], available: dict[str, Tool],
    settings: Settings, prompt: Callable[[str], str],
) -> tuple[int, list[Sampled]]:  # fmt: skip
    """How many calls were drawn, and the different ones of each place that a tool had a result for."""
    start = _tokenizer(engine).encode(tools.START)
    where = [(i, at, j) for i, some in enumerate(likely) for at in some for j in range(settings.calls)]
    requests = [
        Request(
            [*_prefix(engine, prompt(texts[i]) + texts[i][:at]), *start], settings.max_tokens,
            temperature=settings.temperature, stop=(tools.CLOSE, tools.ARROW.rstrip()),
            seed=_seed(settings.seed, texts[i], at, j),
        )
        for i, at, j in where
    ]  # fmt: skip
    found: dict[Sampled, None] = {}
    for (i, at, _), done in zip(where, engine.generate(requests), strict=True):
        call = tools.read(done.text) if done.finish == "stop" else None
        result = None if call is None else tools.run(call, available)
        if call is not None and result is not None:
            found[Sampled(i, at, call, result)] = None
    return len(where), list(found)


def judge(engine: Engine, texts: Sequence[str], sampled: Sequence[Sampled]) -> list[Judged]:
    """The three losses of each call. The call stands before the text, not in it: the model has never seen one there."""
    asked: dict[tuple[str, int, int], None] = {}
    for one in sampled:
        for note in ("", tools.write(one.call, ""), tools.write(one.call, one.result)):
            asked[note, one.text, one.at] = None
    found = dict(zip(asked, losses(engine, [(note, texts[i], at) for note, i, at in asked]), strict=True))
    return [
        Judged(
            one, found["", one.text, one.at], found[tools.write(one.call, ""), one.text, one.at],
            found[tools.write(one.call, one.result), one.text, one.at],
        )
        for one in sampled
    ]  # fmt: skip


def losses(engine: Engine, asked: Sequence[tuple[str, str, int]]) -> list[float]:
    """L_i(z) of each (z, text, i): - sum_j w_{j - i} log p(x_j | z, x_{<j}) in nats, i being a character of the text.

    z stands before the text, with a space between them.
    """
    items = []
    for note, text, at in asked:
        before = _prefix(engine, (f"{note.lstrip()} " if note else "") + text[:at])
        behind = _tokenizer(engine).encode(text[at:])[:HORIZON]
        # The same text from each of its last tokens on: sums whose differences are the single tokens'.
        froms = tuple(len(before) + t for t in range(len(behind)))
        items.append(Candidates(tuple((*before, *behind) for _ in froms), froms))
    out = [0.0] * len(items)
    for i, scores in engine.score(items):
        sums = np.array([*(score.logprob for score in scores), 0.0])
        out[i] = float(-weights(len(scores)) @ (sums[:-1] - sums[1:]))
    return out


def insert(text: str, kept: Sequence[Judged]) -> str:
    """The text with calls and results in it, of several for one place the one with the largest gain."""
    best: dict[int, Judged] = {}
    for one in kept:
        at = one.sampled.at
        if at not in best or one.gain > best[at].gain:
            best[at] = one
    for at in sorted(best, reverse=True):
        sampled = best[at].sampled
        text = text[:at] + tools.write(sampled.call, sampled.result) + text[at:]
    return text


class Answer(NamedTuple):
    """What was written behind a prompt.

    Attributes:
        text: with its calls and their results.
        calls: that were run.
        failed: calls that were no call, or had no result; the text has gone on without them.
    """

    text: str
    calls: int
    failed: int


@dataclasses.dataclass
class _Writing:
    """A text on its way: the tokens behind the prompt, those still to be drawn, and what became of calls."""

    prompt: list[int]
    left: int
    may_call: int
    said: list[int] = dataclasses.field(default_factory=list)
    calls: int = 0
    failed: int = 0
    done: bool = False


def generate(
    engine: Engine, prompts: Sequence[str], available: dict[str, Tool], *, max_tokens: int = 64, top_k: int = 10,
    max_calls: int = 1, max_call_tokens: int = 32, stop: Sequence[str] = (),
) -> list[Answer]:  # fmt: skip
    """Greedy continuations in which calls are run (section 2, Inference).

    A call begins where START's last token is among the `top_k` likeliest behind the others of START, at most
    `max_calls` times a text; from then on it may not begin, and the likeliest other token takes its place: with
    `max_calls=0` it is the paper's "Toolformer (disabled)". Tokens of calls do not count for `max_tokens`.

    Raises:
        UserError: the engine has no tokenizer, a prompt does not fit, or top_k is below 1 or above what the engine
            tells.
    """
    if top_k < 1:
        raise UserError(f"top_k is {top_k}; it must be at least 1")
    writings = [_Writing(_prefix(engine, prompt), max_tokens, max_calls) for prompt in prompts]
    while running := [one for one in writings if not one.done]:
        requests = [
            Request([*one.prompt, *one.said], one.left, temperature=0.0, stop=stop, top_logprobs=max(top_k, 2))
            for one in running
        ]
        started = []
        for one, result in zip(running, engine.generate(requests), strict=True):
            if _go_on(one, result, _tokenizer(engine).encode(tools.START), top_k):
                started.append(one)
        _call(engine, started, available, max_call_tokens)
    return [Answer(_cut(engine, one.said, stop), one.calls, one.failed) for one in writings]


def _go_on(one: _Writing, result: Result, start: list[int], top_k: int) -> bool:
    """Takes over what was drawn, up to where a call begins; whether one does."""
    for t, (token, likeliest) in enumerate(zip(result.tokens, result.top_logprobs, strict=True)):
        said = [*one.said, *result.tokens[:t]]
        if said[len(said) - len(start) + 1 :] != start[:-1]:
            continue
        ids = [other for other, _ in likeliest]
        if one.may_call and start[-1] in ids[:top_k]:
            one.said, one.left = said, one.left - t
            return True
        if not one.may_call and token == start[-1]:
            one.said = [*said, next(other for other in ids if other != start[-1])]
            one.left -= t + 1
            one.done = one.left < 1
            return False
    one.said, one.done = [*one.said, *result.tokens], True
    return False


def _call(engine: Engine, writings: Sequence[_Writing], available: dict[str, Tool], max_tokens: int) -> None:
    """Lets the model write its calls, and puts them with their results into the texts; one that fails is its last."""
    tokenizer = _tokenizer(engine)
    start = tokenizer.encode(tools.START)
    stop = (tools.CLOSE, tools.ARROW.rstrip())
    requests = [
        Request([*one.prompt, *one.said, start[-1]], max_tokens, temperature=0.0, stop=stop) for one in writings
    ]
    for one, done in zip(writings, engine.generate(requests), strict=True):
        call = tools.read(done.text) if done.finish == "stop" else None
        result = None if call is None else tools.run(call, available)
        # START's own beginning goes: the call is written with it, and without a call the text goes on as it likes.
        one.said, one.left = one.said[: len(one.said) - len(start) + 1], one.left + len(start) - 1
        if call is None or result is None:
            one.failed, one.may_call = one.failed + 1, 0
        else:
            one.said += tokenizer.encode(tools.write(call, result))
            one.calls, one.may_call = one.calls + 1, one.may_call - 1


def _cut(engine: Engine, said: Sequence[int], stop: Sequence[str]) -> str:
    """The text of some tokens, up to the first stop text."""
    text = _tokenizer(engine).decode(said)
    return text[: min((at for one in stop if (at := text.find(one)) >= 0), default=len(text))]


def _tokenizer(engine: Engine):
    if engine.tokenizer is None:
        raise UserError("without a tokenizer there are no texts to put calls into")
    return engine.tokenizer


def _prefix(engine: Engine, text: str) -> list[int]:
    """Tokens of a text that goes on; at least one."""
    tokenizer = _tokenizer(engine)
    return tokenizer.prompt(text) or [tokenizer.end]


def _seed(seed: int, text: str, at: int, number: int) -> int:
    return int(hashlib.sha256(f"{seed} {at} {number} {text}".encode()).hexdigest()[:8], 16)
