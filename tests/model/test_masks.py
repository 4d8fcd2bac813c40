"""Masks by brute force: elementwise meanings from their definitions, blocks and counts from whole arrays."""

import random
import time
import tracemalloc

import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax.model import masks, patterns
from gpt4jax.model.mask_algebra import anywhere
from tests.model.attention_cases import composition

Q, K = np.arange(60)[:, None], np.arange(60)[None]


def test_meanings():
    """Child et al. 2019 in the words of its section 4.2, one pair at a time."""
    stride, count = 8, 3
    strided = masks.causal() & (masks.banded(stride) | masks.strided(stride))
    fixed = masks.causal() & masks.fixed(stride, count)
    second = masks.causal() & masks.fixed(stride, count, 1)
    for i in range(60):
        for j in range(60):
            assert bool(strided(i, j)) == (j <= i and (i - j < stride or (i - j) % stride == 0))
            local = j // stride == i // stride
            assert bool(fixed(i, j)) == (j <= i and (local or j % stride in (5, 6, 7)))
            assert bool(second(i, j)) == (j <= i and (local or j % stride in (2, 3, 4)))
            assert bool(masks.prefix(5)(i, j)) == (j < 5)
            assert bool(masks.segments([4, 9])(i, j)) == (((i >= 4) + (i >= 9)) == ((j >= 4) + (j >= 9)))
            both = [a <= i < e and a <= j < e for a, e in [(2, 5), (5, 9)]]
            assert bool(masks.spans([(2, 5), (5, 9)])(i, j)) == any(both)
            assert bool((~masks.banded(4))(i, j)) == (i - j >= 4)
    assert np.array_equal(strided(jnp.asarray(Q), jnp.asarray(K)), strided(Q, K))
    spans = masks.causal() | masks.spans([(2, 5), (7, 9)])
    assert np.array_equal(spans(jnp.asarray(Q), jnp.asarray(K)), spans(Q, K))


@pytest.mark.parametrize("seed", range(150))
def test_blocks_and_counts_of_any_composition(seed):
    """Bounds are never wrong; where only the distance counts, and of one mask alone, they are exact."""
    rng = random.Random(seed)
    mask = composition(rng)
    t, s, offset = rng.randint(1, 50), rng.randint(1, 60), rng.randint(0, 20)
    q, k = offset + np.arange(t)[:, None], np.arange(s)[None]
    shown = np.broadcast_to(mask(q, k), (t, s))
    assert mask.pairs(t, s, offset=offset) == shown.sum()
    low, high = mask.distances()
    assert np.all(((q - k >= low) & (q - k <= high))[shown])
    assert not mask.causal or not np.any(shown & (k > q))
    q_size, k_size = rng.randint(1, 17), rng.randint(1, 17)
    q_start, k_start = np.arange(0, t, q_size), np.arange(0, s, k_size)
    q_end, k_end = np.minimum(q_start + q_size, t), np.minimum(k_start + k_size, s)
    kind = mask.block(offset + q_start[:, None], offset + q_end[:, None], k_start, k_end)
    assert mask.active_blocks(t, s, q_size, k_size, offset=offset) == np.count_nonzero(kind)
    somewhere = anywhere(mask).block(offset + q_start[:, None], offset + q_end[:, None], k_start, k_end)
    for i in range(len(q_start)):
        for j in range(len(k_start)):
            block = shown[q_start[i] : q_end[i], k_start[j] : k_end[j]]
            true = masks.FULL if block.all() else masks.PARTIAL if block.any() else masks.EMPTY
            exact = mask.relative or not mask.parts
            assert kind[i, j] == true or (not exact and kind[i, j] == masks.PARTIAL)
            assert somewhere[i, j] in (true, masks.PARTIAL)


PAPER = {
    "dense": masks.causal(),
    "banded": masks.causal() & masks.banded(1024),
    "strided": masks.causal() & (masks.banded(128) | masks.strided(128)),
    "strided_sqrt": masks.causal() & (masks.banded(362) | masks.strided(362)),
    "fixed": masks.causal() & masks.fixed(128, 32),
    "fixed_sqrt": masks.causal() & masks.fixed(362, 16, 2),
    "full": masks.full(),
    "prefix": masks.causal() | masks.prefix(1000),
    "segments": masks.causal() & masks.segments(range(1000, 131072, 1000)),
    "spans": masks.causal() | masks.spans([(a, a + 256) for a in range(500, 131072, 1000)]),
}


def test_empty_blocks_of_the_papers_patterns_are_all_found():
    for name, mask in PAPER.items():
        shown = np.broadcast_to(mask(np.arange(1500)[:, None], np.arange(1500)[None]), (1500, 1500))
        tiled = np.add.reduceat(np.add.reduceat(shown, np.arange(0, 1500, 100), 0), np.arange(0, 1500, 100), 1)
        assert mask.active_blocks(1500, 1500, 100, 100) == np.count_nonzero(tiled), name


@pytest.mark.parametrize("name", PAPER)
def test_metadata_of_131072_tokens_is_small(name):
    """Its active blocks of 512 and of 128, in memory that no (T, S) array fits into."""
    tracemalloc.start()
    began = time.perf_counter()
    counts = [PAPER[name].active_blocks(2**17, 2**17, size, size) for size in (512, 128)]
    took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert 0 < counts[0] <= 256**2 and counts[0] < counts[1] <= 1024**2
    assert peak < 2**26
    assert took < 20  # it takes 0.1 s; this is no measurement, only a guard against work on every pair


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: masks.banded(0), "window of banded is 0"),
        (lambda: masks.strided(0), "stride of strided is 0"),
        (lambda: masks.fixed(8, 9), "no summary 0 of 9"),
        (lambda: masks.summary(8, 3, 2), "no summary 2 of 3"),
        (lambda: masks.segments([4, 4]), "must ascend"),
        (lambda: masks.spans([(3, 9), (5, 12)]), "do not overlap"),
        (lambda: masks.spans([]), "do not overlap"),
    ],
)
def test_what_does_not_fit_is_said(make, words):
    with pytest.raises(ValueError, match=words):
        make()


def test_patterns_and_their_heads():
    """Merged heads, a pattern a head, and distinct summaries a head (Child et al. 2019, section 4.3 and 5.2)."""
    causal = masks.causal()
    assert patterns.from_pattern("dense", 2) == (causal, causal)
    assert patterns.from_pattern("strided:8", 1) == (causal & (masks.banded(8) | masks.strided(8)),)
    of_heads = patterns.from_pattern("fixed:8:3", 3)
    assert of_heads == tuple(causal & masks.fixed(8, 3, index) for index in (0, 1, 0))
    spread = patterns.from_pattern("banded:4/column:4", 3)
    assert spread == (causal & masks.banded(4), causal & masks.strided(4), causal & masks.banded(4))
    merged = patterns.from_pattern("banded:4|column:4", 1)[0]
    assert np.array_equal(merged(Q, K), patterns.from_pattern("strided:4", 1)[0](Q, K))
    block_and_summary = patterns.from_pattern("block:8|summary:8:3", 1)[0]
    assert np.array_equal(block_and_summary(Q, K), patterns.from_pattern("fixed:8:3", 1)[0](Q, K))
    for wrong in ("banded", "banded:0", "fixed:8", "strided:x", "fixed:8:9", "a/b", "dense:3", "banded:2//banded:3"):
        with pytest.raises(ValueError, match=r"model\.attention has"):
            patterns.from_pattern(wrong, 4)
    with pytest.raises(ValueError, match="2 heads; there are 1"):
        patterns.from_pattern("dense/banded:4", 1)
