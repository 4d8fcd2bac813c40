"""What people say about answers, as rows of tokens: demonstrations, ranked answers, prompts.

Each is a line of JSON:

    {"messages": [{"role": "user", "content": TEXT}, {"role": "assistant", "content": TEXT}]}    a demonstration
    {"messages": [... up to the user's], "responses": [TEXT, ...], "ranks": [0, 1, ...]}         ranked answers
    {"messages": [... up to the user's]}                                                         a prompt

Of ranks the smaller is the better, equal ones are ties. With "prompt": TEXT in place of the messages (and "response":
TEXT for a demonstration) there is no chat template between the two.
"""

import functools
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt4jax import files
from gpt4jax.align import reward
from gpt4jax.data import packing
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.inference import chat

Row = Mapping[str, Any]


class Encoded(NamedTuple):
    """Tokens, and which of them are to be learnt."""

    tokens: list[int]
    learnt: list[bool]


class Ranked(NamedTuple):
    """A prompt's tokens, its answers' (each with its end), and their ranks."""

    prompt: list[int]
    answers: list[list[int]]
    ranks: list[int]


class TooLongError(Exception):
    """An example that does not fit, in words."""


def read(path: files.Path) -> list[dict[str, Any]]:
    """The lines of a file.

    Raises:
        UserError: there is none, or a line is no object of JSON.
    """
    text = files.text(path)
    if text is None:
        raise UserError(f"there is no file {path}")
    rows = []
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would also split at characters in texts
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}, line {number}: no JSON ({error})") from error
        if not isinstance(row, dict):
            raise UserError(f"{path}, line {number}: {line[:40]!r} is no object")
        rows.append(row)
    if not rows:
        raise UserError(f"{path} is empty")
    return rows


def prompt_key(row: Row) -> str:
    """A hash of a row's prompt: the messages before the last answer, or the text."""
    if "messages" in row:
        messages = row["messages"]
        said = messages[:-1] if messages and messages[-1].get("role") == "assistant" else messages
    else:
        said = row.get("prompt")
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def split(rows: Sequence[Row], share: float) -> tuple[list[Row], list[Row]]:
    """Those to train on, and those held out: all rows of a share of the prompts, by the prompts' hashes.

    A source may say so itself: "held_out" of its rows.
    """
    held = [bool(row.get("held_out", int(prompt_key(row)[:8], 16) < share * 2**32)) for row in rows]
    return (
        [row for row, out in zip(rows, held, strict=True) if not out],
        [row for row, out in zip(rows, held, strict=True) if out],
    )


class Encoder:
    """Rows as tokens.

    Args:
        tokenizer: of the decoder.
        template: for messages; None: there is none.
        seq_len: tokens of prompt and answer together, at most.
        max_response: tokens of an answer, its end among them, at most.
        cut: longer answers end there, without an end, as those of a policy do; False: they are an error.
    """

    def __init__(
        self, tokenizer: Tokenizer, template: chat.Template | None, seq_len: int, max_response: int, cut: bool = False
    ):
        self.tokenizer, self._template, self._cut = tokenizer, template, cut
        self._seq_len, self._max_response = seq_len, max_response

    def prompt(self, row: Row) -> list[int]:
        """The tokens that an answer follows.

        Raises:
            UserError: neither messages nor a prompt; messages without a template; a last message of the assistant.
        """
        if "messages" in row:
            messages = self._messages(row)
            if messages[-1]["role"] == "assistant":
                raise UserError("the messages end with the assistant's: there is nothing to answer")
            return chat.encode(self._chat_template(), self.tokenizer, messages)
        return self.tokenizer.prompt(_text(row, "prompt")) or [self.tokenizer.end]

    def answer(self, row: Row, text: str) -> list[int]:
        """The tokens of an answer to a row's prompt, with its end: as a policy would say it, the text by itself.

        Raises:
            UserError: an empty one.
            TooLongError: more than max_response tokens, unless they are cut.
        """
        if not isinstance(text, str) or not (text.strip() or "prompt" in row):
            raise UserError("a response is empty" if isinstance(text, str) else f"a response is {text!r}, no text")
        tokens = [*self.tokenizer.encode(text), self._end if "messages" in row else self.tokenizer.end]
        if self._cut:
            return tokens[: self._max_response]
        if len(tokens) > self._max_response:
            raise TooLongError(
                f"a response has {len(tokens)} tokens with its end; max_response is {self._max_response}"
            )
        return tokens

    def fits(self, prompt: list[int], more: int) -> list[int]:
        """The prompt.

        Raises:
            TooLongError: it and so many tokens more exceed seq_len.
        """
        if len(prompt) + more > self._seq_len:
            raise TooLongError(f"a prompt of {len(prompt)} tokens and {more} more exceed data.seq_len {self._seq_len}")
        return prompt

    def demonstration(self, row: Row) -> Encoded:
        """A text or conversation, of which the answers are to be learnt.

        Raises:
            UserError: as `prompt` and `answer`; a conversation without an answer.
            TooLongError: it exceeds seq_len, or an answer max_response.
        """
        tokens: list[int] = []
        learnt: list[bool] = []
        for before, text in self.turns(row):
            prompt = self.prompt(before)
            tokens, learnt = _extended(tokens, learnt, prompt)
            answer = self.answer(before, text)
            tokens, learnt = [*tokens, *answer], [*learnt, *[True] * len(answer)]
        self.fits(tokens, 0)
        return Encoded(tokens, learnt)

    def ranked(self, row: Row, most: int) -> Ranked:
        """A prompt with ranked answers, the first `most` of them.

        Raises:
            UserError: as `prompt` and `answer`; ranks that are not one number for each; fewer than two; all alike.
            TooLongError: an answer, or a prompt with one.
        """
        responses, ranks = row.get("responses"), row.get("ranks")
        if not isinstance(responses, list) or not isinstance(ranks, list) or len(responses) != len(ranks):
            raise UserError('"responses" and "ranks" must be lists of the same length')
        if not all(isinstance(rank, int) and not isinstance(rank, bool) and rank >= 0 for rank in ranks):
            raise UserError(f"ranks are {ranks}; they must be whole numbers, at least 0")
        try:
            reward.check_ranks(np.array([ranks[:most]]))
        except ValueError as error:
            raise UserError(str(error).removeprefix("prompt 0").lstrip(" :")) from error
        prompt = self.prompt(row)
        answers = [self.answer(row, text) for text in responses[:most]]
        return Ranked(self.fits(prompt, max(map(len, answers))), answers, ranks[:most])

    def turns(self, row: Row) -> list[tuple[Row, str]]:
        """Each answer of a demonstration, and the row of what comes before it."""
        if "messages" not in row:
            return [({"prompt": _text(row, "prompt")}, _text(row, "response"))]
        messages = self._messages(row)
        turns: list[tuple[Row, str]] = [
            ({"messages": messages[:i]}, message["content"])
            for i, message in enumerate(messages)
            if message["role"] == "assistant"
        ]
        if not turns:
            raise UserError("the messages have none of the assistant's to learn from")
        return turns

    def _messages(self, row: Row) -> list[chat.Message]:
        messages = row["messages"]
        if not isinstance(messages, list):
            raise UserError(f'"messages" is {str(messages)[:40]!r}, no list')
        chat.check(messages)
        return messages

    def _chat_template(self) -> chat.Template:
        if self._template is None:
            raise UserError(
                'the decoder has no chat template for "messages": give one with --config.chat_template=FILE'
            )
        return self._template

    @functools.cached_property
    def _end(self) -> int:
        """The token that the template ends an answer with; it may write a new line behind it."""
        asked = [chat.Message(role="user", content="?")]
        said = [*asked, chat.Message(role="assistant", content="!")]
        whole = chat.encode(self._chat_template(), self.tokenizer, said, add_generation_prompt=False)
        for token in _behind(self.prompt({"messages": asked}), whole):
            if token in self.tokenizer.stops:
                return token
        raise UserError("the chat template writes no token behind an answer that ends it")


def _text(row: Row, key: str) -> str:
    if not isinstance(row.get(key), str):
        raise UserError(f'there is no text "{key}"')
    return row[key]


def _behind(prompt: list[int], whole: list[int]) -> list[int]:
    if whole[: len(prompt)] != prompt:
        raise UserError(
            "the chat template writes a conversation otherwise once it is answered: it can't be learnt from"
        )
    return whole[len(prompt) :]


def _extended(tokens: list[int], learnt: list[bool], prompt: list[int]) -> tuple[list[int], list[bool]]:
    """The conversation so far, up to the next answer."""
    new = _behind(tokens, prompt)
    return [*tokens, *new], [*learnt, *[False] * len(new)]


class Kept(NamedTuple):
    """Examples as tokens, and how many did not fit."""

    examples: list[Any]
    dropped: int


def encode_all(rows: Sequence[Row], encode, too_long: str, what: str) -> Kept:
    """All rows by `encode`.

    Raises:
        UserError: what is wrong with a row, and which one it is; with `too_long` "error" one that does not fit, too.
    """
    kept, dropped = [], 0
    for number, row in enumerate(rows, 1):
        try:
            kept.append(encode(row))
        except TooLongError as error:
            if too_long == "error":
                raise UserError(f'{what}, row {number}: {error} (too_long="drop" leaves it out)') from error
            dropped += 1
        except UserError as error:
            raise UserError(f"{what}, row {number}: {error}") from error
    if not kept:
        raise UserError(f"{what}: of {len(rows)} rows none is left")
    return Kept(kept, dropped)


class PackedDemonstrations:
    """Rows of `seq_len` pairs of a token and the next, several demonstrations in each; -1 where it is not learnt."""

    def __init__(self, examples: Sequence[Encoded], token_bytes: np.ndarray, seq_len: int):
        self._examples, self._bytes, self._seq_len = examples, token_bytes, seq_len
        self._groups = packing.best_fit(np.array([len(one.tokens) - 1 for one in examples]), seq_len)

    def __len__(self) -> int:
        return len(self._groups)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        out = {name: np.zeros(self._seq_len, np.int32) for name in ("tokens", "segment_ids", "positions", "bytes")}
        out["targets"] = np.full(self._seq_len, -1, np.int32)
        at = 0
        for segment, number in enumerate(self._groups[index], 1):
            tokens, learnt = np.array(self._examples[number].tokens, np.int32), np.array(self._examples[number].learnt)
            place = slice(at, at + len(tokens) - 1)
            out["tokens"][place], out["segment_ids"][place] = tokens[:-1], segment
            out["positions"][place] = np.arange(len(tokens) - 1)
            out["targets"][place] = np.where(learnt[1:], tokens[1:], -1)
            out["bytes"][place] = np.where(learnt[1:], self._bytes[tokens[1:]], 0)
            at += len(tokens) - 1
        return out


def answer_row(prompt: Sequence[int], answers: Sequence[Sequence[int]], count: int, length: int) -> dict[str, Any]:
    """A prompt with up to `count` answers, as `answers.Answers` has it: tokens (K, T), start and length (K,).

    Where there are fewer: answers without a token.
    """
    tokens, lengths = np.zeros((count, length), np.int32), np.zeros(count, np.int32)
    for i, answer in enumerate(answers):
        tokens[i, : len(prompt)], tokens[i, len(prompt) : len(prompt) + len(answer)] = prompt, answer
        lengths[i] = len(answer)
    starts = np.where(lengths > 0, len(prompt), 1).astype(np.int32)
    return {"tokens": tokens, "start": starts, "length": lengths}


def ranked_row(one: Ranked, count: int, length: int) -> dict[str, np.ndarray]:
    """Ranked answers: an `answer_row` with their ranks, `reward.ABSENT` where there are fewer."""
    ranks = np.full(count, reward.ABSENT, np.int32)
    ranks[: len(one.ranks)] = one.ranks
    return {**answer_row(one.prompt, one.answers, count, length), "ranks": ranks}


def pair_rows(one: Ranked, length: int) -> list[dict[str, np.ndarray]]:
    """Every pair of answers of which one is better: rows of the better and the worse one."""
    pairs = [(a, b) for a in range(len(one.ranks)) for b in range(len(one.ranks)) if one.ranks[a] < one.ranks[b]]
    return [answer_row(one.prompt, [one.answers[a], one.answers[b]], 2, length) for a, b in pairs]
