"""A world whose best policy is known: a language of seven tokens, all answers of which can be listed.

A prompt x is two letters of a ring of six: "be". The best answer says them in turn, in four letters: "bebe". The
reward of an answer y is in closed form,

    gold(y) = sum_t cos(2 pi (y_t - x_(t mod 2)) / 6) - |len(y) - 3| / 2 - [y does not end],    t = 0, 1, ...

so nearly right letters are worth something, too. Demonstrators answer y with a probability in proportion to
exp(gold(y)), of up to four letters; their comparisons are as noisy (Plackett 1975, Luce 1959), which makes gold the
reward that a reward model's loss is least for. Of a policy that answers in up to five tokens the exact mean reward and
KL follow by listing all 9,331 answers to each of the 36 prompts, and so does the best policy at any KL.
"""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, special

from gpt4jax import model
from gpt4jax.model.parameters import Params

LETTERS = "abcdef"
LONGEST = 5  # tokens of an answer: four letters and the end, or five letters that do not end
_N = len(LETTERS)
PROMPTS = tuple(a + b for a in LETTERS for b in LETTERS)


class Answers(NamedTuple):
    """All answers, one after another: letters (Y, 5), -1 behind the last one; how many; whether the text then ends."""

    letter_yt: np.ndarray
    length_y: np.ndarray
    ended_y: np.ndarray


def answers() -> Answers:
    """Those that end by their number of letters, then those that do not."""
    parts = []
    for length in (*range(LONGEST), LONGEST):
        parts.append(np.pad(_every(length), ((0, 0), (0, LONGEST - length)), constant_values=-1))
    letter_yt = np.concatenate(parts).astype(np.int32)
    length_y = (letter_yt >= 0).sum(1)
    return Answers(letter_yt, length_y, length_y < LONGEST)


def _every(length: int) -> np.ndarray:
    """All texts of so many letters, the last one changing fastest."""
    return np.array(list(itertools.product(range(_N), repeat=length)), np.int32).reshape(_N**length, length)


def gold(prompt: str, letters: np.ndarray, ended: np.ndarray) -> np.ndarray:
    """The reward of answers to one prompt: letters (..., T) with -1 for none, and whether each ends (...)."""
    x_t = np.resize([LETTERS.index(letter) for letter in prompt], letters.shape[-1])
    here = letters >= 0
    return (np.cos(2 * np.pi * (letters - x_t) / _N) * here).sum(-1) - np.abs(here.sum(-1) - 3) / 2 - ~np.asarray(ended)


def gold_of_text(prompt: str, answer: str, ended: bool) -> float:
    """The reward of one answer in letters.

    Raises:
        ValueError: it has characters that are no letters of this world.
    """
    if strange := set(prompt + answer) - set(LETTERS):
        raise ValueError(f"{strange.pop()!r} is none of the letters {LETTERS}")
    return float(gold(prompt, np.array([LETTERS.index(letter) for letter in answer], int), np.array(ended)))


def _text(letter_t: np.ndarray) -> str:
    return "".join(LETTERS[letter] for letter in letter_t if letter >= 0)


def _drawn(rng: np.random.Generator, prompt: str, count: int, temperature: float) -> np.ndarray:
    """Numbers of answers by demonstrators: in proportion to exp(gold / temperature), of those that end."""
    every = answers()
    logits = gold(prompt, every.letter_yt, every.ended_y) / temperature
    p = special.softmax(np.where(every.ended_y, logits, -np.inf))
    return rng.choice(len(p), size=count, p=p)


def demonstrations(count: int, seed: int) -> list[dict[str, Any]]:
    """Prompts with an answer each, each prompt as often as the others."""
    rng, text = np.random.default_rng((seed, 1)), _texts()
    each = [_drawn(rng, prompt, -(-count // len(PROMPTS)), 1.0) for prompt in PROMPTS]
    rows = [{"prompt": prompt, "response": text[i]} for some in zip(*each, strict=True) for prompt, i in _of_all(some)]
    return rows[:count]


def comparisons(count: int, responses: int, seed: int, temperature: float = 2.0) -> list[dict[str, Any]]:
    """Prompts with ranked answers, more different ones than demonstrations; the noise is Gumbel's, on gold itself."""
    rng, text, every = np.random.default_rng((seed, 2)), _texts(), answers()
    rows: list[list[dict[str, Any]]] = []
    for prompt in PROMPTS:
        some_nk = _drawn(rng, prompt, -(-count // len(PROMPTS)) * responses, temperature).reshape(-1, responses)
        noisy_nk = gold(prompt, every.letter_yt[some_nk], every.ended_y[some_nk]) + rng.gumbel(size=some_nk.shape)
        ranks_nk = np.argsort(np.argsort(-noisy_nk, axis=1), axis=1)
        rows.append(
            [
                {"prompt": prompt, "responses": [text[i] for i in some], "ranks": ranks}
                for some, ranks in zip(some_nk.tolist(), ranks_nk.tolist(), strict=True)
            ]
        )
    return [row for some in zip(*rows, strict=True) for row in some][:count]


def _of_all(values: Any) -> Any:
    return zip(PROMPTS, values, strict=True)


def _texts() -> list[str]:
    """All answers in letters."""
    return [_text(letter_t) for letter_t in answers().letter_yt]


class Table(NamedTuple):
    """Of every prompt and answer: a policy's log probability, and the gold reward. (36, Y) each."""

    log_p_xy: np.ndarray
    gold_xy: np.ndarray


def table(config: model.Config, params: Params, start: int, end: int) -> Table:
    """A policy's exact table; letters have the ids 0 to 5, `start` stands before a prompt, `end` ends a text.

    Each prompt with all 1,296 beginnings of four letters is read once: what follows them has the rest.
    """
    grid = _every(LONGEST - 1)
    rows, every = [], answers()
    for prompt in PROMPTS:
        before = np.array([start, *(LETTERS.index(letter) for letter in prompt)])
        tokens_bt = np.concatenate([np.broadcast_to(before, (len(grid), 3)), grid], axis=1)
        rows.append(_answers_log_p(np.asarray(_next_log_p(config, params, tokens_bt), np.float64), end))
    gold_xy = np.stack([gold(prompt, every.letter_yt, every.ended_y) for prompt in PROMPTS])
    return Table(np.stack(rows), gold_xy)


@partial(jax.jit, static_argnums=0)
def _next_log_p(config: model.Config, params: Params, tokens_bt: jax.Array) -> jax.Array:
    """What follows the prompt, and each letter behind it: log probabilities, (B, 5, V)."""
    logits_btv = model.apply(config, params, tokens_bt)
    return jax.nn.log_softmax(logits_btv[:, 2:].astype(jnp.float32), axis=-1)


def _answers_log_p(log_p_btv: np.ndarray, end: int) -> np.ndarray:
    """From what follows each beginning of four letters, at each of its lengths, the log probability of all answers."""
    depth = LONGEST - 1
    log_p = log_p_btv.reshape(*[_N] * depth, LONGEST, -1)
    parts, so_far = [], np.zeros(1)
    for length in range(LONGEST):
        here = log_p[(slice(None),) * length + (0,) * (depth - length)][..., length, :].reshape(_N**length, -1)
        parts.append(so_far + here[:, end])
        so_far = (so_far[:, None] + here[:, :_N]).ravel()
    return np.concatenate([*parts, so_far])


class Standing(NamedTuple):
    """Means over prompts: the exact reward of a policy, and its KL from another in nats an answer."""

    gold: float
    kl: float


def standing(policy: Table, reference: Table) -> Standing:
    """Where a policy stands, seen from the reference."""
    p_xy = np.exp(policy.log_p_xy)
    reward_x, kl_x = (p_xy * policy.gold_xy).sum(1), (p_xy * (policy.log_p_xy - reference.log_p_xy)).sum(1)
    return Standing(float(reward_x.mean()), float(kl_x.mean()))


def best(reference: Table, beta: float) -> Standing:
    """The policy with the most reward at its KL: the reference's times exp(gold / beta), made to add up to 1."""
    log_p_xy = reference.log_p_xy + reference.gold_xy / beta
    log_p_xy -= special.logsumexp(log_p_xy, axis=1, keepdims=True)
    return standing(Table(log_p_xy, reference.gold_xy), reference)


def best_at(reference: Table, kl: float) -> Standing:
    """The best policy at a KL or below it, in nats an answer.

    Raises:
        ValueError: a KL that is not positive.
    """
    low, high = 1e-3, 1e6
    if not kl > 0:
        raise ValueError(f"a KL of {kl} nats: the reference alone has none")
    if kl >= best(reference, low).kl:  # no more is to be had
        return best(reference, low)
    if kl <= best(reference, high).kl:
        return best(reference, high)
    log_beta = optimize.brentq(lambda log_beta: best(reference, np.exp(log_beta)).kl - kl, np.log(low), np.log(high))
    return best(reference, float(np.exp(log_beta)))
