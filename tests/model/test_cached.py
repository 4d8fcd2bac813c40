"""A banded layer's cache is a ring: what comes out is the same, whatever wraps, and the memory is the window's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.model import cached, patterns
from gpt4jax.model.cached import Cached, KeysValues, Ring
from gpt4jax.model.decoder import State
from tests.conftest import SHAPES, apply, perturbed

T = 96


@partial(jax.jit, static_argnums=0)
def read(config, params, tokens_bt, cache, ends_b):
    """Logits of tokens written at each row's end, and the cache with them."""
    x_btd, state = model.features(config, params, tokens_bt, state=State(cache, ends_b))
    return model.unembed(config, params, x_btd), state.cache


# W - 1 + append is 16 or 32: whole blocks of 16 without a place more than is needed.
@pytest.mark.parametrize(
    ("shape", "attention", "append"),
    [("gpt", ("banded:5", "dense"), 12), ("llama", ("banded:7",), 26)],
)
def test_rows_go_on_through_rings_as_if_whole(shape, attention, append):
    """Two rows at their own pace, by chunks and single tokens; what is forgotten again is written behind each end."""
    fields = {"max_seq_len": T + append, "attention": attention, "num_layers": len(attention)}
    config = model.Config(**SHAPES[shape] | fields)
    params, rng = perturbed(config), np.random.default_rng(0)
    text_bt, ends_b = rng.integers(0, 96, (2, T)), np.zeros(2, np.int32)
    whole_btv = np.asarray(apply(config, params, text_bt))
    cache = model.init_cache(config, 2, T + append, append=append).cache
    assert [isinstance(layer, Ring) for layer in cache] == [pattern != "dense" for pattern in attention]
    while (ends_b < T).any():
        for i in range(append):  # guesses, one after the other, of which none is kept
            _, cache = read(config, params, rng.integers(0, 96, (2, 1)), cache, ends_b + i)
        for size in (append, 1):
            kept_b = np.minimum(rng.integers(1, size + 1, 2), T - ends_b)
            tokens_bt = rng.integers(0, 96, (2, size))
            for row, (end, kept) in enumerate(zip(ends_b, kept_b, strict=True)):
                tokens_bt[row, :kept] = text_bt[row, end : end + kept]
            logits_btv, cache = read(config, params, tokens_bt, cache, ends_b)
            for row, (end, kept) in enumerate(zip(ends_b, kept_b, strict=True)):
                np.testing.assert_allclose(logits_btv[row, :kept], whole_btv[row, end : end + kept], atol=5e-5)
            ends_b = (ends_b + kept_b).astype(np.int32)


@pytest.mark.parametrize("kind", [KeysValues, Ring])
def test_rows_of_parts_are_written_where_they_end_and_a_row_of_minus_one_nowhere(kind):
    """Two parts of two rows, eight places each, written over the end of a ring, against NumPy."""
    rng = np.random.default_rng(0)
    old_bksh, new_bkth = rng.normal(size=(4, 2, 8, 3)), rng.normal(size=(2, 2, 5, 3))
    start = 6 if kind is Ring else 2
    for row_b in ([1, 0], [1, -1], [-1, -1]):
        held = Cached(kind(jnp.asarray(old_bksh), jnp.asarray(-old_bksh)), jnp.array([start, 0]), jnp.array(row_b))
        out = held.append(KeysValues(jnp.asarray(new_bkth), jnp.asarray(-new_bkth)))
        expected_bksh = jnp.asarray(old_bksh)
        for part, (row, first) in enumerate(zip(row_b, (start, 0), strict=True)):
            if row >= 0:
                places = (first + np.arange(5)) % 8
                expected_bksh = expected_bksh.at[2 * part + row, :, places].set(new_bkth[part].swapaxes(0, 1))
        assert type(out.cache) is kind and out.length_b.tolist() == [start + 5, 5]
        np.testing.assert_array_equal(out.cache.k_bksh, expected_bksh)
        np.testing.assert_array_equal(out.cache.v_bksh, -expected_bksh)


def test_a_long_cache_takes_half_the_memory_and_the_window():
    config = model.Config(
        **SHAPES["llama"] | {"num_layers": 12, "attention": ("dense", "banded:1024"), "max_seq_len": 32_768}
    )
    place = 2 * 2 * 8 * 4  # bytes: keys and values of 2 heads of 8 float32
    plain = model.cache_bytes(config, 3, 32_768)
    assert plain == 3 * 12 * 32_768 * place
    ringed = model.cache_bytes(config, 3, 32_768, append=128)
    assert ringed == 3 * 6 * (32_768 + 1023 + 129) * place  # in whole blocks
    assert ringed == sum(leaf.nbytes for leaf in jax.tree.leaves(model.init_cache(config, 3, 32_768, append=128).cache))
    # What fits no ring is none: then the whole row may come at once.
    assert model.cache_bytes(config, 3, 1024, append=128) == model.cache_bytes(config, 3, 1024)
    assert cached.room("banded:1024", model.init_cache(config, 1, 1024, append=128).cache[1]) == 1024


@pytest.mark.parametrize("attention", [("banded:5",), ("dense", "banded:5")])
def test_more_than_a_ring_was_made_for_is_an_error(attention):
    config = model.Config(**SHAPES["gpt"] | {"attention": attention})
    params = perturbed(config)

    def append(count, state):
        tokens_bt = jnp.zeros((1, count), jnp.int32)
        return jax.eval_shape(lambda: model.features(config, params, tokens_bt, state=state))

    append(12, model.init_cache(config, 1, 32, append=12))
    append(32, model.init_cache(config, 1, 32))
    with pytest.raises(ValueError, match="13 tokens do not fit a KV cache that takes 12 at once: see `append`"):
        append(13, model.init_cache(config, 1, 32, append=12))
    with pytest.raises(ValueError, match="32 tokens, 0 at once, holds nothing"):
        model.init_cache(config, 1, 32, append=0)


def test_windows_are_those_of_the_masks():
    """The farthest that any head sees from any query; of a pattern that sees further and further there is none."""
    expected = {"dense": None, patterns.INDUCTION: None, "strided:4": None, "fixed:4:1": None, "banded:3/dense": None}
    expected |= {"banded:1": 1, "banded:7": 7, "block:8": 8, "banded:4|block:6": 6, "banded:3/banded:9": 9}
    distance = np.arange(51)
    for pattern, window in expected.items():
        assert cached.window(pattern, 2) == window
        of_heads = patterns.from_pattern(pattern, 2)
        seen = [bool(np.any([mask(50 + np.arange(8), 50 + np.arange(8) - d) for mask in of_heads])) for d in distance]
        assert np.max(distance[seen]) == (50 if window is None else window - 1) or pattern in ("strided:4", "fixed:4:1")
