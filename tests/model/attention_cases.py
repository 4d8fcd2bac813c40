"""Random attention problems, and their solution in float64 NumPy, every score at once."""

import random
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax.model import attention, masks
from gpt4jax.model.arrangement import Where

BATCH, HEAD_DIM = 2, 4
SHAPES = ((40, 40, 0), (45, 45, 0), (33, 40, 0), (33, 45, 12))  # queries, keys, the place of the first query
HEADS = ((1, 1), (2, 1), (1, 3), (2, 2))  # key/value heads, query heads for each


class Case(NamedTuple):
    """What a program is compiled for."""

    shape: tuple[int, int, int]
    heads: tuple[int, int]
    of_heads: tuple[masks.Mask, ...]
    packed: bool
    soft_cap: float
    restart: bool = True  # whether each document's positions begin at 0
    longest: int = 0  # tokens of an image, which is seen as a whole; 0: there are no images


def pattern(rng: random.Random) -> masks.Mask:
    """One of the paper's patterns, GPT-3's band, or a part of them, with random sizes."""
    stride = rng.choice((3, 5, 8, 16))
    count = rng.choice([c for c in (1, 2, 3) if c < stride])
    local = masks.banded(rng.randint(1, 20))
    return masks.causal() & rng.choice(
        [
            masks.full(), local, masks.banded(stride) | masks.strided(stride), masks.strided(stride),
            masks.fixed(stride, count, rng.randrange(stride // count)), masks.summary(stride, count),
            masks.same_block(stride), local | masks.fixed(stride, count), masks.strided(stride) | masks.strided(7),
            masks.fixed(stride, count, rng.randrange(stride // count)) | masks.strided(rng.choice((stride, 5))),
        ]
    )  # fmt: skip


def atom(rng: random.Random) -> masks.Mask:
    """One mask that is not made of others."""
    stride = rng.randint(1, 20)
    count = rng.randint(1, stride)
    return rng.choice(
        [
            masks.causal(), masks.banded(rng.randint(1, 40)), masks.strided(rng.choice((1, 2, 3, 5, 8, 16, 30))),
            masks.same_block(stride), masks.summary(stride, count, rng.randrange(stride // count)), masks.full(),
            masks.prefix(rng.randint(0, 30)), masks.segments(sorted(rng.sample(range(1, 60), rng.randint(0, 4)))),
            masks.spans([(5, 9), (9, 20), (33, 40)]),
        ]
    )  # fmt: skip


def composition(rng: random.Random, depth: int = 3) -> masks.Mask:
    """Masks joined by &, | and ~ at random."""
    if not depth or rng.random() < 0.3:
        return atom(rng)
    kind = rng.random()
    if kind > 0.85:
        return ~composition(rng, depth - 1)
    left, right = composition(rng, depth - 1), composition(rng, depth - 1)
    return left & right if kind < 0.4 else left | right


def draw_case(rng: random.Random) -> Case:
    """A mask for all heads, or one for each; half of them patterns, a third of the others not causal."""
    heads = rng.choice(HEADS)
    if rng.random() < 0.5:
        one = pattern(rng)
    else:
        one = composition(rng)
        one = one & masks.causal() if rng.random() < 0.7 else one
    of_heads = (one,) * heads[0] if rng.random() < 0.6 else tuple(pattern(rng) for _ in range(heads[0]))
    packed, restart = rng.random() < 0.6, rng.random() < 0.8
    case = Case(rng.choice(SHAPES), heads, of_heads, packed, rng.choice((0.0, 0.0, 3.0)), restart)
    return case._replace(longest=rng.choice((0, 0, 3, 11)))


def draw_where(case: Case, rng: np.random.Generator) -> Where:
    """Documents packed into rows, the last ending in padding, or nothing."""
    _, s, _ = case.shape
    if not case.packed:
        return Where(image_bs=draw_images(case, rng, np.ones((BATCH, s), int), np.arange(s)[None]))
    segment, position = np.zeros((2, BATCH, s), np.int32)
    for row in range(BATCH):
        cuts = sorted(rng.choice(np.arange(1, s), rng.integers(0, 5), replace=False))
        for i, (start, end) in enumerate(zip([0, *cuts], [*cuts, s], strict=True)):
            segment[row, start:end] = 0 if i and end == s else i + 1
            position[row, start:end] = np.arange(end - start)
    where = Where(position if case.restart else None, segment)
    return where._replace(image_bs=draw_images(case, rng, segment, position if case.restart else np.arange(s)[None]))


def draw_images(case: Case, rng: np.random.Generator, segment: np.ndarray, position: np.ndarray):
    """Runs of up to `longest` tokens, each in one document: the positions where each token's begins and ends."""
    if not case.longest:
        return None
    first, last = np.zeros_like(segment), np.full_like(segment, -1)
    position = np.broadcast_to(position, segment.shape)
    for row in range(len(segment)):
        at = int(rng.integers(0, 4))
        while at < segment.shape[1]:
            end = min(at + int(rng.integers(1, case.longest + 1)), segment.shape[1])
            end = at + int(np.argmin(np.r_[segment[row, at:end] == segment[row, at], False]))
            first[row, at:end], last[row, at:end] = position[row, at], position[row, end - 1]
            at = end + int(rng.integers(1, 6))
    return first, last


def draw_arrays(case: Case, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Queries, keys, values and the gradient of the result, float64."""
    (t, s, _), (k, g) = case.shape, case.heads
    q, dy = rng.normal(size=(2, BATCH, t, k * g, HEAD_DIM))
    return q, *rng.normal(size=(2, BATCH, s, k, HEAD_DIM)), dy


def visible(case: Case, where: Where) -> np.ndarray:
    """(B, N, T, S)."""
    t, s, offset = case.shape
    position = np.arange(s)[None] if where.position_bs is None else np.asarray(where.position_bs)
    q, k = position[:, offset : offset + t, None], position[:, None]
    shown = np.stack([np.broadcast_to(mask(q, k), (len(position), t, s)) for mask in case.of_heads], axis=1)
    if where.image_bs is not None:
        first, last = (np.asarray(edge)[:, offset : offset + t, None] for edge in where.image_bs)
        shown = shown | ((first <= k) & (k <= last))[:, None]
    if where.segment_bs is not None:
        segment = np.asarray(where.segment_bs)
        shown = shown & (segment[:, offset : offset + t, None] == segment[:, None])[:, None]
    return np.repeat(shown, case.heads[1], axis=1)


def solve(case: Case, where: Where, q, k, v, dy) -> tuple[tuple[np.ndarray, ...], tuple[float, ...]]:
    """The result and the gradients of queries, keys and values, from the formulas; and how large their terms are.

    The gradient of a score is a difference, nearly nothing where one key has all the weight. The second tuple is the
    largest value each array would have if nothing cancelled: what rounding errors are relative to.
    """
    kv_heads, group = case.heads
    k, v = np.repeat(k, group, axis=2), np.repeat(v, group, axis=2)
    raw = np.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(q.shape[-1])
    capped = np.tanh(raw / case.soft_cap) if case.soft_cap else None
    scores = raw if capped is None else case.soft_cap * capped
    weights = np.exp(scores - scores.max()) * visible(case, where)
    total = weights.sum(-1, keepdims=True)
    weights = weights / np.where(total == 0, 1, total)
    d_weights = np.einsum("btnh,bsnh->bnts", dy, v)
    inner = (weights * d_weights).sum(-1, keepdims=True)
    slope = (1 if capped is None else 1 - capped**2) / np.sqrt(q.shape[-1])

    def arrays(d_scores, weights, q, k, v, dy):
        y = np.einsum("bnts,bsnh->btnh", weights, v)
        dq, dk = np.einsum("bnts,bsnh->btnh", d_scores, k), np.einsum("bnts,btnh->bsnh", d_scores, q)
        dv = np.einsum("bnts,btnh->bsnh", weights, dy)
        return y, dq, *(d.reshape(*d.shape[:2], kv_heads, group, -1).sum(3) for d in (dk, dv))

    terms = slope * weights * (np.abs(d_weights) + np.abs(inner))
    truth = arrays(slope * weights * (d_weights - inner), weights, q, k, v, dy)
    sizes = tuple(float(x.max()) for x in arrays(terms, weights, *map(np.abs, (q, k, v, dy))))
    return truth, sizes


def program(case: Case, lowering: str) -> Any:
    """(q, k, v, dy, where) -> the result and the three gradients, jitted."""

    def run(q, k, v, dy, where):
        of_heads = case.of_heads
        if case.longest:
            of_heads = tuple(mask | masks.together(case.longest) for mask in of_heads)

        def forward(*qkv):
            return attention.attend(
                *qkv, of_heads, where, offset=case.shape[2], soft_cap=case.soft_cap, lowering=lowering
            )

        y, backward = jax.vjp(forward, q, k, v)
        return y, *backward(dy)

    return jax.jit(run)


def error(ours: Any, truth: tuple[np.ndarray, ...], sizes: Any = None) -> float:
    """The largest error of the result and the gradients, each relative to its largest value, or to `sizes`."""
    worst = 0.0
    for one, true, size in zip(ours, truth, sizes or (float(np.max(np.abs(t))) for t in truth), strict=True):
        off = float(np.max(np.abs(np.asarray(one, np.float64) - true)))
        worst = max(worst, off / size if size else off)
    return worst


def worst_errors(case: Case, lowering: str, draws: int, seed: int, dtype: Any = jnp.float32) -> tuple[float, float]:
    """Relative to the largest value and to the terms, over some draws of arrays and documents, all in one program."""
    run, worst, of_terms = program(case, lowering), 0.0, 0.0
    for i in range(draws):
        rng = np.random.default_rng([seed, i])
        where = draw_where(case, rng)
        arrays = draw_arrays(case, rng)
        if dtype == jnp.bfloat16:  # what is measured is the arithmetic, not the rounding of the inputs
            arrays = tuple(np.asarray(jnp.asarray(a, dtype), np.float64) for a in arrays)
        ours = run(*(jnp.asarray(a, dtype) for a in arrays), where)
        truth, sizes = solve(case, where, *arrays)
        worst, of_terms = max(worst, error(ours, truth)), max(of_terms, error(ours, truth, sizes))
    return worst, of_terms


def worst_error(case: Case, lowering: str, draws: int, seed: int, dtype: Any = jnp.float32) -> float:
    """Relative to the largest value."""
    return worst_errors(case, lowering, draws, seed, dtype)[0]
