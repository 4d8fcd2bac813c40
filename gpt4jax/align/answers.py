"""Answers to prompts as arrays: what a decoder says of their tokens, and what a head on it says of them.

A row is a prompt with its answer behind it, then padding. What belongs to the answer's tokens is gathered to (B, R): R
places, of which the first `length_b` are its tokens, as the functions of `ppo` take it.
"""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax import model
from gpt4jax.model.parameters import Params

Head = Mapping[str, jax.Array]  # "score_d" and "bias": a linear map from a hidden state to one number


class Answers(NamedTuple):
    """Prompts with an answer each.

    Attributes:
        tokens_bt: prompt, answer, padding.
        start_b: where the answer begins; at least 1.
        length_b: its tokens, the end of the text among them; at least 1.
    """

    tokens_bt: jax.Array
    start_b: jax.Array
    length_b: jax.Array


def mask(answers: Answers, room: int) -> jax.Array:
    """Which of `room` places are an answer's tokens, (B, R)."""
    return jnp.arange(room) < answers.length_b[:, None]


def features(config: model.Config, params: Params, answers: Answers, key: jax.Array | None = None) -> jax.Array:
    """The last hidden states, (B, T, D); `key` is that of dropout."""
    end_b = answers.start_b + answers.length_b
    real_bt = jnp.arange(answers.tokens_bt.shape[1]) < end_b[:, None]
    return model.features(
        config, params, answers.tokens_bt, segment_ids_bt=real_bt.astype(jnp.int32), dropout_key=key
    )[0]  # fmt: skip


def _places(answers: Answers, room: int) -> jax.Array:
    """Where the token before each of an answer's tokens stands, (B, R); past its end: somewhere in the row."""
    last = answers.tokens_bt.shape[1] - 1
    return jnp.minimum(answers.start_b[:, None] - 1 + jnp.arange(room), last)


def before(answers: Answers, x_btd: jax.Array, room: int) -> jax.Array:
    """The hidden state before each of the answer's tokens, which predicts it: (B, R, D)."""
    return jnp.take_along_axis(x_btd, _places(answers, room)[..., None], axis=1)


def log_probs(
    config: model.Config, params: Params, answers: Answers, x_btd: jax.Array, room: int, temperature: float = 1.0
) -> jax.Array:
    """Log probabilities of the answers' tokens, (B, R) in nats, as drawn at that temperature; 0 past the end."""
    logits_brv = model.unembed(config, params, before(answers, x_btd, room)) / temperature
    target_br = jnp.take_along_axis(
        answers.tokens_bt, jnp.minimum(_places(answers, room) + 1, answers.tokens_bt.shape[1] - 1), axis=1
    )
    # A comparison instead of a gather: its gradient is no scatter.
    hit_brv = target_br[..., None] == jnp.arange(logits_brv.shape[-1])
    log_p_br = jnp.sum(jnp.where(hit_brv, logits_brv, 0), axis=-1) - jax.nn.logsumexp(logits_brv, axis=-1)
    return jnp.where(mask(answers, room), log_p_br, 0)


def head(config: model.Config) -> dict[str, jax.Array]:
    """A head before training: every score is 0."""
    dtype = jnp.dtype(config.param_dtype)
    return {"score_d": jnp.zeros(config.embed_dim, dtype), "bias": jnp.zeros((), dtype)}


def linear(head: Head, x_d: jax.Array) -> jax.Array:
    """The head's number of each hidden state (..., D): (...)."""
    return x_d @ head["score_d"].astype(x_d.dtype) + head["bias"].astype(x_d.dtype)


def scores(head: Head, answers: Answers, x_btd: jax.Array) -> jax.Array:
    """The score of each whole answer, (B,): the head's number at its last token."""
    last_b = answers.start_b + answers.length_b - 1
    return linear(head, jnp.take_along_axis(x_btd, last_b[:, None, None], axis=1)[:, 0])


def values(head: Head, answers: Answers, x_btd: jax.Array, room: int) -> jax.Array:
    """What is expected of each answer before each of its tokens, (B, R); 0 past the end."""
    return jnp.where(mask(answers, room), linear(head, before(answers, x_btd, room)), 0)
