"""One request on its way through the engine: what of it is read, drawn and told."""

import math
from collections.abc import Iterable

import numpy as np

from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.inference.programs import Scores
from gpt4jax.inference.request import Event, Request, Result
from gpt4jax.inference.text import TextStream


class Slot:
    """A request's progress. The engine reads `inputs` into a cache, then draws tokens and hands them to `take`.

    The prompt's last token is not among `inputs`: it is what the first step reads, and so a step is the only
    place where anything is drawn.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer | None, image_token: int = -1):
        self.request = request
        self.embeddings: np.ndarray | None = None  # of its images, once they are asked for
        self._image_token = image_token
        self.number = -1  # the engine's, once it is queued
        self.prompt = np.asarray(request.prompt, np.int32)
        self.done = 0  # tokens in the cache
        self.drawn = 0
        self.token = int(self.prompt[-1])  # the next one to go into the cache
        self._scores = np.zeros(len(self.prompt)), np.zeros(len(self.prompt), bool)
        stops: frozenset[int] = frozenset() if tokenizer is None else tokenizer.stops
        special = {} if tokenizer is None else tokenizer.special  # which have no text to be found in
        named = {special[text] for text in request.stop if text in special}
        self._stop_ids = (stops if request.stop_ids is None else request.stop_ids) | named
        self._text = None if tokenizer is None else TextStream(tokenizer.pieces, request.stop)

    @property
    def inputs(self) -> np.ndarray:
        """The tokens to read before the first step."""
        return self.prompt[:-1]

    @property
    def reading(self) -> bool:
        """Whether some of them are still to be read."""
        return self.done < len(self.inputs)

    @property
    def draws(self) -> bool:
        """Whether the next step draws a token for it."""
        return not self.reading and self.request.max_tokens > 0

    @property
    def unscored(self) -> int:
        """How many of `inputs` may come from a kept beginning: those whose next token nobody wants the score of."""
        return len(self.inputs) if self.request.score_from is None else self.request.score_from - 1

    def within_images(self, size: int) -> int:
        """How many of the next `size` inputs can be read at once: the last of them is not inside an image.

        The longest image must not be longer than that.
        """
        end = min(self.done + size, len(self.inputs))
        inside = end < len(self.inputs) and self.inputs[end] == self._image_token
        while inside and self.inputs[end - 1] == self._image_token:
            end -= 1
        return end - self.done

    def images(self, count: int) -> np.ndarray | None:
        """The embeddings of the image tokens among the next `count` inputs."""
        if self.embeddings is None:
            return None
        first, last = (int(np.sum(self.inputs[:end] == self._image_token)) for end in (self.done, self.done + count))
        return self.embeddings[first:last]

    def targets(self, count: int) -> np.ndarray:
        """The tokens after the next `count` inputs where their scores are wanted, else -1."""
        after = self.prompt[self.done + 1 : self.done + 1 + count]
        wanted = np.arange(self.done, self.done + len(after)) >= self.unscored
        return np.where(wanted & (self.request.score_from is not None), after, -1)

    def read(self, count: int, scores: Scores | None) -> list[Event]:
        """Notes that the next `count` inputs are in the cache, and their scores; the end, if that was all."""
        if scores is not None:
            for kept, new in zip(self._scores, scores, strict=True):
                kept[self.done + 1 : self.done + 1 + count] = new[:count]
        self.done += count
        return [] if self.reading or self.request.max_tokens else [Event(self.number, finish="length")]

    def take(self, token: int, logprob: float, top_logprobs: tuple[tuple[int, float], ...]) -> Event:
        """The event of one drawn token, which is the next to go into the cache."""
        self.done += 1
        self.drawn += 1
        self.token = token
        if math.isnan(logprob):
            raise UserError("the model gives no number for a token's probability: its weights are damaged")
        if token in self._stop_ids:
            return Event(self.number, text=self._text.end() if self._text else "", finish="stop", end=token)
        text = self._text.feed(token) if self._text else ""
        last = self.drawn == self.request.max_tokens
        if self._text and last:
            text += self._text.end()
        finish = "stop" if self._text and self._text.stopped else "length" if last else ""
        return Event(self.number, token, logprob, top_logprobs, text, finish)

    def result(self, events: Iterable[Event]) -> Result:
        """All events of this request put together."""
        told = [event for event in events if event.token is not None]
        from_ = len(self.prompt) if self.request.score_from is None else self.request.score_from
        return Result(
            tokens=tuple(event.token for event in told if event.token is not None),
            text="".join(event.text for event in events),
            finish=next((event.finish for event in events if event.finish), ""),
            logprobs=tuple(event.logprob for event in told),
            top_logprobs=tuple(event.top_logprobs for event in told),
            prompt_logprobs=self._scores[0][from_:],
            prompt_greedy=self._scores[1][from_:],
            end=next((event.end for event in events if event.end is not None), None),
        )
