"""Draws follow the distribution that the settings describe, worked out by hand or by a float64 sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax.inference import sampling
from gpt4jax.inference.sampling import Settings
from tests.inference.exact import by_sorting

DEFAULTS = dict(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, penalty=1.0, seed=0)
P = [0.1, 0.4, 0.05, 0.3, 0.15]

log_distribution = jax.jit(sampling.log_distribution)


def settings(rows: int, **given) -> Settings:
    types = dict(top_k=np.int32, seed=np.uint32)
    values = DEFAULTS | given
    return Settings(*(np.broadcast_to(np.asarray(v, types.get(n, np.float32)), rows) for n, v in values.items()))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, P),
        ({"temperature": 0.5}, np.square(P) / 0.285),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 99}, P),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.71}, [0, 40 / 85, 0, 30 / 85, 15 / 85]),
        ({"top_p": 0.2}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),  # of the three kept, 0.47 + 0.35 reach a half
        ({"min_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
    ],
)
def test_draws_follow_the_cut_distribution(given, expected):
    n = 20_000
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(P)), (n, 5))
    log_bv = log_distribution(logits, jnp.zeros((n, 5), bool), settings(n, **given))
    np.testing.assert_allclose(np.exp(log_bv[0]), expected, atol=1e-6)
    tokens = sampling.draw(log_bv, sampling.keys(jnp.arange(n, dtype=jnp.uint32), jnp.zeros(n, jnp.int32)))
    np.testing.assert_allclose(np.bincount(np.asarray(tokens), minlength=5) / n, expected, atol=0.012)


def test_every_mixture_of_settings_equals_a_float64_sort():
    rng = np.random.default_rng(0)
    rows, vocab = 64, 1000
    logits = rng.normal(0, 3, (rows, vocab)).astype(np.float32)
    seen = rng.random((rows, vocab)) < 0.1
    given = dict(
        temperature=rng.choice([0.5, 1.0, 1.7], rows), top_k=rng.choice([0, 1, 7, 300, 2000], rows),
        top_p=rng.choice([0.3, 0.9, 1.0], rows), min_p=rng.choice([0.0, 0.01, 0.2], rows),
        penalty=rng.choice([1.0, 0.8, 1.5], rows),
    )  # fmt: skip
    ours = np.exp(np.asarray(log_distribution(logits, seen, settings(rows, **given))))
    for row in range(rows):
        theirs = by_sorting(logits[row], seen[row], **{name: values[row] for name, values in given.items()})
        assert (ours[row] > 0).tolist() == (theirs > 0).tolist()
        np.testing.assert_allclose(ours[row], theirs, rtol=2e-4, atol=1e-9)


def test_a_row_does_not_depend_on_the_settings_of_the_others():
    rng = np.random.default_rng(1)
    logits = rng.normal(0, 3, (4, 500)).astype(np.float32)
    seen = np.zeros((4, 500), bool)
    given = dict(temperature=[1, 0, 0.7, 2], top_k=[0, 0, 9, 0], top_p=[1, 1, 1, 0.5], min_p=[0, 0, 0, 0.1])
    together = np.asarray(log_distribution(logits, seen, settings(4, **given)))
    for row in range(4):
        alone = {name: [values[row]] * 4 for name, values in given.items()}
        of_row = np.asarray(log_distribution(logits[[row] * 4], seen, settings(4, **alone)))
        assert (of_row == together[row]).all()


def test_keys_depend_on_seed_and_index_alone():
    data = lambda *args: jax.random.key_data(sampling.keys(*map(jnp.asarray, args)))  # noqa: E731
    both = data(np.array([1, 2, 2**32 - 1], np.uint32), np.array([5, 5, 6]))
    assert (both[1] == data(np.array([2], np.uint32), np.array([5]))[0]).all()
    assert len({tuple(key) for key in both.tolist()}) == 3
