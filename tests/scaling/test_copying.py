"""The diagnosis of copying: which pairs of tokens came before, by hand."""

import numpy as np

from tests.bench.copying import seen_before


def test_pairs_count_within_a_segment_only():
    tokens = np.array([[1, 2, 1, 2, 1, 2, 0]])
    targets = np.array([[2, 1, 2, 1, 2, 3, 0]])
    segments = np.array([[1, 1, 1, 2, 2, 2, 0]])
    # (1,2) (2,1) (1,2)* | (2,1) (1,2) (2,3) |
    assert seen_before(tokens, targets, segments).tolist() == [[False, False, True, False, False, False, False]]
