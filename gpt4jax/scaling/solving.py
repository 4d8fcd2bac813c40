"""How often a model solves code tasks: samples by the engine, checked against the tasks' unit tests, in rounds."""

import json
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gpt4jax import files
from gpt4jax.data import code_tasks
from gpt4jax.data.code_tasks import Problem
from gpt4jax.errors import UserError
from gpt4jax.scaling import capability

Outcomes = list[list[int]]  # of each problem: 1 where a sample passed its tests, in the order of their seeds


def solve(
    problems: Sequence[Problem],
    sample: Callable[[Sequence[tuple[int, int]]], Iterable[str]],
    budget: int,
    successes: int,
    outcomes: Outcomes | None = None,
    keep: Callable[[Outcomes], None] = lambda outcomes: None,
) -> Outcomes:
    """Samples each problem in doubling rounds until both halves of its draws hold `successes`, or `budget` is drawn.

    The halves are every other draw: one ranks the problems, one measures them (`forecast`).

    Args:
        problems: what to solve.
        sample: completions of (problem, number of the sample) pairs, in order; the number is its seed.
        budget: samples of a problem, at most.
        successes: how many are enough.
        outcomes: of rounds that were done before.
        keep: called with the outcomes after each round.
    """
    outcomes = [list(row) for row in outcomes] if outcomes is not None else [[] for _ in problems]
    while True:
        drawn = [len(row) for row in outcomes]
        solved = [min(sum(row[0::2]), sum(row[1::2])) for row in outcomes]
        more = capability.next_samples(drawn, solved, budget, successes=successes)
        wanted = [(p, drawn[p] + i) for p in range(len(problems)) for i in range(int(more[p]))]
        if not wanted:
            return outcomes
        for (p, _), text in zip(wanted, sample(wanted), strict=True):
            outcomes[p].append(int(code_tasks.passes(problems[p], text)))
        keep(outcomes)


def neg_log_pass_rates(outcomes: Outcomes, successes: int) -> np.ndarray:
    """The unbiased estimate of -log(pass rate) by inverse sampling; NaN where `successes` were not reached.

    Protocol A.4: samples until the r-th success at draw N give H_{N-1} - H_{r-1}, wherever the rounds ended.
    """
    out = np.full(len(outcomes), np.nan)
    for p, row in enumerate(outcomes):
        draws = int(capability.draws_until(np.array([row]), successes)[0])
        if draws:
            out[p] = float(capability.inverse_sampling(draws, successes))
    return out


def of_run(workdir: pathlib.Path, problems: Sequence[Problem], options: Any, cache: pathlib.Path) -> Outcomes:
    """The outcomes of a trained run's newest checkpoint, sampled at temperature 1; kept beside the run and resumed.

    `options` is the config group `ladder`. Raises UserError if what is kept is of other problems.
    """
    key = [problem.prompt for problem in problems]
    kept = files.read_json(cache)
    if kept and kept["prompts"] != key:
        raise UserError(f"{cache} has outcomes of other problems; remove it to sample anew")

    def keep(outcomes: Outcomes) -> None:
        packed = ["".join(map(str, row)) for row in outcomes]
        files.replace(cache, json.dumps({"prompts": key, "outcomes": packed}) + "\n")

    before = [[int(c) for c in row] for row in kept["outcomes"]] if kept else None
    return solve(problems, _sampler(workdir, problems), options.sample_budget, options.successes, before, keep)


def _sampler(workdir: pathlib.Path, problems: Sequence[Problem]):
    """Samples by the engine, which is made when the first are wanted."""
    engines: list[Any] = []

    def sample(wanted: Sequence[tuple[int, int]]) -> list[str]:
        from gpt4jax.inference.request import Request

        if not engines:
            engines.append(_engine(workdir))
        (engine,) = engines
        prompts = [engine.tokenizer.prompt(problem.prompt) for problem in problems]
        longest = engine.max_len - max(map(len, prompts))
        requests = [Request(prompts[p], min(code_tasks.MAX_BYTES, longest), seed=seed) for p, seed in wanted]
        return [result.text for result in engine.generate(requests)]

    return sample


def _engine(workdir: pathlib.Path):
    from gpt4jax import config as configuration
    from gpt4jax.data import tokenizer
    from gpt4jax.inference.engine import Engine
    from gpt4jax.training import checkpoint

    config = configuration.from_json(workdir / "config.json")
    model_config = configuration.model_config(config)
    tok = tokenizer.of_run(config.data.tokenizer, workdir, files.cache_dir(config.data.cache_dir))
    step, params = checkpoint.load_params(workdir, model_config, lambda line: None)
    if step != config.num_steps:
        raise UserError(f"{workdir} has no sound checkpoint of its last step, {config.num_steps}, but of {step}")
    return Engine(model_config, params, tokenizer=tok, rows=256)


def forecast(
    compute: Sequence[float], outcomes: Sequence[Outcomes], names: Sequence[str], target_compute: float, options: Any
) -> dict[str, Any]:
    """The target's -E[log pass rate] by difficulty bucket, from the models below it (the report's section 3.2).

    Buckets are formed from the smaller half of the models, all problems but the hardest; in each, a problem that some
    model did not solve `successes` times within its budget is left out, by name. Difficulty and pass rate are
    estimated from draws apart: problems that are called easy by luck would else look easier than they are. A bucket
    without a law says why.

    Args:
        compute: FLOPs of each model, at most the target's over the ratio.
        outcomes: of each model, over all problems.
        names: of the problems.
        target_compute: FLOPs of the model to forecast.
        options: the config group `ladder`.

    Raises:
        UserError: fewer problems than buckets, or none that every model solves.
    """
    ranking_mp, estimates_mp = (
        np.stack([neg_log_pass_rates(part(one), options.successes) for one in outcomes]) for part in (_first, _second)
    )
    order = np.argsort(compute, kind="stable")
    smaller = ranking_mp[order[: max(1, len(order) // 2)]]
    excluded = round(options.excluded_problems * len(names))
    try:
        hardness = np.where(np.isfinite(smaller), smaller, _NEVER)
        buckets = capability.difficulty_buckets(hardness, options.buckets, excluded)
    except ValueError as error:
        raise UserError(str(error)) from error
    solved = np.isfinite(estimates_mp).all(axis=0)
    if not solved.any():
        raise UserError(
            f"no problem of {len(names)} is solved {options.successes} times in {options.sample_budget // 2} samples "
            "by every model: a larger ladder.sample_budget, or larger models"
        )
    rows = []
    for bucket in buckets.buckets:
        chosen = [p for p in bucket if solved[p]]
        row: dict[str, Any] = {
            "problems": [names[p] for p in chosen],
            "dropped": [names[p] for p in bucket if not solved[p]],
        }
        row["mean_neg_log"] = estimates_mp[:, chosen].mean(axis=1).tolist() if chosen else []
        try:
            law = capability.fit(compute, estimates_mp[:, chosen])
            row |= {"alpha": law.alpha, "k": law.k, "forecast": law.predict(target_compute)}
            row["interval"] = list(law.interval(target_compute, options.level))
        except ValueError as error:
            row["no_forecast"] = str(error)
        rows.append(row)
    return {"compute": list(compute), "buckets": rows, "excluded": [names[p] for p in buckets.excluded]}


_NEVER = 1e6  # the difficulty of a problem that was never solved: beyond every estimate


def _first(outcomes: Outcomes) -> Outcomes:
    return [row[0::2] for row in outcomes]


def _second(outcomes: Outcomes) -> Outcomes:
    return [row[1::2] for row in outcomes]


def compare(registered: dict[str, Any], names: Sequence[str], outcomes: Sequence[Outcomes], options: Any) -> list[dict]:
    """Each bucket's forecast beside the targets' mean of -log(pass rate), one of each seed."""
    index = {name: p for p, name in enumerate(names)}
    rows = []
    for bucket in registered["buckets"]:
        chosen = [index[name] for name in bucket["problems"]]
        observed = []
        for one in outcomes:
            estimates = neg_log_pass_rates(_second([one[p] for p in chosen]), options.successes)
            observed.append(float(estimates.mean()) if np.isfinite(estimates).all() else None)
        rows.append({"forecast": bucket.get("forecast"), "interval": bucket.get("interval"), "observed": observed})
    return rows


def describe(registered: Sequence[dict[str, Any]], options: Any, measured: Sequence[Sequence[dict]] = ()) -> str:
    """Each bucket's forecast of -E[log pass rate], and what came, for a person."""
    lines = []
    for at, one in enumerate(registered):
        lines.append(f"pass rates forecast from at most 1/{one['ratio']:g}, easiest bucket first, as -E[log p]:")
        lines += [f"  no forecast: {one['no_forecast']}"] if "no_forecast" in one else []
        for number, bucket in enumerate(one["buckets"]):
            line = f"  {len(bucket['problems'])} problems"
            line += f" ({len(bucket['dropped'])} more never solved by some model)" if bucket["dropped"] else ""
            if "forecast" in bucket:
                line += f": {bucket['forecast']:.3f}, falling as C^-{bucket['k']:.3f}"
            if "interval" in bucket:
                low, high = bucket["interval"]
                line += f"; {options.level:.0%} of problems like these: {low:.3f} to {high:.3f}"
            if "no_forecast" in bucket:
                line += f"; no interval or forecast: {bucket['no_forecast']}"
            if measured:
                observed = measured[at][number]["observed"]
                line += "; measured " + ", ".join("not solved" if one is None else f"{one:.3f}" for one in observed)
            lines.append(line)
    return "\n".join(lines)
