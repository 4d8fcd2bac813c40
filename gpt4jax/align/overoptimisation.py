"""What a policy gains by a reward model's score, and loses by believing it too far. Gao et al. 2023.

With d = sqrt(KL to the policy before), the true reward that reinforcement learning gains is found to follow

    R(d) = d (a - b log d)

(their equation 2): a is how well it begins, b how soon the reward model leads it astray. It is largest where
d = exp(a / b - 1).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike


class Law(NamedTuple):
    """The fitted law, and the root of the mean squared error of what it was fitted to."""

    a: float
    b: float
    error: float

    def gain(self, kl: ArrayLike) -> np.ndarray:
        """The true reward gained at a KL in nats; 0 at 0."""
        d = np.sqrt(np.asarray(kl, np.float64))
        return d * (self.a - self.b * np.log(np.where(d > 0, d, 1.0)))

    @property
    def peak_kl(self) -> float:
        """The KL at which the gain is largest, in nats; infinite where it only grows."""
        return float(np.exp(2 * (self.a / self.b - 1))) if self.b > 0 else float("inf")


def fit(kl: ArrayLike, gain: ArrayLike) -> Law:
    """The law by least squares, in which a and b are linear.

    Args:
        kl: of policies from the one before, in nats; at least two different ones above 0.
        gain: their true reward less that of the policy before.

    Raises:
        ValueError: too few, or lengths that differ.
    """
    kl_i, gain_i = np.asarray(kl, np.float64), np.asarray(gain, np.float64)
    if kl_i.shape != gain_i.shape or kl_i.ndim != 1:
        raise ValueError(f"KLs of shape {kl_i.shape} and gains of shape {gain_i.shape}: they must be pairs")
    kl_i, gain_i = kl_i[kl_i > 0], gain_i[kl_i > 0]
    if len(np.unique(kl_i)) < 2:
        raise ValueError("the law has two parameters: it needs two different KLs above 0")
    d_i = np.sqrt(kl_i)
    (a, b), *_ = np.linalg.lstsq(np.stack([d_i, -d_i * np.log(d_i)], axis=1), gain_i)
    law = Law(float(a), float(b), 0.0)
    return law._replace(error=float(np.sqrt(np.mean((law.gain(kl_i) - gain_i) ** 2))))
