"""The engine over rings: the same bits in any company and with kept beginnings, and the plain forward pass's tokens."""

import jax
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.inference import engine as engines
from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request
from gpt4jax.inference.speculative import Draft
from gpt4jax.model.cached import KeysValues, Ring
from gpt4jax.parallel.mesh import make_mesh
from tests.conftest import SHAPES, perturbed
from tests.inference.test_engine import assert_same, uncached

# Rings of 5 - 1 + 16 places and what fills a block: 32. Rows go around four times.
CONFIG = model.Config(**SHAPES["llama"] | {"max_seq_len": 128, "attention": ("banded:5", "dense")})


@pytest.fixture(autouse=True, scope="module")
def one_length():
    """Chunks of 16 and no shorter ones: few programs."""
    patch = pytest.MonkeyPatch()
    patch.setattr(engines, "CHUNK", 16)
    patch.setattr(engines, "_SHORTEST", 16)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def params():
    return perturbed(CONFIG)


@pytest.fixture(scope="module")
def two(params):
    """An engine on two devices that keeps one block."""
    mesh = make_mesh({"data": 2, "fsdp": 1, "tensor": 1}, jax.devices()[:2])
    block = 2 * 2 * 2 * 16 * 8 * 4  # bytes: keys and values, layers, heads, tokens, dimensions, float32
    return Engine(CONFIG, params, rows=2, mesh=mesh, prefix_bytes=block)


def texts(count: int) -> list[Request]:
    """Greedy ones of all lengths, short and long in turn; some begin alike."""
    rng = np.random.default_rng(0)
    common = rng.integers(0, 96, 128).tolist()
    lengths = [[3, 60, 17, 100, 34, 81][i % 6] + i // 6 for i in range(count)]
    prompts = [common[:n] if i % 2 else rng.integers(0, 96, n).tolist() for i, n in enumerate(lengths)]
    return [Request(prompt, min(40, 128 - len(prompt)), temperature=0.0) for prompt in prompts]


def assert_uncached(config, params, requests, results):
    """Each token is the likeliest by the plain forward pass, and as likely as it says."""
    for request, result in zip(requests, results, strict=True):
        logits = uncached(config, params, [*request.prompt, *result.tokens])
        drawn = np.arange(len(result.tokens)) + len(request.prompt) - 1
        logprobs = np.asarray(jax.nn.log_softmax(logits))[drawn]
        ours = logprobs[np.arange(len(drawn)), list(result.tokens)]
        np.testing.assert_allclose(result.logprobs, ours, atol=2e-4)
        np.testing.assert_allclose(ours, logprobs.max(-1), atol=2e-4)


def test_tokens_are_the_plain_passs_and_bits_the_same_in_any_company(params, two):
    requests = texts(14)
    engine = Engine(CONFIG, params, rows=3)
    places = [(type(layer), layer.k_bksh.shape[2]) for layer in engine._pool.cache]
    assert places == [(Ring, 32), (KeysValues, 128)]
    together = engine.generate(requests)
    assert_uncached(CONFIG, params, requests, together)
    assert len(engine._prefixes._blocks) > 10
    assert_same(together, engine.generate(requests[::-1])[::-1])
    assert_same(together[9:10], engine.generate(requests[9:10]))
    # Two devices run another program, which may round otherwise (jax 0.12.0 does); its own bits are the same again.
    apart = two.generate(requests)
    for one, other in zip(together, apart, strict=True):
        assert one.tokens == other.tokens
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-5)
    assert_same(apart, two.generate(requests[::-1])[::-1])


def test_a_padded_chunk_is_not_kept_for_the_whole_one_before_it(two):
    """Room for one block: each part's drops the other's, so that the next chunk, of 12 tokens, finds its own gone."""
    requests = [Request([*range(start, start + 29)], 5, temperature=0.0) for start in (1, 20, 40, 60)]
    together = two.generate(requests)
    assert len(two._prefixes.find(np.array(requests[-1].prompt, np.int32), 1)) == 1
    assert_same(together[-1:], two.generate(requests[-1:]))


def test_guesses_that_are_taken_back_leave_the_window(params):
    """The draft, of rings only, is the model with noise: some of its guesses are kept."""
    rng = np.random.default_rng(1)
    noisy = jax.tree.map(lambda leaf: leaf + 0.02 * rng.normal(size=leaf.shape).astype(np.float32), params)
    small = model.Config(**SHAPES["llama"] | {"max_seq_len": 128, "attention": ("banded:5", "banded:23")})
    engine = Engine(CONFIG, params, rows=3, draft=Draft(small, noisy, tokens=5))
    assert all(isinstance(layer, Ring) for layer in engine._pool._small.cache)
    requests = texts(6)
    results = engine.generate(requests)
    assert_uncached(CONFIG, params, requests, results)
    before = engine.passes
    assert len(engine.generate(requests[1:2])[0].tokens) == 40
    assert 40 / 6 + 3 < engine.passes - before < 40 - 3  # some guesses are kept and some are not
