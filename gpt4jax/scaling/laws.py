"""The law of the loss in compute, L(C) = a C^b + c: fit, prediction and intervals. OpenAI 2023, section 3.1.

Everything works on u = log(C / C_max) and y = log L, where a law is a level plus a shape:

    log L(C) = level + log(share + (1 - share) exp(b u)),    share = c / L(C_max).

The shape has two bounded parameters, b and share in [0, 1), and given a shape the level is a linear
problem. So the whole set of laws that fit the points well can be searched, with no start to choose.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from scipy.special import fdtrc, stdtrit

from gpt4jax.scaling import arguments, fitting

_STEEPEST, _FLATTEST = 2.0, 1e-3  # the range of -b
_SHARE_MAX = 1 - 1e-6
_EXPONENTS, _SHARES, _STARTS = 64, 17, 16  # how many of each are tried
_LEAST_SQUARES = 1e3  # a delta that no residual reaches


@dataclasses.dataclass(frozen=True)
class PowerLaw:
    """L(C) = a C^b + c, and the runs that it was fitted on.

    Attributes:
        a, b, c: on raw compute in FLOPs; c in the unit of the losses. a > 0, b < 0, c >= 0.
        noise: standard deviation of one run's log loss about the law, by least squares; NaN if runs are no
            more than parameters.
        compute, loss, weights: the runs.
        irreducible: whether c was fitted; else it is 0.
        warnings: what the runs don't determine, in words.
    """

    a: float
    b: float
    c: float
    noise: float
    compute: tuple[float, ...]
    loss: tuple[float, ...]
    weights: tuple[float, ...]
    irreducible: bool = True
    warnings: tuple[str, ...] = ()

    def predict(self, compute: ArrayLike) -> Any:
        """The loss at `compute` FLOPs, a float for a number and an array for an array; c at infinity.

        Raises:
            ValueError: compute that is not positive.
        """
        (c,) = arguments.positive(compute=compute)
        loss = self.a * c**self.b + self.c
        return float(loss) if loss.ndim == 0 else loss

    def interval(
        self, compute: ArrayLike, level: float = 0.9, kind: Literal["mean", "run"] = "mean"
    ) -> tuple[Any, Any]:
        """(low, high) that hold the loss at `compute` FLOPs with probability `level`; that of c at infinity.

        All laws are taken whose squared log residuals S exceed the least sum S_0 by no more than noise lets the
        true law's: S - S_0 <= t^2 S_0 / (n - p), with Student's t of n - p degrees of freedom at `level` (profile
        likelihood: Bates and Watts 1988, section 6.1). The interval is the range of their predictions, and holds
        `predict` too. Unlike a bootstrap's percentiles it stays near its level with 5 runs and 3 parameters, and
        where c is hardly determined. It assumes independent noise of one size in log loss (divided by the root of a
        run's weight) and that the law holds out there: neither can be seen in the runs.

        Args:
            compute: FLOPs, of any shape; infinity for the interval of c.
            level: in (0, 1).
            kind: "mean" for the law itself, "run" for one more run of weight 1, with noise of its own.

        Raises:
            ValueError: three or fewer levels of compute, no run to spare, or an argument out of its range.
        """
        (c,) = arguments.positive(compute=compute)
        arguments.level(level)
        arguments.kind(kind)
        if reason := self._no_interval():
            raise ValueError(f"No interval: {reason}")
        runs = np.array(self.weights) > 0
        u, y, w = _columns(np.array(self.compute), np.array(self.loss), np.array(self.weights))
        spare = int(runs.sum()) - self._num_parameters
        t = stdtrit(spare, (1 + level) / 2)
        with jax.enable_x64(True):
            (ahead,) = fitting.padded(np.log(c.ravel() / max(self.compute)))
            share_max = _SHARE_MAX if self.irreducible else 0.0
            low, high = _range(u, y, w, ahead, t**2 / spare, share_max, 1.0 if kind == "run" else 0.0)
        point = self.predict(c.ravel())
        ends = np.minimum(np.exp(low[: c.size]), point), np.maximum(np.exp(high[: c.size]), point)
        low, high = (end.reshape(c.shape) for end in ends)
        return (float(low), float(high)) if c.ndim == 0 else (low, high)

    @property
    def _num_parameters(self) -> int:
        return 3 if self.irreducible else 2

    @property
    def identified(self) -> bool:
        """Whether the runs speak for a c: its 90% interval is to be had and lies above 0."""
        return self.irreducible and not self._no_interval() and self.interval(np.inf)[0] > 0

    def _no_interval(self) -> str:
        """Why the runs give no interval; empty if they do."""
        used = [c for c, w in zip(self.compute, self.weights, strict=True) if w > 0]
        levels, parameters = len(set(used)), self._num_parameters
        if levels <= parameters:
            return (
                f"{levels} distinct levels of compute for {parameters} parameters leave nothing to judge the law by; "
                f"add levels until there are {parameters + 1} or more."
            )
        return ""

    def to_dict(self) -> dict[str, Any]:
        """The law as JSON can hold it."""
        fields = dataclasses.asdict(self)
        fields["noise"] = None if np.isnan(self.noise) else self.noise  # JSON has no NaN
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "PowerLaw":
        """The law that `to_dict` wrote."""
        values: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value for name, value in fields.items()
        }
        return cls(**{**values, "noise": np.nan if values["noise"] is None else values["noise"]})


def fit(
    compute: ArrayLike,
    loss: ArrayLike,
    *,
    weights: ArrayLike | None = None,
    delta: float = fitting.DELTA,
    irreducible: bool = True,
) -> PowerLaw:
    """The power law that minimises the sum of weights * huber(log loss - log L(C)).

    Hoffmann et al. 2022, section 3.3, for its objective. Several runs at one level of compute are welcome: they tell
    noise from misfit.

    Args:
        compute: (n,), FLOPs of each run.
        loss: (n,), its final loss, in any unit of which 0 is the least.
        weights: (n,), the inverse variance of a run's log loss relative to others'; ones by default.
        delta: where Huber's loss turns linear, in log units.
        irreducible: whether there is a c; without it the law is a C^b.

    Returns:
        The law; its `warnings` say what the runs don't determine.

    Raises:
        ValueError: an entry that is not finite and positive (named), lengths that differ, a single level of compute,
            or losses that on the whole do not fall with compute: a law with b < 0 would be no account of them.
    """
    x, loss_n, w = arguments.points(weights, compute=compute, loss=loss)
    levels = np.unique(x[w > 0])
    if len(levels) < 2:
        raise ValueError(f"All runs have {levels[0]:.4g} FLOPs: a law in compute needs more than one level of it.")
    _require_fall(np.log(x), np.log(loss_n), w)
    free = irreducible and len(levels) > 2
    u, y, w_n = _columns(x, loss_n, w)
    with jax.enable_x64(True):
        pure = _descend(u, y, w_n, delta, 0.0)
        found = _descend(u, y, w_n, delta, _SHARE_MAX) if free else pure
        least_squares = float(found[2])
        # The descent only nears c = 0, where it is on the edge of what it may be.
        level, b, share = (found if found[1] < pure[1] else pure)[0].tolist()
    spare = int((w > 0).sum()) - (3 if irreducible else 2)
    law = PowerLaw(
        a=float(np.exp(level - b * np.log(x.max())) * (1 - share)),
        b=b,
        c=float(np.exp(level) * share),
        noise=float(np.sqrt(least_squares / spare)) if spare > 0 else float("nan"),
        compute=tuple(x.tolist()),
        loss=tuple(loss_n.tolist()),
        weights=tuple(w.tolist()),
        irreducible=irreducible,
    )
    return dataclasses.replace(law, warnings=tuple(_doubts(law, len(levels))))


def _doubts(law: PowerLaw, levels: int) -> list[str]:
    """What the runs don't determine."""
    doubts = []
    if law.irreducible and levels == 2:
        doubts.append("Two levels of compute can't tell c from the rest: c is set to 0, and the law is a C^b.")
    if reason := law._no_interval():
        doubts.append(f"There is no interval: {reason}")
    elif law.irreducible and not law.identified:
        high = law.interval(np.inf)[1]
        doubts.append(f"c is not identified: at 90% it is anything from 0 to {high:.4g} (here {law.c:.4g}).")
    if law.irreducible and law.c == 0 and levels > 2:
        doubts.append("c is 0, the edge of its range: the losses fall at least as fast as a C^b without a c does.")
    if (p := lack_of_fit(law)) < 0.01:
        doubts.append(
            "The levels lie further from the law than their runs from each other (F test of lack of fit, "
            f"p = {p:.2g}): it bends somewhere, and intervals take that for noise."
        )
    if not 1.01 * _FLATTEST < -law.b < 0.99 * _STEEPEST:
        doubts.append(
            f"b = {law.b:.4g} is at the edge of its range, {-_STEEPEST} to {-_FLATTEST}: don't trust the law."
        )
    return doubts


def lack_of_fit(law: PowerLaw) -> float:
    """The p-value of the classical F test, whose noise is that of runs of one level about their mean; 1 without any.

    Draper and Smith 1998, section 2.1: a small one says that the levels lie further from the law than noise lets them.
    """
    w = np.array(law.weights)
    y, w, level = np.log(law.loss)[w > 0], w[w > 0], np.unique(np.array(law.compute)[w > 0], return_inverse=True)[1]
    mean = np.bincount(level, w * y) / np.bincount(level, w)
    within, spare = len(y) - len(mean), len(mean) - law._num_parameters
    pure = float(np.sum(w * (y - mean[level]) ** 2))
    if within < 1 or spare < 1 or pure <= 0:
        return 1.0
    misfit = law.noise**2 * (len(y) - law._num_parameters) - pure
    return float(fdtrc(spare, within, max(misfit, 0) / spare / (pure / within)))


def _require_fall(log_compute: np.ndarray, log_loss: np.ndarray, w: np.ndarray) -> None:
    centred = log_compute - np.average(log_compute, weights=w)
    slope = np.sum(w * centred * log_loss) / np.sum(w * centred**2)
    if slope >= 0:
        raise ValueError(
            f"The losses do not fall with compute (they change as C^{slope:+.3g}): no law with b < 0 describes them. "
            "Look for diverged runs, or a learning rate that does not carry over between sizes."
        )


def _columns(compute: np.ndarray, loss: np.ndarray, weights: np.ndarray) -> tuple[jax.Array, ...]:
    """Padded u = log(C / C_max), log loss, and weights."""
    with jax.enable_x64(True):
        return fitting.padded(np.log(compute / compute.max()), np.log(loss), weights)


def _shape(b: jax.Array, share: jax.Array, u: jax.Array) -> jax.Array:
    return jnp.log(share + (1 - share) * jnp.exp(b * u))


def _level(b: jax.Array, share: jax.Array, u: jax.Array, y: jax.Array, w: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Least squares over the level, given shapes (...): the level, and the sum of squares that is left."""
    rest = y - _shape(b[..., None], share[..., None], u)
    level = (rest @ w) / w.sum()
    return level, (rest - level[..., None]) ** 2 @ w


def _best_share(b: jax.Array, u: jax.Array, y: jax.Array, w: jax.Array, share_max: ArrayLike) -> jax.Array:
    """Least squares over share (and level), given exponents (e,): a grid of shares, narrowed about its best point."""

    def narrow(_, ends: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = ends
        grid = low[:, None] + (high - low)[:, None] * jnp.linspace(0, 1, 17)
        best = jnp.argmin(_level(b[:, None], grid, u, y, w)[1], 1)[:, None]
        low, high = (jnp.take_along_axis(grid, jnp.clip(best + i, 0, 16), 1)[:, 0] for i in (-1, 1))
        return low, high

    low, high = jax.lax.fori_loop(0, 7, narrow, (jnp.zeros_like(b), jnp.full_like(b, share_max)))
    return (low + high) / 2


def _exponents(low: ArrayLike, high: ArrayLike, number: int) -> jax.Array:
    return -jnp.exp(jnp.linspace(jnp.log(low), jnp.log(high), number))


@jax.jit
def _descend(
    u: jax.Array, y: jax.Array, w: jax.Array, delta: ArrayLike, share_max: ArrayLike
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The best of descents from least-squares laws of many exponents: (level, b, share), Huber sum, squares' sum."""
    span = jnp.log(_STEEPEST / _FLATTEST)

    def natural(params: jax.Array) -> jax.Array:
        b = -_FLATTEST * jnp.exp(span * jax.nn.sigmoid(params[1]))
        return jnp.stack([params[0], b, share_max * jax.nn.sigmoid(params[2])])

    def log_model(params: jax.Array) -> jax.Array:
        level, b, share = natural(params)
        return level + _shape(b, share, u)

    def descend(start: jax.Array, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
        return fitting.minimize(log_model, start, y, w, delta)

    b = _exponents(1.5 * _FLATTEST, _STEEPEST / 1.5, _STARTS)
    share = _best_share(b, u, y, w, share_max)
    fractions = jnp.stack([jnp.log(-b / _FLATTEST) / span, share / jnp.maximum(share_max, 1e-9)], 1)
    bounded = jax.scipy.special.logit(jnp.clip(fractions, 0.01, 0.99))
    starts = jnp.concatenate([_level(b, share, u, y, w)[0][:, None], bounded], 1)
    deltas = jnp.stack([jnp.asarray(delta), jnp.asarray(_LEAST_SQUARES)])
    found, values = jax.vmap(jax.vmap(descend, (0, None)), (None, 0))(starts, deltas)
    return natural(found[0, jnp.argmin(values[0])]), values[0].min(), 2 * values[1].min()


@jax.jit
def _range(
    u: jax.Array,
    y: jax.Array,
    w: jax.Array,
    ahead: jax.Array,
    excess: ArrayLike,
    share_max: ArrayLike,
    noise: ArrayLike,
) -> tuple[jax.Array, jax.Array]:
    """The lowest and highest log loss, at u = `ahead` (m,), of the laws that fit to within (1 + excess) least squares.

    For each exponent the shares that do are an interval; for each shape, so are the levels.
    `noise` is 1 for one more run and 0 for the law: the run may add its own squared residual.
    """

    def search(span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, ...]:
        b = _exponents(*span, _EXPONENTS)
        best = _best_share(b, u, y, w, share_max)
        squares = _level(b, best, u, y, w)[1]
        limit = squares.min() * (1 + excess)
        return b, best, limit, squares <= limit

    def narrow(_, span: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        b, _, _, inside = search(span)
        first, last = jnp.argmax(inside), b.size - 1 - jnp.argmax(inside[::-1])
        return -b[jnp.maximum(first - 1, 0)], -b[jnp.minimum(last + 1, b.size - 1)]

    whole = jnp.asarray(_FLATTEST), jnp.asarray(_STEEPEST)
    b, best, limit, inside = search(jax.lax.fori_loop(0, 2, narrow, whole))

    def end(edge: ArrayLike) -> jax.Array:
        """The farthest share towards `edge` that is within the limit, by bisection."""

        def halve(_, ends):
            near, far = ends
            middle = (near + far) / 2
            ok = _level(b, middle, u, y, w)[1] <= limit
            return jnp.where(ok, middle, near), jnp.where(ok, far, middle)

        far = jnp.full_like(b, edge)
        near, _ = jax.lax.fori_loop(0, 40, halve, (best, far))
        return jnp.where(_level(b, far, u, y, w)[1] <= limit, far, near)

    from_share, to_share = end(0.0), end(share_max)
    shares = from_share[:, None] + (to_share - from_share)[:, None] * jnp.linspace(0, 1, _SHARES)
    levels, squares = _level(b[:, None], shares, u, y, w)
    reach = jnp.sqrt(jnp.maximum(limit - squares, 0) * (1 / w.sum() + noise))

    def ends(one: jax.Array) -> tuple[jax.Array, jax.Array]:
        centre = levels + _shape(b[:, None], shares, one)
        lowest = jnp.min(jnp.where(inside[:, None], centre - reach, jnp.inf))
        return lowest, jnp.max(jnp.where(inside[:, None], centre + reach, -jnp.inf))

    return jax.lax.map(ends, ahead)
