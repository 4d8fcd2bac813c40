"""Packing by brute force: every pair once, no row too long, rows that say what they hold."""

import numpy as np
import pytest

from gpt4jax.data import packing


@pytest.mark.parametrize("seq_len", [1, 7, 16, 50])
def test_every_pair_is_in_exactly_one_row(seq_len):
    rng = np.random.default_rng(seq_len)
    lengths = rng.integers(1, 60, 200)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    tokens = np.arange(offsets[-1] + 1) + 1000  # token i is 1000 + i: a pair shows where it came from
    plan = packing.plan(offsets, seq_len)
    document = np.repeat(np.arange(len(lengths)), lengths)
    seen = []
    for row in range(plan.num_rows):
        arrays = packing.row_arrays(tokens, plan, row, seq_len)
        used = arrays["segment_ids"] > 0
        assert (arrays["targets"][used] == arrays["tokens"][used] + 1).all()
        assert not arrays["tokens"][~used].any() and not arrays["positions"][~used].any()
        for segment in range(1, arrays["segment_ids"].max() + 1):
            place = np.flatnonzero(arrays["segment_ids"] == segment)
            pairs = arrays["tokens"][place] - 1000
            assert (np.diff(place) == 1).all() and (np.diff(pairs) == 1).all()
            assert len(set(document[pairs])) == 1  # one document a segment
            assert (arrays["positions"][place] == np.arange(len(place))).all()
        seen += (arrays["tokens"][used] - 1000).tolist()
    assert sorted(seen) == list(range(offsets[-1]))


def test_best_fit_decreasing():
    lengths = np.random.default_rng(0).integers(0, 101, 2000)
    bins = packing.best_fit(lengths, 100)
    assert sorted(i for group in bins for i in group) == np.flatnonzero(lengths).tolist()
    assert all(lengths[group].sum() <= 100 for group in bins)
    assert len(bins) <= 11 / 9 * np.ceil(lengths.sum() / 100) + 1  # the bound of best fit decreasing
    assert packing.best_fit(np.array([5, 4, 3, 3]), 8) == [[0, 2], [1, 3]]
    assert packing.best_fit(np.array([0, 0]), 8) == []


def test_rows_are_nearly_full():
    lengths = np.random.default_rng(1).lognormal(5, 1, 5000).astype(int) + 1
    plan = packing.plan(np.concatenate([[0], np.cumsum(lengths)]), 256)
    assert lengths.sum() / (plan.num_rows * 256) > 0.998
