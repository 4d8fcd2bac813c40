"""The ladder: from one config, the small runs and the target, each with its size, tokens, batch and learning rate.

Every run has the same tokens for each parameter and the same hyper-parameters up to muP (width and depth) and two
power laws of the training length (batch and learning rate): one recipe, so that compute is all that differs.
"""

import copy
import dataclasses
import math
from typing import Any

import ml_collections

from gpt4jax import config as configuration
from gpt4jax.errors import UserError
from gpt4jax.model import mup
from gpt4jax.model.config import Config
from gpt4jax.model.flops import flops_per_token
from gpt4jax.model.parameters import table


def default() -> ml_collections.ConfigDict:
    """The config of a run with the group `ladder`; every key and its meaning."""
    c = configuration.default().unlock()
    c.ladder = r = ml_collections.ConfigDict()
    r.target_compute = 3e14  # training FLOPs of the run to forecast, by our count (gpt4jax/model/flops.py)
    r.min_compute = 1e11  # of the smallest run of the ladder
    r.max_compute = 3e12  # of its largest; at most target_compute / ratios[0]
    r.levels = 7  # compute levels, equally apart in the logarithm
    r.ratios = (100.0, 1000.0)  # forecasts, each from runs of at most target_compute / ratio
    r.seeds = 2  # runs of the largest level
    r.seeds_exponent = 0.0  # a level of 1/x of its compute has x to this power as many: small runs are cheap
    r.target_seeds = 2  # runs of the target
    r.tokens_per_parameter = 20.0  # parameters that a token is multiplied by (embedding look-ups are not)
    r.grow = "head_dim"  # what grows with embed_dim: "head_dim" (as many heads), or "num_heads"
    r.width_per_layer = 32.0  # embed_dim / num_layers of the larger decoders
    r.min_layers = 2  # of the smaller
    r.base_tokens = 2e6  # the training length at which batch_size and learning_rate are as the config has them
    r.batch_exponent = 0.5  # rows of a step grow as tokens to this power
    r.rows_multiple = 1  # of which rows of a step are multiples: devices that share a batch
    r.rate_exponent = 0.0  # the learning rate falls as tokens to this power; below 0 it rises
    r.warmup_fraction = 0.05  # of the steps
    r.decay_fraction = 0.2  # of the steps, where optimizer.schedule is warmup_stable_decay
    r.curve_points = 8  # evaluations of each run, for loss curves; the last one is the run's loss
    r.level = 0.9  # of the intervals
    r.problems_per_level = 0  # code tasks that every run is asked to solve, of the text's family; 0: none
    r.sample_budget = 1024  # samples of a problem, at most
    r.successes = 2  # samples of a problem end with so many right ones in each half of them
    r.least_solved = 2  # a problem is left out unless every run has so many right ones in the first half
    r.buckets = 6  # of difficulty
    r.excluded_problems = 15 / 164  # the hardest, as a fraction
    r.workers = 0  # runs at a time; 0: one for each accelerator, or two on a CPU, which share its cores
    # (the target's seeds run one after the other on all accelerators, and on a CPU side by side)
    return c.lock()


@dataclasses.dataclass(frozen=True)
class Run:
    """One run: what it costs, and the config with which `gpt4jax.train` runs it.

    Attributes:
        name: its folder.
        compute: training FLOPs (`flops_per_token` times tokens).
        num_params: parameters that a token is multiplied by.
        num_tokens: tokens of all its steps.
        seed: of parameters and of the order of rows.
        config: resolved, without the group `ladder`.
    """

    name: str
    compute: float
    num_params: int
    num_tokens: int
    seed: int
    config: ml_collections.FrozenConfigDict


@dataclasses.dataclass(frozen=True)
class Ladder:
    """The runs to fit and the runs to forecast, which differ in their seeds only."""

    runs: tuple[Run, ...]
    targets: tuple[Run, ...]


def plan(config: ml_collections.ConfigDict) -> Ladder:
    """The runs that the group `ladder` of `config` describes.

    Raises:
        UserError: levels, ratios or sizes that make no ladder.
    """
    try:
        return _plan(config)
    except ValueError as error:  # a decoder that can't be
        raise UserError(str(error)) from error


def _plan(config: Any) -> Ladder:
    r = config.ladder
    _check(r)
    span = math.log(r.max_compute / r.min_compute)
    wanted = [r.min_compute * math.exp(span * i / (r.levels - 1)) for i in range(r.levels)]
    shapes = {}
    for compute in wanted:  # neighbours may find the same shape: one level then
        shape = _shape(config, compute, r.max_compute)
        shapes[shape.embed_dim, shape.num_layers] = shape
    if len(shapes) < 2:
        raise UserError(f"the ladder has one compute level, {r.min_compute:.2g} to {r.max_compute:.2g} FLOPs: widen it")
    # Every run has a seed of its own, and so its own order of tokens: their noise is independent.
    runs: list[Run] = []
    most = max(_cost(config, shape) for shape in shapes.values())
    for shape in shapes.values():
        for _ in range(max(1, round(r.seeds * (most / _cost(config, shape)) ** r.seeds_exponent))):
            runs.append(_run(config, shape, len(runs)))
    goal = _shape(config, r.target_compute, math.inf)
    targets = [_run(config, goal, len(runs) + seed, "target") for seed in range(r.target_seeds)]
    largest = max(run.compute for run in runs)
    if largest > targets[0].compute / min(r.ratios):
        raise UserError(
            f"the largest run of the ladder has {largest:.3g} FLOPs, more than 1/{min(r.ratios):g} of the target's "
            f"{targets[0].compute:.3g}: lower ladder.max_compute"
        )
    return Ladder(tuple(runs), tuple(targets))


def _check(r: Any) -> None:
    if not (r.levels >= 2 and r.max_compute > r.min_compute > 0):
        raise UserError(
            f"ladder: {r.levels} levels from {r.min_compute:g} to {r.max_compute:g} FLOPs are one compute level; a law "
            "needs several (four or more for intervals)"
        )
    for name in (
        "seeds",
        "target_seeds",
        "min_layers",
        "rows_multiple",
        "curve_points",
        "sample_budget",
        "successes",
        "least_solved",
        "buckets",
    ):
        if r[name] < 1:
            raise UserError(f"ladder.{name} is {r[name]}; it must be at least 1")
    for name in ("tokens_per_parameter", "width_per_layer", "base_tokens", "target_compute"):
        if not r[name] > 0:
            raise UserError(f"ladder.{name} is {r[name]}; it must be above 0")
    if r.least_solved > r.successes:
        raise UserError(f"ladder.least_solved is {r.least_solved}, and samples end with {r.successes} successes")
    if not 0 <= r.seeds_exponent <= 1:
        raise UserError(f"ladder.seeds_exponent is {r.seeds_exponent}; it lies in [0, 1]")
    if r.grow not in ("head_dim", "num_heads"):
        raise UserError(f"ladder.grow is {r.grow!r}; it must be head_dim or num_heads")
    if not r.ratios or min(r.ratios) < 1 or not 0 < r.level < 1:
        raise UserError("ladder: ratios must be 1 or more, level in (0, 1)")
    if not 0 <= r.warmup_fraction < 1 or not 0 < r.decay_fraction < 1 or r.warmup_fraction + r.decay_fraction > 0.99:
        raise UserError("ladder: warmup_fraction and decay_fraction lie in [0, 1) and leave some steps between them")


def multiplied(shape: Config) -> int:
    """The parameters that each token is multiplied by: N of a law in N and D."""
    return sum(row.size for row in table(shape) if row.matmul)


def _shape(config: Any, compute: float, most: float) -> Config:
    """The decoder whose run comes nearest to `compute` (in the logarithm), and not above `most`."""
    r, base = config.ladder, configuration.model_config(config)
    step = _width_step(base, r.grow)
    best, distance, width = None, math.inf, step
    while True:
        shape = mup.grow(base, width, max(r.min_layers, round(width / r.width_per_layer)), by=r.grow)
        cost = _cost(config, shape)
        if cost <= most * 1.0001 and abs(math.log(cost / compute)) < distance:
            best, distance = shape, abs(math.log(cost / compute))
        if cost > min(4 * compute, most) or width > 10**6:
            break
        width += step
    if best is None:
        raise UserError(
            f"the smallest decoder of this config, of embed_dim {step}, costs {cost:.3g} FLOPs at "
            f"{r.tokens_per_parameter:g} tokens a parameter, more than {most:.3g}: raise ladder.max_compute"
        )
    return best


def _cost(config: Any, shape: Config) -> float:
    """Training FLOPs of a run, before its tokens are rounded to whole steps."""
    tokens = multiplied(shape) * config.ladder.tokens_per_parameter
    return tokens * flops_per_token(shape, config.data.seq_len)["train"]


def _width_step(base: Config, grow: str) -> int:
    """The least growth of embed_dim by whole heads, or by heads of an even width (rotary positions turn pairs)."""
    if grow == "num_heads":
        return base.embed_dim // math.gcd(base.embed_dim, base.num_heads, base.num_kv_heads)
    return base.embed_dim // math.gcd(base.embed_dim, base.head_dim) * 2


def _run(config: Any, shape: Config, seed: int, kind: str = "run") -> Run:
    r = config.ladder
    tokens = multiplied(shape) * r.tokens_per_parameter
    growth = tokens / r.base_tokens
    ideal = config.batch_size * growth**r.batch_exponent
    rows = r.rows_multiple * max(1, round(ideal / r.rows_multiple))
    steps = max(1, round(tokens / (rows * config.data.seq_len)))
    one = copy.deepcopy(config).unlock()
    del one.ladder
    one.seed, one.batch_size, one.num_steps = config.seed + seed, rows, steps
    with one.ignore_type():
        one.model.update({f.name: getattr(shape, f.name) for f in dataclasses.fields(shape) if f.name != "vision"})
    # Adam's rate goes as the root of the batch (Malladi et al. 2022), here of what rounding makes of it.
    one.optimizer.learning_rate = config.optimizer.learning_rate * growth**-r.rate_exponent * math.sqrt(rows / ideal)
    one.optimizer.warmup_steps = round(r.warmup_fraction * steps)
    if config.optimizer.schedule == "warmup_stable_decay":
        one.optimizer.decay_steps = max(1, round(r.decay_fraction * steps))
    one.eval.eval_every_steps = -(-steps // r.curve_points)  # rounded up: the last one is the run's end
    one.eval.log_every_steps = max(1, steps // 100) if config.eval.log_every_steps else 0
    one.eval.sample_prompt = ""
    tokens = steps * rows * config.data.seq_len
    compute = tokens * flops_per_token(shape, config.data.seq_len)["train"]
    name = f"{kind}-{shape.embed_dim}x{shape.num_layers}-{one.seed}"
    return Run(name, compute, multiplied(shape), tokens, one.seed, ml_collections.FrozenConfigDict(one))


def describe(ladder: Ladder) -> str:
    """A table of the runs for a person."""
    lines = ["run                 parameters      tokens     FLOPs   steps    rows  learning rate"]
    for run in (*ladder.runs, *ladder.targets):
        lines.append(
            f"{run.name:18s} {run.num_params:11,} {run.num_tokens:11,} {run.compute:9.2e} {run.config.num_steps:7,} "
            f"{run.config.batch_size:7,}  {run.config.optimizer.learning_rate:.3g}"
        )
    small, target = max(run.compute for run in ladder.runs), ladder.targets[0].compute
    total = sum(run.compute for run in ladder.runs)
    lines.append(f"the target has {target / small:,.0f} times the compute of the largest run; the ladder {total:.2e}")
    return "\n".join(lines)
