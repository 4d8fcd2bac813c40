"""The one decode loop: sampling, evaluation, alignment and serving all go through it.

An engine holds a fixed block of rows on each device. Requests of any length take rows as they become free
(continuous batching); a prompt is read in chunks of a few fixed lengths, then its row joins the step that
draws one token for every row. So there is one program for steps and a handful for prompts, whatever comes;
and a request's result is the same bits alone, in any company, in any order, in any row, with or without a
kept beginning. (Another number of rows a device, devices that split matrices or, with banded layers, several devices
may round otherwise.)
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from gpt4jax import model
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.inference.candidates import Candidates, Score
from gpt4jax.inference.pool import Chunk, Pool
from gpt4jax.inference.prefix import PrefixCache
from gpt4jax.inference.programs import Rows
from gpt4jax.inference.reader import Reader
from gpt4jax.inference.request import Event, Request, Result
from gpt4jax.inference.sampling import Settings
from gpt4jax.inference.slot import Slot
from gpt4jax.inference.speculative import Draft, SpeculativePool
from gpt4jax.model.cached import CACHE_BLOCK
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import partition

# Tokens of a prompt that are computed at once, and of a kept block; prompts' ends take fewer. It divides CACHE_BLOCK:
# so no kept block goes over the end of a ring.
CHUNK = 128
_SHORTEST = 16

_SETTINGS = {
    "temperature": np.float32, "top_k": np.int32, "top_p": np.float32, "min_p": np.float32,
    "repetition_penalty": np.float32, "seed": np.uint32,
}  # fmt: skip
_IDLE = Request([0], max_tokens=1, temperature=0.0)


class Engine:
    """Serves requests with one model.

    Args:
        config, params: the decoder, as `model.init`, a checkpoint or `weights.load` give it.
        tokenizer: for texts, stop texts and end tokens, and for which ids may be drawn; None: ids only.
        rows: requests that are decoded at once on each device (or group of devices that split a row).
        max_len: tokens of prompt and continuation together (of texts to score: always max_seq_len). 0: max_seq_len.
            The cache has `rows` times as many in each layer; in one of "banded:W" no more than W - 1 and a chunk
            (`model.cache_bytes`).
        weights: "" as they are, "float32", "bfloat16" or "int8" (`prepare`).
        mesh: rows over data and fsdp, and matrices as in training; None: one device.
        prefix_bytes: of host memory for the beginnings of prompts; 0: none are kept.
        consume: frees `params` as they are laid out anew.
        draft: a small model that guesses tokens for this one (`speculative`): fewer passes, the same distribution.

    Raises:
        ValueError: a Transformer-XL, sizes or a type that can't be, a draft of another vocabulary, a mesh that doesn't
            divide the model.
    """

    def __init__(
        self,
        config: model.Config,
        params: Params,
        *,
        tokenizer: Tokenizer | None = None,
        rows: int = 8,
        max_len: int = 0,
        weights: str = "",
        mesh: Mesh | None = None,
        prefix_bytes: int = 2**28,
        consume: bool = False,
        draft: Draft | None = None,
    ):
        if config.position == "transformer_xl":
            raise ValueError(
                "this engine decodes with a KV cache, and a transformer_xl decoder carries a memory instead: it can be "
                "trained and evaluated, not sampled from"
            )
        if rows < 1 or not 0 <= max_len <= config.max_seq_len:
            raise ValueError(f"rows is {rows}, max_len {max_len}; at least 1, and at most {config.max_seq_len}")
        self.config, self.tokenizer = config, tokenizer
        self.max_len = max_len or config.max_seq_len
        self._chunk = min(CHUNK, 1 << (config.max_seq_len.bit_length() - 1))
        # Of prompts with images: an image is read all at once.
        self._image_chunk = 0
        if config.vision is not None:
            self._image_chunk = max(self._chunk, 1 << (config.vision.longest - 1).bit_length())
        if mesh is not None:
            partition.check_parameters(config, mesh)
        self._pool = self._make_pool(params, draft, rows=rows, mesh=mesh, weights=weights, consume=consume)
        self._reader: Reader | None = None  # which has a cache of its own
        self._tokens_scored = 0  # by readers that were too short
        self._prefixes = PrefixCache(self._chunk, prefix_bytes)
        self._slots: list[Slot | None] = [None] * self._pool.rows
        self._waiting: deque[Slot] = deque()
        self._events: dict[int, list[Event]] = {}  # of each request, until they are asked for
        self._submitted = 0
        self.passes = 0  # of the model over all rows: what decoding takes its time for

    def _make_pool(self, params: Params, draft: Draft | None, **options: Any) -> Pool:
        config = self.config
        guesses = 0 if draft is None else draft.tokens
        whole = max(self._chunk, self._image_chunk, CACHE_BLOCK)  # chunks and blocks, so that none reaches past the end
        options["length"] = -(-(self.max_len + guesses) // whole) * whole  # the last guesses may be too many
        # What may be written past a row's end: a chunk with its padding, or a token and guesses, all or none kept.
        options["append"] = max(self._chunk, self._image_chunk, guesses + 1)
        options["vocab_size"] = config.vocab_size if self.tokenizer is None else self.tokenizer.vocab_size
        if config.vision is not None:  # an image's tokens come last, and nobody draws them
            options["vocab_size"] = min(options["vocab_size"], config.vision.image_token - 1)
        large = options | dict(config=config, params=params)
        if draft is None:
            return Pool(**large)
        small = options | dict(config=draft.config, params=draft.params, weights=draft.weights)
        return SpeculativePool(large, small, draft.tokens)

    def generate(self, requests: Iterable[Request]) -> list[Result]:
        """The results of all requests, in their order. Those submitted by others run on beside them.

        Raises:
            UserError: one that does not fit; then none is begun.
        """
        slots = [self._checked(request) for request in requests]
        events: dict[int, list[Event]] = {self._enqueue(slot): [] for slot in slots}
        unfinished = set(events)
        try:
            while unfinished:
                self.tick()
                for number in list(unfinished):
                    events[number] += self.poll(number)
                    if events[number] and events[number][-1].finish:
                        unfinished.remove(number)
        finally:
            for number in unfinished:
                self.cancel(number)
        return [slot.result(events[slot.number]) for slot in slots]

    def stream(self, request: Request) -> Iterator[Event]:
        """One request's events as they come, and one that says nothing after each tick that brought none.

        Closing the iterator ends the request.
        """
        number = self.submit(request)
        try:
            while True:
                self.tick()
                for event in self.poll(number) or [Event(number)]:
                    yield event
                    if event.finish:
                        return
        finally:
            self.cancel(number)

    def score(self, items: Sequence[Candidates]) -> Iterator[tuple[int, list[Score]]]:
        """Each item's number and the scores of its texts, as they come; what texts begin with is read once.

        An item's scores are a function of the item alone, to the last bit.

        Raises:
            UserError: a text that does not fit; then none is begun.
        """
        for item in items:
            for text in item.texts:
                self._check(text, 0, self.config.max_seq_len)
        longest = max((len(text) for item in items for text in item.texts), default=1)
        if self._reader is None or longest > self._reader.max_len:
            self._tokens_scored = self.tokens_scored
            # By powers of two: a longer row is another program.
            self._reader = Reader(self._pool, min(1 << (longest - 1).bit_length(), self.config.max_seq_len))
        return self._reader.score(items)

    @property
    def rows(self) -> int:
        """Requests that are decoded at once, on all devices together."""
        return self._pool.rows

    @property
    def tokens_scored(self) -> int:
        """Tokens that were read to score candidates so far, padding included: what the time goes with."""
        return self._tokens_scored + (0 if self._reader is None else self._reader.tokens_read)

    def loglikelihood(self, pairs: Iterable[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """For each (context, continuation): the continuation's log probability, and whether greedy choice gives it.

        Raises:
            UserError: a context without tokens: begin it with the tokenizer's `start`.
        """
        items = [Candidates(((*before, *after),), (len(before),), shared=len(before)) for before, after in pairs]
        scores: list[tuple[float, bool]] = [(0.0, True)] * len(items)
        for i, (one,) in self.score(items):
            scores[i] = one.logprob, one.greedy
        return scores

    def update(self, params: Params) -> None:
        """Goes on with other parameters of the same decoder; what is kept of prompts is forgotten.

        Raises:
            ValueError: requests are running, or a draft model guesses for this one.
        """
        if self._waiting or any(slot is not None for slot in self._slots):
            raise ValueError("requests are running: an answer is by one set of parameters")
        if isinstance(self._pool, SpeculativePool):
            raise ValueError("a draft model guesses for this engine's: its parameters stay as they are")
        self._pool.update(params)
        self._tokens_scored, self._reader = self.tokens_scored, None
        self._prefixes = PrefixCache(self._prefixes.size, self._prefixes.max_bytes)

    def warm_up(self) -> None:
        """Compiles every program there is, so that no request waits for one."""
        size = min(_SHORTEST, self._chunk)
        while size <= self._chunk:
            longest = min(size, self.max_len - 2)  # of what is read before the first step
            if longest > size // 2:
                for _ in range(2):  # the second time it begins with a kept block
                    self.generate([Request([0] * (longest + 1), 1, temperature=0.0, repetition_penalty=2.0)])
            size *= 2
        self.generate([Request([0], 1, temperature=0.0)])

    def submit(self, request: Request) -> int:
        """Queues a request and gives its number, by which to `poll` and to `cancel`.

        Raises:
            UserError: it does not fit the model or this engine.
        """
        return self._enqueue(self._checked(request))

    def poll(self, number: int) -> list[Event]:
        """A request's events since the last time; after its last one it is forgotten."""
        events = self._events.pop(number, None)
        if events is None:
            return []
        if not events or not events[-1].finish:
            self._events[number] = []
        return events

    def cancel(self, number: int) -> None:
        """Drops a request; nothing happens if it is over."""
        self._events.pop(number, None)
        self._waiting = deque(slot for slot in self._waiting if slot.number != number)
        self._slots = [None if slot is not None and slot.number == number else slot for slot in self._slots]

    def tick(self) -> None:
        """Gives free rows to waiting requests, reads a chunk of a prompt, and draws a token for each row that can.

        A step costs the same however few rows it serves: as long as more than a quarter of the busy rows still read,
        there is none. Then it is a chunk of one prompt a step, and nobody waits long for the next token.
        """
        self._admit()
        events = self._read_prompts()
        if 3 * self._count("reading") <= self._count("draws"):
            events += self._draw()
        for event in events:
            self._events[event.request].append(event)
        over = {event.request for event in events if event.finish}
        self._slots = [None if slot is not None and slot.number in over else slot for slot in self._slots]

    def _count(self, what: str) -> int:
        return sum(slot is not None and getattr(slot, what) for slot in self._slots)

    def _checked(self, request: Request) -> Slot:
        self._check(request.prompt, request.max_tokens, self.max_len)
        if request.stop and self.tokenizer is None:
            raise UserError("stop texts need a tokenizer: give the engine one, or stop_ids to the request")
        self._check_images(request)
        return Slot(request, self.tokenizer, -1 if self.config.vision is None else self.config.vision.image_token)

    def _check_images(self, request: Request) -> None:
        vision = self.config.vision
        if request.images is None:
            if vision is not None and vision.image_token in request.prompt:
                raise UserError("the prompt has tokens of images, and no images came with it")
            return
        if vision is None or isinstance(self._pool, SpeculativePool):
            raise UserError(
                "this model takes no images: it was trained on text alone"
                if vision is None
                else "with a draft model there are no images: it sees none"
            )
        asked = sum(token == vision.image_token for token in request.prompt)
        _, patches = np.unique(request.images.image_bp[request.images.image_bp > 0], return_counts=True)
        given = sum(vision.image_len(int(count)) for count in patches)
        if asked != given:
            raise UserError(f"the prompt has {asked} tokens of images, and its images are {given}")

    def _check(self, tokens: Sequence[int], more: int, limit: int) -> None:
        if len(tokens) + more > limit:
            whose = "model's max_seq_len" if limit == self.config.max_seq_len else "engine's max_len"
            raise UserError(f"a prompt of {len(tokens)} tokens and {more} more exceed the {whose} {limit}")
        strange = [token for token in tokens if not 0 <= token < self.config.vocab_size]
        if strange:
            raise UserError(f"the prompt has the token {strange[0]}; ids lie in [0, {self.config.vocab_size})")

    def _enqueue(self, slot: Slot) -> int:
        slot.number = self._submitted
        self._submitted += 1
        self._waiting.append(slot)
        self._events[slot.number] = []
        return slot.number

    def _admit(self) -> None:
        for row, slot in enumerate(self._slots):
            if slot is None and self._waiting:
                self._slots[row] = slot = self._waiting.popleft()
                if slot.request.repetition_penalty != 1:
                    self._pool.see(row, slot.prompt)

    def _read_prompts(self) -> list[Event]:
        """One chunk for a row of each part of the pool, all of one length; other rows wait for a later tick.

        The oldest request comes first, and says the length.
        """
        reading = [
            (slot.number, row, slot) for row, slot in enumerate(self._slots) if slot is not None and slot.reading
        ]
        now: dict[int, tuple[int, Slot]] = {}
        kind: tuple[int, bool] | None = None  # the length, and whether there are images: that is another program
        for _, row, slot in sorted(reading, key=lambda item: item[0]):
            if self._pool.part(row) in now:
                continue
            images = slot.request.images
            if images is None:
                self._reuse(row, slot)
            own = self._chunk_size(slot), images is not None
            if slot.reading and kind in (None, own):
                if images is not None and slot.embeddings is None:
                    slot.embeddings = self._pool.embed(images)
                kind = own
                now[self._pool.part(row)] = row, slot
        if kind is None:
            return []
        size, _ = kind
        counts = {row: slot.within_images(size) for row, slot in now.values()}
        chunks = {
            row: Chunk(
                slot.done, slot.inputs[slot.done : slot.done + counts[row]], slot.targets(counts[row]),
                slot.images(counts[row]),
            )
            for row, slot in now.values()
        }  # fmt: skip
        scores = self._pool.read(chunks, size)
        events = []
        for row, slot in now.values():
            events += slot.read(counts[row], scores.get(row))
            whole = slot.inputs[: slot.done]
            of_text = slot.request.images is None  # an image's tokens don't say which it is
            # Not padded: they end with a whole block.
            if of_text and counts[row] == self._chunk and self._prefixes.wants(whole):
                self._prefixes.put(whole, self._pool.read_block(row, slot.done - size, size))
        return events

    def _reuse(self, row: int, slot: Slot) -> None:
        """Takes over the kept blocks that come next, if the row stands at the beginning of one."""
        first, rest = divmod(slot.done, self._chunk)
        if not rest:
            for block in self._prefixes.find(slot.inputs, slot.unscored // self._chunk)[first:]:
                self._pool.write_block(row, slot.done, block)
                slot.done += self._chunk

    def _chunk_size(self, slot: Slot) -> int:
        rest = len(slot.inputs) - slot.done
        most = self._chunk if slot.request.images is None else self._image_chunk
        return most if rest >= most else max(min(_SHORTEST, most), 1 << (rest - 1).bit_length())

    def _draw(self) -> list[Event]:
        drawing = {row: slot for row, slot in enumerate(self._slots) if slot is not None and slot.draws}
        if not drawing:
            return []
        drawn = self._pool.draw(self._rows(drawing))
        self.passes += 1
        events = []
        for row, slot in drawing.items():
            n = slot.request.top_logprobs
            for t in range(drawn.count_b[row]):
                likeliest = drawn.top_id_btn[row, t, :n].tolist(), drawn.top_logprob_btn[row, t, :n].tolist()
                tops = tuple(zip(*likeliest, strict=True))
                events.append(slot.take(int(drawn.token_bt[row, t]), float(drawn.logprob_bt[row, t]), tops))
                if events[-1].finish:
                    break
        return events

    def _rows(self, drawing: dict[int, Slot]) -> Rows:
        """What the step is told. Rows that don't draw are computed too; what they write is written over later."""
        requests = [drawing[row].request if row in drawing else _IDLE for row in range(len(self._slots))]

        def each(value: Callable[[Slot], int]) -> Any:
            return np.array([0 if slot is None else value(slot) for slot in self._slots], np.int32)

        def asked(name: str, dtype: type) -> Any:
            return np.array([getattr(request, name) for request in requests], dtype)

        return Rows(
            token_b=each(lambda slot: slot.token),
            length_b=each(lambda slot: slot.done),
            index_b=each(lambda slot: slot.drawn),
            draws_b=each(lambda slot: slot.draws) > 0,
            top_logprobs_b=asked("top_logprobs", np.int32),
            settings=Settings(*(asked(name, dtype) for name, dtype in _SETTINGS.items())),
        )
