"""Calls put to a model: their texts as tokens, shots that fit, and outputs as they come."""

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.evals.calls import Call, Choose, Chosen, Generated, Output
from gpt4jax.inference import Candidates, Engine, Event, Request, chat

BATCH = 256  # calls that are put into tokens at once, at least


class TooLong(NamedTuple):
    """Stands for the output of a call that does not fit the context window, even without shots."""

    tokens: int
    limit: int


class Prepared(NamedTuple):
    """A call as the engine takes it, and how many shots were dropped."""

    asked: Candidates | Request
    dropped: int


def key(call: Call) -> str:
    """What an output is kept under: a hash of all that the call says."""
    said = {"kind": type(call).__name__, **dataclasses.asdict(call)}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()[:32]


def _batches(calls: Sequence[Call]) -> list[list[int]]:
    """Numbers of calls that are put into tokens together, so that the first are answered before all are read.

    Choices behind the same shots stay together; texts to be written are one batch, as they fill each other's gaps.
    """
    groups: dict[tuple[str, ...], list[int]] = {}
    written = []
    for i, call in enumerate(calls):
        if isinstance(call, Choose):
            groups.setdefault((call.header, *call.shots), []).append(i)
        else:
            written.append(i)
    batches: list[list[int]] = []
    for group in groups.values():
        if batches and len(batches[-1]) < BATCH:
            batches[-1] += group
        else:
            batches.append(group)
    return [*batches, *([written] if written else [])]


class Asker:
    """Puts calls to an engine.

    Args:
        engine: with its tokenizer. Texts to score may be as long as the model's window, others as the engine's.
        template: for chats; None: the model has none.
        batch_size: generations that are in flight at once, at most the engine's rows. It changes nothing but the time.
        seed: of all draws. A draw is a function of it and the call.

    Raises:
        UserError: more at once than the engine has rows.
    """

    def __init__(self, engine: Engine, template: chat.Template | None, batch_size: int, seed: int = 0):
        if engine.tokenizer is None:
            raise UserError("without a tokenizer there are no texts to ask about")
        if not 1 <= batch_size <= engine.rows:
            raise UserError(f"the batch size is {batch_size}; it must be from 1 to {engine.rows}, the engine's rows")
        self._engine, self._template, self._batch_size, self._seed = engine, template, batch_size, seed
        self._tokenizer: Tokenizer = engine.tokenizer
        self._prefixes: dict[str, list[int]] = {}

    def ask(self, calls: Sequence[Call]) -> Iterator[tuple[int, Output | TooLong]]:
        """Each call's number and output, as they come.

        Raises:
            UserError: a chat, and the model has no template.
        """
        for numbers in _batches(calls):
            prepared: dict[int, Prepared] = {}
            for i in numbers:
                found = self.prepare(calls[i])
                if isinstance(found, TooLong):
                    yield i, found
                else:
                    prepared[i] = found
            yield from self._choose({i: call for i, call in prepared.items() if isinstance(call.asked, Candidates)})
            yield from self._generate({i: call for i, call in prepared.items() if isinstance(call.asked, Request)})

    def prepare(self, call: Call) -> Prepared | TooLong:
        """The call in tokens, with as many of its shots as fit: the last ones go first, as Hendrycks et al. do it."""
        limit = self._engine.config.max_seq_len if isinstance(call, Choose) else self._engine.max_len
        for kept in range(len(call.shots), -1, -1):
            asked, tokens = self._tokens(dataclasses.replace(call, shots=call.shots[:kept]))
            if tokens <= limit:
                return Prepared(asked, len(call.shots) - kept)
        return TooLong(tokens, limit)

    def _tokens(self, call: Call) -> tuple[Candidates | Request, int]:
        """The call as it is, and the tokens that it takes."""
        if isinstance(call, Choose):
            candidates = self._candidates(call)
            return candidates, max(map(len, candidates.texts))
        if isinstance(call.prompt, str):
            ids = self._tokenizer.prompt(call.header + "".join(call.shots) + call.prompt)
        else:
            if self._template is None:
                raise UserError("this model has no chat template: it can't be asked in messages")
            messages = [chat.Message(role=role, content=content) for role, content in call.prompt]
            ids = chat.encode(self._template, self._tokenizer, messages)
        settings = dict(temperature=call.temperature, top_k=call.top_k, top_p=call.top_p, stop=call.stop)
        seed = int(hashlib.sha256(f"{self._seed} {key(call)}".encode()).hexdigest()[:8], 16)
        ids = ids or [self._tokenizer.end]
        return Request(ids, call.max_tokens, seed=seed, **settings), len(ids) + call.max_tokens  # type: ignore[arg-type]

    def _candidates(self, call: Choose) -> Candidates:
        """Each choice is what the whole text has behind as many tokens as the context alone takes.

        White space at the context's end counts as the choice's: in most vocabularies a space belongs to the word behind
        it. That is lm-evaluation-harness's convention, so that log likelihoods can be compared. If there is no context,
        and the tokenizer begins texts with nothing, the end of text stands before (the harness: `bos_token`).
        """
        prefix = call.header + "".join(call.shots)
        context = (prefix + call.context).rstrip()
        spaces = (prefix + call.context)[len(context) :]
        start = list(self._tokenizer.start) or ([] if context else [self._tokenizer.end])
        before, *wholes = self._tokenizer.encode_batch([context, *(context + spaces + one for one in call.choices)])
        texts = tuple(tuple(start + whole) for whole in wholes)
        # A choice may be swallowed by the context's last token: then that token is scored.
        froms = tuple(max(min(len(start) + len(before), len(text) - 1), 1) for text in texts)
        return Candidates(texts, froms, shared=self._shared(prefix, texts[0]))

    def _shared(self, prefix: str, text: tuple[int, ...]) -> int:
        """How many tokens of a text belong to what other calls begin with too."""
        if prefix not in self._prefixes:
            self._prefixes = {prefix: self._tokenizer.prompt(prefix)} if prefix else {prefix: []}
        known = self._prefixes[prefix]
        return next(
            (i for i, (a, b) in enumerate(zip(known, text, strict=False)) if a != b), min(len(known), len(text))
        )

    def _choose(self, calls: Mapping[int, Prepared]) -> Iterator[tuple[int, Chosen]]:
        numbers = list(calls)
        items = [call.asked for call in calls.values() if isinstance(call.asked, Candidates)]
        for i, scores in self._engine.score(items):
            logprobs, greedy = zip(*scores, strict=True)
            counts = [len(text) - start for text, start in zip(items[i].texts, items[i].score_from, strict=True)]
            yield numbers[i], Chosen(logprobs, greedy, tuple(counts), calls[numbers[i]].dropped)

    def _generate(self, calls: Mapping[int, Prepared]) -> Iterator[tuple[int, Generated]]:
        waiting = [(i, call.asked) for i, call in calls.items() if isinstance(call.asked, Request)][::-1]
        running: dict[int, tuple[int, list[Event]]] = {}
        try:
            while waiting or running:
                while waiting and len(running) < self._batch_size:
                    i, request = waiting.pop()
                    running[self._engine.submit(request)] = i, []
                self._engine.tick()
                for number, (i, events) in list(running.items()):
                    events += self._engine.poll(number)
                    if events and events[-1].finish:
                        del running[number]
                        text, logprob = "".join(e.text for e in events), sum(e.logprob for e in events)
                        yield i, Generated(text, events[-1].finish, logprob, calls[i].dropped)
        finally:
            for number in running:
                self._engine.cancel(number)
