"""The law of over-optimisation: found again where it holds, and beside a search where it does not."""

import numpy as np
import pytest
from scipy import optimize

from gpt4jax.align import overoptimisation


def test_the_law_is_found_again_with_its_peak():
    kl = np.linspace(0, 30, 40)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(kl > 0, np.sqrt(kl) * (1.3 - 0.6 * np.log(np.sqrt(kl))), 0)
    law = overoptimisation.fit(kl, gain)
    assert (law.a, law.b, law.error) == pytest.approx((1.3, 0.6, 0), abs=1e-9)
    fine = np.linspace(1, 100, 100_000)
    assert law.peak_kl == pytest.approx(fine[np.argmax(law.gain(fine))], abs=2e-3)
    assert law.gain(0.0) == 0 and overoptimisation.Law(1.0, 0.0, 0.0).peak_kl == float("inf")


def test_with_noise_it_has_the_least_squares():
    rng = np.random.default_rng(0)
    kl = rng.uniform(0.1, 9, 30)
    gain = np.sqrt(kl) + rng.normal(size=30)
    law = overoptimisation.fit(kl, gain)

    def squares(ab):
        return np.sum((np.sqrt(kl) * (ab[0] - ab[1] * np.log(kl) / 2) - gain) ** 2)

    found = optimize.minimize(squares, (0.0, 0.0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12})
    assert (law.a, law.b) == pytest.approx(tuple(found.x), abs=1e-5)
    assert law.error == pytest.approx((found.fun / 30) ** 0.5)


def test_too_little_to_fit():
    with pytest.raises(ValueError, match="two different KLs"):
        overoptimisation.fit([0.0, 2.0, 2.0], [0.0, 1.0, 1.1])
    with pytest.raises(ValueError, match="must be pairs"):
        overoptimisation.fit([1.0, 2.0], [1.0])
