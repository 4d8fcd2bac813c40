"""With a draft model, fewer passes; and draws follow the large model's own distribution, whatever the draft is."""

import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request
from gpt4jax.inference.speculative import Draft
from tests.conftest import SHAPES, perturbed
from tests.inference.exact import joint, p_value

LARGE = model.Config(**SHAPES["llama"] | {"vocab_size": 6})
SMALL = model.Config(**SHAPES["gpt"] | {"vocab_size": 6, "num_layers": 1})


@pytest.fixture(scope="module")
def engine():
    return Engine(
        LARGE, perturbed(LARGE), rows=1024, max_len=16, draft=Draft(SMALL, perturbed(SMALL, seed=1), tokens=2)
    )


@pytest.mark.parametrize(
    "settings", [{}, dict(temperature=1.5, top_k=4), dict(top_p=0.8, min_p=0.05, repetition_penalty=1.4)]
)
def test_three_tokens_are_drawn_from_the_large_models_joint_distribution(engine, settings):
    n = 8192
    results = engine.generate(Request([2], 3, seed=seed, **settings) for seed in range(n))
    counts = np.zeros((6, 6, 6))
    for result in results:
        counts[result.tokens] += 1
    expected = joint(LARGE, perturbed(LARGE), [2], 3, settings)
    assert p_value(counts, expected) > 1e-3
    # The test sees a wrong distribution: the draft's own.
    assert p_value(counts, joint(SMALL, perturbed(SMALL, seed=1), [2], 3, settings)) < 1e-9


@pytest.mark.parametrize("shape", ["gpt", "llama"])
def test_a_draft_that_is_the_model_itself_saves_all_the_passes_it_can(shape):
    config = model.Config(**SHAPES[shape])
    params = perturbed(config)
    requests = [Request([i + 1] * (i + 1), 20, temperature=0.0) for i in range(4)]
    plain = Engine(config, params, rows=4)
    one, passes = plain.generate(requests), plain.passes
    fast = Engine(config, params, rows=4, draft=Draft(config, params, tokens=3))
    many = fast.generate(requests)
    assert [r.tokens for r in one] == [r.tokens for r in many]
    np.testing.assert_allclose([r.logprobs for r in one], [r.logprobs for r in many], atol=1e-4)
    assert passes >= 20 and fast.passes <= passes / 3


def test_the_bits_depend_on_no_company(engine):
    requests = [Request([1 + i % 3, 2], 5 + i % 4, seed=i, repetition_penalty=1.2) for i in range(40)]
    together = engine.generate(requests)
    alone = [engine.generate([request])[0] for request in requests[::7]]
    assert [(r.tokens, r.logprobs) for r in together[::7]] == [(r.tokens, r.logprobs) for r in alone]
    assert len({r.tokens for r in together}) > 20


def test_a_draft_of_another_vocabulary_is_refused():
    other = model.Config(**SHAPES["gpt"])
    with pytest.raises(ValueError, match="a vocabulary of 96, not 6"):
        Engine(LARGE, perturbed(LARGE), draft=Draft(other, perturbed(other)))
    with pytest.raises(ValueError, match="guesses 0 tokens"):
        Engine(LARGE, perturbed(LARGE), draft=Draft(SMALL, perturbed(SMALL), tokens=0))
