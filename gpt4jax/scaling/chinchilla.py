"""The law of the loss in parameters and tokens, L(N, D) = E + A / N^alpha + B / D^beta.

Hoffmann et al. 2022, section 3.3: their approach 3. Inside, parameters and tokens are divided by their geometric means,
and A, B and E are fitted as logs.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from gpt4jax.scaling import arguments, fitting

_EXPONENTS = (0.1, 0.3, 0.5, 0.8, 1.2)  # alpha and beta that descents start from; A, B and E follow from them
_MIN_RUNS = 6


@dataclasses.dataclass(frozen=True)
class Chinchilla:
    """L(N, D) = E + A / N^alpha + B / D^beta, and the runs that it was fitted on.

    Attributes:
        A, B, E, alpha, beta: on raw parameters and tokens; E in the unit of the losses.
        objective: the sum of Huber's losses at the fit.
        num_params, num_tokens, loss, weights: the runs.
        delta: where Huber's loss turned linear.
        shared_exponent: whether alpha and beta were one parameter.
    """

    A: float
    B: float
    E: float
    alpha: float
    beta: float
    objective: float
    num_params: tuple[float, ...]
    num_tokens: tuple[float, ...]
    loss: tuple[float, ...]
    weights: tuple[float, ...]
    delta: float
    shared_exponent: bool = False

    def predict(self, num_params: ArrayLike, num_tokens: ArrayLike) -> Any:
        """The loss of `num_params` parameters trained on `num_tokens` tokens; arrays broadcast.

        Raises:
            ValueError: an entry that is not positive.
        """
        n, d = arguments.positive(num_params=num_params, num_tokens=num_tokens)
        loss = self.E + self.A * n**-self.alpha + self.B * d**-self.beta
        return float(loss) if loss.ndim == 0 else loss

    def compute_optimal(self, compute: ArrayLike) -> tuple[Any, Any]:
        """(parameters, tokens) of the least loss at `compute` = 6 N D FLOPs. Hoffmann et al. 2022, equation 4."""
        c = np.asarray(compute, np.float64) / 6
        ratio = (self.alpha * self.A / (self.beta * self.B)) ** (1 / (self.alpha + self.beta))
        n = ratio * c ** (self.beta / (self.alpha + self.beta))
        return (float(n), float(c / n)) if n.ndim == 0 else (n, c / n)

    def interval(
        self,
        num_params: ArrayLike,
        num_tokens: ArrayLike,
        level: float = 0.9,
        kind: Literal["mean", "run"] = "mean",
        *,
        resamples: int = 1000,
        seed: int = 0,
    ) -> tuple[Any, Any]:
        """(low, high) that hold the loss with probability `level`: quantiles over refitted resamples.

        See `bootstrap`. With kind "run" noise is added for one more run of weight 1.

        Raises:
            ValueError: a level outside (0, 1), an unknown kind, or too few runs to resample.
        """
        n, d = np.broadcast_arrays(*arguments.positive(num_params=num_params, num_tokens=num_tokens))
        arguments.level(level)
        arguments.kind(kind)
        laws = bootstrap(self, resamples, seed)
        a, b, e, alpha, beta = (column.reshape(-1, *[1] * n.ndim) for column in laws.T)
        losses = np.log(np.exp(e) + np.exp(a - alpha * np.log(n)) + np.exp(b - beta * np.log(d)))
        if kind == "run":
            losses = losses + _noise(self, resamples, n.size, seed, of_new_runs=True).reshape(losses.shape)
        low, high = np.exp(np.quantile(losses, [(1 - level) / 2, (1 + level) / 2], axis=0))
        return (float(low), float(high)) if n.ndim == 0 else (low, high)

    def to_dict(self) -> dict[str, Any]:
        """The law as JSON can hold it."""
        fields = dataclasses.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "Chinchilla":
        """The law that `to_dict` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**values)


def fit(
    num_params: ArrayLike,
    num_tokens: ArrayLike,
    loss: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    delta: float = fitting.DELTA,
    shared_exponent: bool = False,
) -> Chinchilla:
    """The law that minimises the sum of weights * huber(log loss - log L(N, D)).

    Descents start from 25 pairs of exponents: given them the law is linear in A, B and E, which start at their
    least squares. Hoffmann et al. started from a grid of all five.

    Args:
        num_params: (n,), parameters of each run.
        num_tokens: (n,), tokens it was trained on.
        loss: (n,), its final loss.
        weights: (n,), inverse variances of log losses relative to each other; ones by default.
        delta: where Huber's loss turns linear, in log units.
        shared_exponent: whether alpha and beta are one, as in Gadre et al. 2024.

    Raises:
        ValueError: an entry that is not finite and positive (named), lengths that differ, fewer than six runs of
            some weight, or fewer than three distinct numbers of parameters or of tokens.
    """
    n, d, loss_n, w = arguments.points(weights, num_params=num_params, num_tokens=num_tokens, loss=loss)
    _require_spread(n[w > 0], d[w > 0])
    with jax.enable_x64(True):
        log_n, log_d, y, w_n, centre = _columns(n, d, loss_n, w)
        params, value = jax.device_get(_fit(log_n, log_d, y, w_n, delta, shared_exponent))
    if shared_exponent:
        params = params[[0, 1, 2, 3, 3]]
    a, b, e, alpha, beta = _uncentred(params, centre).tolist()
    return Chinchilla(
        A=float(np.exp(a)),
        B=float(np.exp(b)),
        E=float(np.exp(e)),
        alpha=alpha,
        beta=beta,
        objective=float(value),
        num_params=tuple(n.tolist()),
        num_tokens=tuple(d.tolist()),
        loss=tuple(loss_n.tolist()),
        weights=tuple(w.tolist()),
        delta=delta,
        shared_exponent=shared_exponent,
    )


def bootstrap(law: Chinchilla, resamples: int = 1000, seed: int = 0) -> np.ndarray:
    """Laws refitted to resampled losses, all in one vmapped fit: (resamples, 5) of log A, log B, log E, alpha, beta.

    The runs stay where they are, so that every resample is as identified as the runs: their log losses become the
    law's plus noise that is drawn as `_noise` says.

    Raises:
        ValueError: too few runs for residuals to say anything.
    """
    n, d, w = (np.array(column) for column in (law.num_params, law.num_tokens, law.weights))
    noise = _noise(law, resamples, len(n), seed) / np.sqrt(np.where(w > 0, w, 1))
    losses = law.predict(n, d) * np.exp(noise)
    with jax.enable_x64(True):
        log_n, log_d, y, w_n, centre = _columns(n, d, losses, w)
        start = _centred(law, centre)
        params = jax.device_get(_refit(start, log_n, log_d, y, w_n, law.delta, law.shared_exponent))
    if law.shared_exponent:
        params = params[:, [0, 1, 2, 3, 3]]
    return _uncentred(params, centre)


def _noise(law: Chinchilla, resamples: int, runs: int, seed: int, *, of_new_runs: bool = False) -> np.ndarray:
    """Noise of log losses of weight 1, (resamples, runs): a smoothed bootstrap of the law's residuals.

    The five smallest residuals are left out. Where noise is above delta a fit passes through about as many runs as it
    has parameters, so these say nothing of noise; and the mean square of the rest is that of least squares, over n - 5.
    Draws of the others are blurred by a normal kernel (Silverman 1986, equation 3.31) that keeps their variance: what
    Huber's fit does depends on the density of noise at 0, which n residuals show only roughly. And in each resample
    they are scaled by sqrt(k / chi2(k)), k = n - 5: what n runs leave open of the size of noise, as in Student's t.
    """
    n, d, loss, w = (np.array(column) for column in (law.num_params, law.num_tokens, law.loss, law.weights))
    used = w > 0
    spare = int(used.sum()) - 5
    if spare < 3:
        raise ValueError(f"{spare + 5} runs are too few for an interval with five parameters: have 8 or more.")
    residuals = (np.sqrt(w) * np.log(loss / law.predict(n, d)))[used]
    residuals = residuals[np.argsort(np.abs(residuals))[5:]]
    variance = np.mean(residuals**2)
    quarters = np.quantile(residuals, [0.25, 0.75])
    kernel = 0.9 * min(np.sqrt(variance), (quarters[1] - quarters[0]) / 1.34) * spare**-0.2
    rng = np.random.default_rng([seed, int(of_new_runs)])
    drawn = rng.choice(residuals, (resamples, runs)) + kernel * rng.normal(size=(resamples, runs))
    size = (
        np.random.default_rng([seed, 2]).chisquare(spare, (resamples, 1)) / spare
    )  # one for a resample and its new run
    return drawn * np.sqrt(variance / ((variance + kernel**2) * size)) if variance else drawn


def _require_spread(n: np.ndarray, d: np.ndarray) -> None:
    if len(n) < _MIN_RUNS:
        raise ValueError(f"{len(n)} runs can't determine five parameters: have {_MIN_RUNS} or more.")
    for name, values in (("num_params", n), ("num_tokens", d)):
        if len(np.unique(values)) < 3:
            raise ValueError(
                f"{name} has {len(np.unique(values))} distinct values; a power of it and E need 3 or more."
            )
    u, v = np.log(n), np.log(d)
    if abs(np.corrcoef(u, v)[0, 1]) > 1 - 1e-6:
        raise ValueError("num_tokens is a power of num_params in all runs: their two terms can't be told apart.")


def _columns(n: np.ndarray, d: np.ndarray, loss: np.ndarray, w: np.ndarray) -> tuple[Any, ...]:
    """Padded log N and log D about their means, log losses (their last axis is runs) and weights; and the means."""
    centre = np.array([np.log(n).mean(), np.log(d).mean()])
    return *fitting.padded(np.log(n) - centre[0], np.log(d) - centre[1], np.log(loss), w), centre


def _uncentred(params: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Parameters (..., 5) on raw parameters and tokens, from those on centred ones."""
    raw = np.array(params)
    raw[..., :2] += params[..., 3:] * centre
    return raw


def _centred(law: Chinchilla, centre: np.ndarray) -> jax.Array:
    a, b, e = np.log([law.A, law.B, law.E])
    return jnp.array([a - law.alpha * centre[0], b - law.beta * centre[1], e, law.alpha, law.beta])


def _log_model(params: jax.Array, log_n: jax.Array, log_d: jax.Array, shared: ArrayLike) -> jax.Array:
    a, b, e, alpha, beta = params
    beta = jnp.where(shared, alpha, beta)
    return jnp.logaddexp(jnp.logaddexp(a - alpha * log_n, b - beta * log_d), e)


def _starts(log_n: jax.Array, log_d: jax.Array, y: jax.Array, w: jax.Array) -> jax.Array:
    """Log A, log B, log E by least squares in relative error for each pair of exponents: (25, 5)."""

    def start(alpha: jax.Array, beta: jax.Array) -> jax.Array:
        terms = jnp.stack([jnp.exp(-alpha * log_n), jnp.exp(-beta * log_d), jnp.ones_like(y)], 1)
        relative = jnp.sqrt(w)[:, None] * terms / jnp.exp(y)[:, None]
        parts = jnp.linalg.lstsq(relative, jnp.sqrt(w))[0]
        least = 1e-3 * jnp.exp(jnp.sum(w * y) / jnp.sum(w))  # a negative term would have no log
        return jnp.concatenate([jnp.log(jnp.maximum(parts, least)), jnp.stack([alpha, beta])])

    alphas, betas = jnp.meshgrid(jnp.array(_EXPONENTS), jnp.array(_EXPONENTS))
    return jax.vmap(start)(alphas.ravel(), betas.ravel())


@jax.jit
def _fit(
    log_n: jax.Array, log_d: jax.Array, y: jax.Array, w: jax.Array, delta: ArrayLike, shared: ArrayLike
) -> tuple[Any, Any]:
    """The best of the descents from all starts: centred parameters (5,) and the sum."""

    def descend(start: jax.Array) -> tuple[jax.Array, jax.Array]:
        return fitting.minimize(lambda params: _log_model(params, log_n, log_d, shared), start, y, w, delta)

    found, values = jax.vmap(descend)(_starts(log_n, log_d, y, w))
    best = jnp.argmin(values)
    return found[best], values[best]


@jax.jit
def _refit(
    start: jax.Array,
    log_n: jax.Array,
    log_d: jax.Array,
    y: jax.Array,
    w: jax.Array,
    delta: ArrayLike,
    shared: ArrayLike,
) -> jax.Array:
    """Centred parameters (r, 5) of resampled log losses y (r, n), all descending from one start."""

    def descend(y: jax.Array) -> jax.Array:
        return fitting.minimize(lambda params: _log_model(params, log_n, log_d, shared), start, y, w, delta)[0]

    return jax.vmap(descend)(y)
