"""How often a model solves code tasks: samples by the engine, checked against the tasks' unit tests, in rounds."""

import dataclasses
import hashlib
import json
import pathlib
import zlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from gpt4jax import files
from gpt4jax.data import code_tasks
from gpt4jax.data.code_tasks import Problem
from gpt4jax.errors import UserError
from gpt4jax.scaling import capability
from gpt4jax.scaling.forecast import code_digest
from gpt4jax.scaling.pool import Train, stopping
from gpt4jax.signals import TERMINATED

KEPT = "solved.json"  # in a run's folder
_ROWS = 256  # requests decoded at once
_SAMPLING_CODE = ("data", "inference", "model", "scaling/solving.py")
Outcomes = list[list[int]]  # of each problem: 1 where a sample passed its tests, in the order drawn


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
        sample: completions of (problem, number of the sample) pairs, in order.
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
    """The estimate of -log(pass rate) by inverse sampling: H_{N-1} - H_{r-1} of the r-th success at draw N.

    Protocol A.4: without bias wherever the rounds ended. A problem that the budget ended before its r-th success gets
    H_n - H_c of its n draws, which is low by no more than the rest of the series beyond n; leaving it out instead would
    take the harder problems from the smaller models.
    """
    out = np.empty(len(outcomes))
    for p, row in enumerate(outcomes):
        draws = int(capability.draws_until(np.array([row]), successes)[0])
        out[p] = capability.inverse_sampling(draws, successes) if draws else capability.harmonic(len(row), sum(row))
    return out


def after(train: Train, problems: Sequence[Problem], options: Any, config: Any, workdir: pathlib.Path) -> int:
    """Trains a run and has it solve the problems in the same worker; the status that it ended with."""
    status = train(config, workdir)
    if status == 0 and stopping():  # asked to while the run ended: it is whole, and its problems can wait
        return TERMINATED
    if status == 0:
        of_run(workdir, problems, options)
    return status


def of_run(workdir: pathlib.Path, problems: Sequence[Problem], options: Any) -> Outcomes:
    """The outcomes of a trained run's last checkpoint, sampled at temperature 1; kept in its folder and resumed.

    The folder's name is the run's, from which its draws have their seeds. `options` is the config group `ladder`.
    What is kept of other problems or budgets, or was drawn by other code, is drawn anew.
    """
    path = workdir / KEPT
    asked = [dataclasses.asdict(problem) for problem in problems], options.sample_budget, options.successes
    key = hashlib.sha256(f"{asked}{code_digest(_SAMPLING_CODE)}".encode()).hexdigest()
    kept = files.read_json(path)
    before = [[int(c) for c in row] for row in kept["outcomes"]] if kept and kept["key"] == key else None

    def keep(outcomes: Outcomes) -> None:
        packed = ["".join(map(str, row)) for row in outcomes]
        files.replace(path, json.dumps({"key": key, "outcomes": packed}) + "\n")

    rows = min(_ROWS, len(problems) * options.sample_budget)
    return solve(problems, _sampler(workdir, problems, rows), options.sample_budget, options.successes, before, keep)


def _sampler(workdir: pathlib.Path, problems: Sequence[Problem], rows: int):
    """Samples by the engine, which is made when the first are wanted. Every run and problem has seeds of its own."""
    engines: list[Any] = []

    def sample(wanted: Sequence[tuple[int, int]]) -> list[str]:
        from gpt4jax.inference.request import Request

        if not engines:
            engines.append(engine(workdir, rows))
        (own,) = engines
        prompts = [own.tokenizer.prompt(problem.prompt) for problem in problems]
        room = [min(code_tasks.MAX_BYTES, own.max_len - len(prompt)) for prompt in prompts]
        requests = [Request(prompts[p], room[p], seed=_seed(workdir.name, problems[p].name, i)) for p, i in wanted]
        return [result.text for result in own.generate(requests)]

    return sample


def _seed(*names: object) -> int:
    return zlib.crc32(repr(names).encode())


def engine(workdir: pathlib.Path, rows: int):
    """An engine of `rows` rows for a trained run's last checkpoint, with its tokenizer.

    Raises:
        UserError: the run has no sound checkpoint of its last step.
    """
    from gpt4jax import config as configuration
    from gpt4jax.data import tokenizer
    from gpt4jax.inference.engine import Engine
    from gpt4jax.training import checkpoint

    config = configuration.from_json(workdir / "config.json")
    model_config = configuration.model_config(config)
    tok = tokenizer.of_run(config.data.tokenizer, workdir, files.shared_cache(config.data.cache_dir))
    step, params = checkpoint.load_params(workdir, model_config, lambda line: None)
    if step != config.num_steps:
        raise UserError(f"{workdir} has no sound checkpoint of its last step, {config.num_steps}, but of {step}")
    return Engine(model_config, params, tokenizer=tok, rows=rows)


def check_problems(problems: Sequence[Problem], tokenizer: Any, max_seq_len: int) -> None:
    """Checks that the decoder has room for every problem and its solution, and reads both as it was trained to.

    Raises:
        UserError: it has not, or the tokenizer joins the end of a prompt with the solution's beginning, so that a
            prompt alone ends in tokens that no training text has there.
    """
    for p in problems:
        if [*tokenizer.prompt(p.prompt), *tokenizer.encode(p.solution)] != tokenizer.prompt(p.prompt + p.solution):
            raise UserError(
                f"the tokenizer joins the end of {p.name}'s prompt with the beginning of its solution: code tasks "
                "need another one (data.tokenizer=bytes, say)"
            )
    longest = max(len(tokenizer.prompt(p.prompt)) + len(tokenizer.encode(p.solution)) + 1 for p in problems)
    if longest > max_seq_len:
        raise UserError(f"a code task with its solution takes {longest} tokens, and model.max_seq_len is {max_seq_len}")


def forecast(
    compute: Sequence[float], outcomes: Sequence[Outcomes], names: Sequence[str], target_compute: float, options: Any
) -> dict[str, Any]:
    """The target's -E[log pass rate] by difficulty bucket, from the models below it (the report's section 3.2).

    Buckets are formed from the smaller half of the models, all problems but the hardest; in each, a problem that some
    model did not solve `least_solved` times is left out, by name. Pass rates are estimated from other draws than these
    two choices are made from: problems that are called easy by luck would else look easier than they are. A bucket
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
        np.stack([neg_log_pass_rates(half(one), options.successes) for one in outcomes]) for half in (_first, _second)
    )
    order = np.argsort(compute, kind="stable")
    excluded = round(options.excluded_problems * len(names))
    try:
        buckets = capability.difficulty_buckets(ranking_mp[order[: max(1, len(order) // 2)]], options.buckets, excluded)
    except ValueError as error:
        raise UserError(str(error)) from error
    reached_mp = np.array([[sum(row) >= options.least_solved for row in _first(one)] for one in outcomes], int)
    kept = set(capability.solved_by_every_model(reached_mp, names).kept)
    if not kept:
        raise UserError(
            f"no problem of {len(names)} is solved {options.least_solved} times in {options.sample_budget // 2} "
            "samples by every model: a larger ladder.sample_budget, or larger models"
        )
    rows = []
    for bucket in buckets.buckets:
        chosen = [p for p in bucket if p in kept]
        row: dict[str, Any] = {
            "problems": [names[p] for p in chosen],
            "dropped": [names[p] for p in bucket if p not in kept],
        }
        row["mean_neg_log"] = estimates_mp[:, chosen].mean(axis=1).tolist() if chosen else []
        try:
            if not chosen:
                raise ValueError("none is left")
            law = capability.fit(compute, estimates_mp[:, chosen])
            row |= {"alpha": law.alpha, "k": law.k, "forecast": law.predict(target_compute)}
            row["interval"] = list(law.interval(target_compute, options.level))
        except ValueError as error:
            row["no_forecast"] = str(error)
        rows.append(row)
    return {"compute": list(compute), "buckets": rows, "excluded": [names[p] for p in buckets.excluded]}


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
        observed = [
            float(neg_log_pass_rates(_second([one[p] for p in chosen]), options.successes).mean()) if chosen else None
            for one in outcomes
        ]
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
            line += (
                f" ({len(bucket['dropped'])} more not solved often enough by some model)" if bucket["dropped"] else ""
            )
            if "forecast" in bucket:
                line += f": {bucket['forecast']:.3g}, falling as C^-{bucket['k']:.3f}"
            if "interval" in bucket:
                low, high = bucket["interval"]
                line += f" ({options.level:.0%} over other problems of this kind: {low:.3g} to {high:.3g})"
            if "no_forecast" in bucket:
                line += f"; no {'interval' if 'forecast' in bucket else 'forecast'}: {bucket['no_forecast']}"
            if measured:
                observed = measured[at][number]["observed"]
                line += "; measured " + ", ".join("nothing" if one is None else f"{one:.3g}" for one in observed)
            lines.append(line)
    return "\n".join(lines)
