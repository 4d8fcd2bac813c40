"""What is asked of the engine, and what it answers."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gpt4jax.errors import UserError
from gpt4jax.inference.programs import MAX_TOP_LOGPROBS
from gpt4jax.model.vision import Images

_WHOLE = (
    ("max_tokens", 0, 2**31 - 1), ("top_k", 0, 2**31 - 1), ("seed", 0, 2**32 - 1),
    ("top_logprobs", 0, MAX_TOP_LOGPROBS),
)  # fmt: skip
# Beyond these, float32 would make infinities of ordinary logits.
_REAL: tuple[tuple[str, str, Callable[[float], bool]], ...] = (
    ("temperature", "0 (greedy) or from 0.001 to 1000", lambda x: x == 0 or 1e-3 <= x <= 1e3),
    ("top_p", "above 0 and at most 1", lambda x: 1e-30 <= x <= 1),
    ("min_p", "from 0 to 1", lambda x: 0 <= x <= 1),
    ("repetition_penalty", "from 0.001 to 1000 (1: none)", lambda x: 1e-3 <= x <= 1e3),
)


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to continue, or to score.

    Attributes:
        prompt: token ids, at least one.
        max_tokens: of the continuation, at most; 0 only scores the prompt.
        temperature, top_k, top_p, min_p, repetition_penalty: as `sampling.Settings` has them; temperature 0 is
            greedy. The penalty is on tokens of the prompt and of the continuation.
        seed: of this request's draws. Same request and seed, same tokens, whatever runs beside it.
        stop: texts that end the continuation, which is cut before them.
        stop_ids: ids that end it, and are not part of it; None: the tokenizer's own.
        top_logprobs: how many of the likeliest tokens to tell at each place.
        score_from: log probabilities of prompt[score_from:], each after all tokens before it.
        images: those that the prompt's image tokens stand for, of one row (`images.prompt`).

    Raises:
        UserError: settings that can't be, or that contradict each other.
    """

    prompt: Sequence[int]
    max_tokens: int = 128
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0
    stop: Sequence[str] = ()
    stop_ids: frozenset[int] | None = None
    top_logprobs: int = 0
    score_from: int | None = None
    images: Images | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in ("prompt", "stop"):
            if isinstance(getattr(self, name), str):
                raise UserError(
                    f"{name} is a text; it must be a list of {'token ids' if name == 'prompt' else 'texts'}"
                )
        if not len(self.prompt):
            raise UserError("the prompt has no tokens")
        if np.asarray(self.prompt).dtype.kind not in "iu" or np.ndim(self.prompt) != 1:
            raise UserError("the prompt must be a list of token ids, which are whole numbers")
        for name, low, high in _WHOLE:
            value = getattr(self, name)
            if not isinstance(value, int | np.integer) or not low <= value <= high:
                raise UserError(f"{name} is {value!r}; it must be a whole number from {low} to {high}")
        for name, must, good in _REAL:
            value = getattr(self, name)
            if not isinstance(value, int | float | np.floating) or not good(float(value)):
                raise UserError(f"{name} is {value!r}; it must be {must}")
        if not self.max_tokens and self.score_from is None:
            raise UserError("max_tokens is 0; it must be at least 1, unless the prompt is to be scored")
        cuts = [name for name, off in (("top_k", 0), ("top_p", 1), ("min_p", 0)) if getattr(self, name) != off]
        if self.temperature == 0 and cuts:
            raise UserError(f"temperature 0 is greedy, so there is nothing for {cuts[0]} to cut; set one of them only")
        if any(not text for text in self.stop):
            raise UserError("a stop text is empty")
        if self.score_from is not None and self.score_from not in range(1, len(self.prompt)):
            raise UserError(
                f"score_from is {self.score_from!r}; it must be at least 1, for the first token follows nothing, and "
                f"below the prompt's {len(self.prompt)} tokens"
            )


class Event(NamedTuple):
    """News of a request: a token, some text, or its end. Texts, put together, are the request's text."""

    request: int  # its number: the order of submission
    token: int | None = None  # None: no new token, and for one that ended the text
    logprob: float = 0.0  # of the token, by the model itself: before any sampling setting
    top_logprobs: tuple[tuple[int, float], ...] = ()
    text: str = ""  # what became certain: characters and stop texts may take more tokens to be
    finish: str = ""  # "stop" or "length" on the last event
    end: int | None = None  # of an event that ended with one: the id that did


class Result(NamedTuple):
    """All events of a request, put together."""

    tokens: tuple[int, ...]
    text: str
    finish: str
    logprobs: tuple[float, ...]
    top_logprobs: tuple[tuple[tuple[int, float], ...], ...]
    prompt_logprobs: np.ndarray  # of prompt[score_from:]
    prompt_greedy: np.ndarray  # whether each of those is the likeliest token at its place
    end: int | None = None  # the id that ended it, if one did
