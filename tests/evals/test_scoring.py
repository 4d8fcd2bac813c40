"""pass@k beside counting every subset."""

import itertools
import math

import numpy as np

from gpt4jax.evals import scoring


def test_pass_at_k_counts_the_subsets_with_a_pass():
    for n in range(1, 9):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            subsets = list(itertools.combinations([True] * c + [False] * (n - c), k))
            assert math.isclose(scoring.pass_at_k(n, c, k), sum(map(any, subsets)) / len(subsets), abs_tol=1e-12)


def test_pass_at_k_takes_arrays_and_large_counts():
    found = scoring.pass_at_k(np.array([200, 200, 10]), [0, 200, 1], 10)
    assert found.tolist() == [0, 1, 1]
    exact = 1 - math.comb(190, 100) / math.comb(200, 100)
    assert math.isclose(scoring.pass_at_k(200, 10, 100), exact, rel_tol=1e-12)
