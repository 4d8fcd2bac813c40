"""Hallucinations word by word, without a reference: the format of HADES and its baseline detector.

Liu et al. 2021, "A Token-level Reference-free Hallucination Detection Benchmark for Free-form Text Generation" (arXiv
2104.08704). A row is a text of words between spaces with one span marked, of which humans said whether it is made up:

    {"replaced": "born in yorkshire , he moved to ===dorset=== and married", "replaced_ids": [7, 7], "hallucination": 1}

`replaced_ids` are the first and the last marked word, counted from 0. There are two settings: "online", where the text
is read up to the span's end, as while it is written, and "offline", where all of it is. Measures: `hades_scores`.

The baseline is a frozen model's last hidden states, their maximum over the span's tokens, and behind it a layer of half
the width, sigmoid, and two logits, trained by cross-entropy weighted by class. A causal decoder's states of the span
know nothing of what follows; so offline ours reads beside them the maximum over the states behind the span. That is an
addition of ours, and so are features scaled to mean 0 and deviation 1, in which the sigmoid does not saturate.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from numpy.typing import ArrayLike

from gpt4jax import files, model
from gpt4jax.align import examples
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.parameters import Params

MARK = "==="
CONTEXT = 200  # tokens of a text that are read, as the paper's baselines have it
Setting = Literal["online", "offline"]


class Row(NamedTuple):
    """A text in words, of which those from number `first` to number `last` are the span."""

    words: tuple[str, ...]
    first: int
    last: int
    hallucination: bool

    @property
    def span(self) -> str:
        """The words in question."""
        return " ".join(self.words[self.first : self.last + 1])


def parse(data: Mapping[str, Any]) -> Row:
    """A row of the published format.

    Raises:
        UserError: a key is missing or of the wrong kind; the marks are not around the words that the ids say.
    """
    text, ids, label = data.get("replaced"), data.get("replaced_ids"), data.get("hallucination")
    if not isinstance(text, str):
        raise UserError(f'"replaced" is {text!r}; it must be a text')
    if not isinstance(ids, list) or len(ids) != 2 or any(type(one) is not int for one in ids):
        raise UserError(f'"replaced_ids" is {ids!r}; it must be two whole numbers, the first and the last marked word')
    if type(label) is not int or label not in (0, 1):
        raise UserError(f'"hallucination" is {label!r}; it must be 0 or 1')
    words, (first, last) = text.split(), ids
    if not 0 <= first <= last < len(words):
        raise UserError(f'"replaced_ids" is {ids}, and the text has words 0 to {len(words) - 1}')
    if text.count(MARK) != 2:
        raise UserError(f'"replaced" has {text.count(MARK)} marks {MARK}; it must have two, around one span')
    if not words[first].startswith(MARK) or not words[last].endswith(MARK):
        marked = [i for i, word in enumerate(words) if MARK in word]
        raise UserError(f'"replaced_ids" is {ids}, and the marks are at words {marked[0]} and {marked[-1]}')
    words[first] = words[first].removeprefix(MARK)
    words[last] = words[last].removesuffix(MARK)
    if not words[first] or not words[last]:
        raise UserError(f"{MARK} must stand at the span's words themselves, without a space, and around some")
    return Row(tuple(words), first, last, bool(label))


def line(row: Row) -> dict[str, Any]:
    """A row in the published format; `parse` undoes it."""
    words = list(row.words)
    words[row.first] = MARK + words[row.first]
    words[row.last] += MARK
    text = " ".join(words)
    return {"replaced": text, "replaced_ids": [row.first, row.last], "hallucination": int(row.hallucination)}


def read(path: files.Path) -> list[Row]:
    """The rows of a JSONL file.

    Raises:
        UserError: there is none, or what is wrong with the first wrong row.
    """
    found = []
    for number, data in enumerate(examples.read(path), 1):
        try:
            found.append(parse(data))
        except UserError as error:
            raise UserError(f"{path}, row {number}: {error}") from error
    return found


class Encoded(NamedTuple):
    """Tokens, of which those from `start` to before `end` hold the span; one at least stands before them."""

    tokens: list[int]
    start: int
    end: int


def window(count: int, start: int, end: int, most: int, setting: Setting) -> tuple[int, int]:
    """Which of a text's tokens are read, from one to before another: `most` of them, with the span start..end.

    Online they end with the span; offline it is in their middle, as far as the text reaches.

    Raises:
        ValueError: the span alone is longer, or no part of the text.
    """
    if not 0 <= start < end <= count or end - start > most:
        raise ValueError(f"a span from {start} to {end} of {count} tokens, of which {most} are read")
    if setting == "online":
        return max(end - most, 0), end
    left = min(max((start + end) // 2 - most // 2, 0), max(count - most, 0))
    return left, min(left + most, count)


def encode(row: Row, tokenizer: Tokenizer, setting: Setting, context: int = CONTEXT) -> Encoded:
    """A row as a decoder reads it, behind the token that texts begin with; a token counts as the span's if any part is.

    Raises:
        UserError: the span has more tokens than `context`, or the tokenizer changes the text.
    """
    words = row.words[: row.last + 1] if setting == "online" else row.words
    text = " ".join(words)
    ids = tokenizer.encode(text)
    ends = np.cumsum(tokenizer.token_bytes[ids]) - len(tokenizer.dummy_prefix)
    if ends[-1] != len(text.encode()):
        raise UserError(f"the tokenizer {tokenizer.name} does not keep the text of {row.span!r} as it is")
    end_byte = len(" ".join(words[: row.last + 1]).encode())
    start_byte = end_byte - len(row.span.encode())
    start = int(np.searchsorted(ends, start_byte, side="right"))
    end = int(np.searchsorted(ends, end_byte, side="left")) + 1
    if end - start > context:
        raise UserError(f"the span {row.span[:60]!r} has {end - start} tokens, and {context} of a text are read")
    left, right = window(len(ids), start, end, context, setting)
    begin = list(tokenizer.start) or [tokenizer.end]
    return Encoded([*begin, *ids[left:right]], start - left + len(begin), end - left + len(begin))


class Features(NamedTuple):
    """What a decoder says of spans.

    Attributes:
        span_bd: the maximum over the states of the span's tokens.
        after_bd: ... of those behind it; 0 where there are none.
        logprob_b: the mean log probability of the span's tokens, in nats.
    """

    span_bd: np.ndarray
    after_bd: np.ndarray
    logprob_b: np.ndarray

    def of(self, setting: Setting) -> np.ndarray:
        """What the detector reads: (B, D) online, (B, 2 D) offline."""
        return self.span_bd if setting == "online" else np.concatenate([self.span_bd, self.after_bd], axis=1)


def pooled(x_btd: jax.Array, in_bt: jax.Array) -> jax.Array:
    """The maximum over the places that are in, (B, D); 0 where none is."""
    most_bd = jnp.max(jnp.where(in_bt[:, :, None], x_btd, -jnp.inf), axis=1)
    return jnp.where(jnp.any(in_bt, axis=1)[:, None], most_bd, 0)


@functools.partial(jax.jit, static_argnums=0)
def _features(config: model.Config, params: Params, tokens_bt, start_b, end_b, length_b):
    x_btd = model.features(config, params, tokens_bt)[0]
    place_t = jnp.arange(tokens_bt.shape[1])
    span_bt = (place_t >= start_b[:, None]) & (place_t < end_b[:, None])
    after_bt = (place_t >= end_b[:, None]) & (place_t < length_b[:, None])

    def logprobs(row):  # a row at a time: there is a logit for each token of the vocabulary
        x_td, tokens_t = row
        all_tv = jax.nn.log_softmax(model.unembed(config, params, x_td[None, :-1])[0].astype(jnp.float32))
        return jnp.take_along_axis(all_tv, tokens_t[1:, None], axis=1)[:, 0]

    logprob_bt = jax.lax.map(logprobs, (x_btd, tokens_bt))
    mean_b = jnp.sum(logprob_bt * span_bt[:, 1:], axis=1) / jnp.maximum(end_b - start_b, 1)
    return pooled(x_btd, span_bt), pooled(x_btd, after_bt), mean_b


def features(config: model.Config, params: Params, texts: Sequence[Encoded], *, rows: int = 8) -> Features:
    """The features of spans, of `rows` texts at a time.

    Padding stands behind a text, where a causal decoder has it change nothing.
    """
    found = [np.zeros((len(texts), config.embed_dim), np.float32) for _ in range(2)]
    logprob_b = np.zeros(len(texts), np.float32)
    order = sorted(range(len(texts)), key=lambda i: len(texts[i].tokens))
    for begin in range(0, len(order), rows):
        here = order[begin : begin + rows]
        length = -(-max(len(texts[i].tokens) for i in here) // 64) * 64  # few lengths: each is a program
        tokens_bt = np.zeros((rows, length), np.int32)
        place_3b = np.zeros((3, rows), np.int32)
        for row, i in enumerate(here):
            tokens_bt[row, : len(texts[i].tokens)] = texts[i].tokens
            place_3b[:, row] = texts[i].start, texts[i].end, len(texts[i].tokens)
        for array, value in zip([*found, logprob_b], _features(config, params, tokens_bt, *place_3b), strict=True):
            array[here] = np.asarray(value)[: len(here)]
    return Features(found[0], found[1], logprob_b)


class Detector(NamedTuple):
    """Features, scaled -> H of sigmoid -> two logits, of "consistent" and of "hallucination"."""

    mean_d: jax.Array
    deviation_d: jax.Array
    hidden_dh: jax.Array
    hidden_bias_h: jax.Array
    out_h2: jax.Array
    out_bias_2: jax.Array


def logits(detector: Detector, x_bd: ArrayLike) -> jax.Array:
    """(B, 2)."""
    scaled_bd = (jnp.asarray(x_bd) - detector.mean_d) / detector.deviation_d
    hidden_bh = jax.nn.sigmoid(scaled_bd @ detector.hidden_dh + detector.hidden_bias_h)
    return hidden_bh @ detector.out_h2 + detector.out_bias_2


def probability(detector: Detector, x_bd: ArrayLike) -> np.ndarray:
    """Of each span, that it is a hallucination: float64 (B,)."""
    return np.asarray(jax.nn.softmax(logits(detector, x_bd))[:, 1], np.float64)


def class_weights(gold: ArrayLike) -> np.ndarray:
    """(2,): of each class the share of the other one, so that both count as much.

    Raises:
        ValueError: there is but one class.
    """
    share = float(np.mean(np.asarray(gold, bool))) if np.size(gold) else 0.0
    if not 0 < share < 1:
        raise ValueError(f"the share of hallucinations is {share} of {np.size(gold)} rows: both classes are needed")
    return np.array([share, 1 - share], np.float32)


def loss(logits_b2: jax.Array, gold_b: jax.Array, weight_b: jax.Array) -> jax.Array:
    """The mean cross-entropy in nats of rows that count as much as their weights."""
    right_b = jnp.take_along_axis(jax.nn.log_softmax(logits_b2), gold_b[:, None].astype(int), axis=1)[:, 0]
    return -jnp.sum(weight_b * right_b) / jnp.sum(weight_b)


def fit(
    x_bd: ArrayLike, gold: ArrayLike, *, seed: int = 0, epochs: int = 10, batch_size: int = 8, hidden: int = 0,
    learning_rate: float = 1e-3, weight_decay: float = 1e-5,
) -> Detector:  # fmt: skip
    """A detector by AdamW on shuffled batches; rate, batch and epochs are by default the published baseline's.

    Args:
        x_bd: features.
        gold: whether each is a hallucination.
        seed: of the first parameters and of the order.
        epochs: how often each row is seen.
        batch_size: rows of a step.
        hidden: units; 0: half as many as features.
        learning_rate: of AdamW, constant.
        weight_decay: of AdamW.

    Raises:
        ValueError: there is but one class, or not as many labels as features.
    """
    x_bd, gold_b = np.asarray(x_bd, np.float32), np.asarray(gold, bool)
    if x_bd.ndim != 2 or gold_b.shape != x_bd.shape[:1]:
        raise ValueError(f"features of shape {x_bd.shape} and labels of shape {gold_b.shape}")
    count, width = x_bd.shape
    units = hidden or width // 2
    keys = jax.random.split(jax.random.key(seed), 5)
    first, second = width**-0.5, units**-0.5
    start = Detector(
        jnp.asarray(x_bd.mean(axis=0)), jnp.asarray(x_bd.std(axis=0) + 1e-6),
        jax.random.uniform(keys[0], (width, units), minval=-first, maxval=first),
        jax.random.uniform(keys[1], (units,), minval=-first, maxval=first),
        jax.random.uniform(keys[2], (units, 2), minval=-second, maxval=second),
        jax.random.uniform(keys[3], (2,), minval=-second, maxval=second),
    )  # fmt: skip
    # Each row once an epoch; where the last batch is short, rows without weight fill it.
    steps = -(-count // batch_size)
    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(jax.random.split(keys[4], epochs))
    rows_sb = jnp.pad(orders, ((0, 0), (0, steps * batch_size - count))).reshape(-1, batch_size)
    here_sb = jnp.tile(jnp.arange(steps * batch_size).reshape(steps, batch_size) < count, (epochs, 1))
    weight_b = jnp.asarray(class_weights(gold_b))[gold_b.astype(int)]
    return _trained(start, jnp.asarray(x_bd), jnp.asarray(gold_b), weight_b, rows_sb, here_sb, learning_rate,
                    weight_decay)  # fmt: skip


@jax.jit
def _trained(start, x_bd, gold_b, weight_b, rows_sb, here_sb, learning_rate, weight_decay):
    optimizer = optax.adamw(learning_rate, weight_decay=weight_decay)
    scale, params = start[:2], start[2:]

    def step(carry, batch):
        params, state = carry
        rows_b, here_b = batch
        gradient = jax.grad(
            lambda params: loss(
                logits(Detector(*scale, *params), x_bd[rows_b]), gold_b[rows_b], weight_b[rows_b] * here_b
            )
        )(params)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    (params, _), _ = jax.lax.scan(step, (params, optimizer.init(params)), (rows_sb, here_sb))
    return Detector(*scale, *params)
