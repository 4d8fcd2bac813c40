"""Greedy sampling through the cache is the uncached argmax; sampling follows its distribution."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.inference.generate import generate
from gpt4jax.inference.sampling import sample
from tests.conftest import SHAPES, apply, perturbed


@pytest.mark.parametrize("prompt_length", [1, 7, 17])
def test_cached_greedy_equals_uncached_argmax(shape, prompt_length):
    config = model.Config(**shape | {"max_seq_len": 64})
    params = perturbed(config)
    prompt = list(range(5, 5 + prompt_length))
    tokens = list(generate(config, params, prompt, 40, temperature=0.0))
    row = prompt + tokens[:-1]
    padded = jnp.asarray([row + [0] * (64 - len(row))])
    logits = np.asarray(apply(config, params, padded))[0, prompt_length - 1 : len(row)]
    best = np.sort(logits, -1)
    near = best[:, -1] - best[:, -2] < 1e-4
    assert ((logits.argmax(-1) == tokens) | near).all() and near.sum() <= 1
    assert len(set(tokens)) > 3


def test_seeds_stops_and_limits():
    config = model.Config(**SHAPES["llama"])
    params = perturbed(config)
    run = lambda **options: list(generate(config, params, [1, 2], 20, **options))  # noqa: E731
    assert run(seed=1) == run(seed=1) != run(seed=2)
    assert run(seed=1, top_k=1) == run(temperature=0.0)
    assert run(seed=1, top_p=1e-6) == run(temperature=0.0)
    whole = run(seed=3)
    assert run(seed=3, stop=[whole[5]]) == whole[: whole.index(whole[5])]
    assert list(itertools.islice(generate(config, params, [1, 2], 30, seed=3), 20)) == whole
    with pytest.raises(UserError, match="2 tokens and 31 more exceed the model's max_seq_len 32"):
        next(generate(config, params, [1, 2], 31))
    with pytest.raises(UserError, match="no tokens"):
        next(generate(config, params, [], 3))


def test_ids_that_the_tokenizer_lacks_are_never_drawn():
    config = model.Config(**SHAPES["gpt"])
    tokens = list(generate(config, perturbed(config), [1, 2], 30, temperature=3.0, vocab_size=5))
    assert max(tokens) < 5 and len(set(tokens)) == 5


def frequencies(logits, **settings):
    draw = dict(temperature=1.0, top_k=0, top_p=1.0) | settings
    n = 20_000
    tokens = sample(
        jnp.broadcast_to(jnp.asarray(logits), (n, len(logits))), jax.random.key(0),
        jnp.float32(draw["temperature"]), jnp.int32(draw["top_k"]), jnp.float32(draw["top_p"]),
    )  # fmt: skip
    return np.bincount(np.asarray(tokens), minlength=len(logits)) / n


LOGITS = np.log(np.array([0.1, 0.4, 0.05, 0.3, 0.15]))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"temperature": 0.5}, np.square([0.1, 0.4, 0.05, 0.3, 0.15]) / 0.285),
        ({"top_k": 2}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_k": 99}, [0.1, 0.4, 0.05, 0.3, 0.15]),
        ({"top_p": 0.69}, [0, 4 / 7, 0, 3 / 7, 0]),
        ({"top_p": 0.71}, [0, 40 / 85, 0, 30 / 85, 15 / 85]),
        ({"top_p": 0.2}, [0, 1, 0, 0, 0]),
        ({"top_k": 3, "top_p": 0.5}, [0, 4 / 7, 0, 3 / 7, 0]),  # of the three kept, 0.47 + 0.35 reach a half
        ({"temperature": 0.0}, [0, 1, 0, 0, 0]),
    ],
)
def test_sampling_follows_the_cut_distribution(settings, expected):
    np.testing.assert_allclose(frequencies(LOGITS, **settings), expected, atol=0.012)
