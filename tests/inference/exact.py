"""What is drawn, worked out another way (by sorting, over every continuation), and Pearson's test against it."""

import itertools
import math

import jax
import numpy as np

from gpt4jax import model


def by_sorting(logits, seen, temperature, top_k, top_p, min_p, penalty):
    """The same distribution in float64, by sorting."""
    logits = logits.astype(np.float64)
    logits = np.where(seen, np.where(logits < 0, logits * penalty, logits / penalty), logits) / temperature
    order = np.argsort(-logits)
    keep = np.ones(len(logits), bool)
    if top_k:
        keep &= logits >= logits[order[min(top_k, len(logits)) - 1]]
    p = np.where(keep, np.exp(logits - logits.max()), 0)
    p /= p.sum()
    if top_p < 1:
        before = np.cumsum(p[order]) - p[order]
        keep[order] &= before < top_p
    p = np.where(keep, p, 0)
    p = np.where(p >= min_p * p.max(), p, 0)
    return p / p.sum()


def distribution(logits, text, settings) -> np.ndarray:
    """What a request's settings draw from after `text`."""
    seen = np.isin(np.arange(len(logits)), text)
    given = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0) | settings
    penalty = given.pop("repetition_penalty", 1.0)
    return by_sorting(np.asarray(logits), seen, penalty=penalty, **given)


def joint(config, params, prompt, n, settings) -> np.ndarray:
    """Probabilities (V,) * n of the next n tokens, by the plain forward pass over every continuation."""
    v = config.vocab_size
    rows = np.array([[*prompt, *more] for more in itertools.product(range(v), repeat=n)])
    logits = np.asarray(jax.jit(model.apply, static_argnums=0)(config, params, rows))
    out = np.ones(len(rows))
    for row, text in enumerate(rows):
        for i in range(len(prompt), len(text)):
            out[row] *= distribution(logits[row, i - 1], text[:i], settings)[text[i]]
    return out.reshape((v,) * n)


def p_value(counts: np.ndarray, probabilities: np.ndarray) -> float:
    """Of Pearson's chi-square, cells expected fewer than 5 times taken together; by Wilson and Hilferty's cube root."""
    expected = probabilities.ravel() * counts.sum()
    seen = counts.ravel()
    rare = expected < 5
    expected = np.append(expected[~rare], expected[rare].sum())
    seen = np.append(seen[~rare], seen[rare].sum())
    if (seen[expected == 0] > 0).any():
        return 0.0
    seen, expected = seen[expected > 0], expected[expected > 0]
    chi, free = float(((seen - expected) ** 2 / expected).sum()), len(seen) - 1
    z = ((chi / free) ** (1 / 3) - (1 - 2 / (9 * free))) / math.sqrt(2 / (9 * free))
    return 0.5 * math.erfc(z / math.sqrt(2))
