"""Forecasts a large run from small ones: `python -m gpt4jax.predict --config configs/ladder_cpu.py --workdir DIR`.

Trains the ladder's runs, fits a law, registers the forecast in DIR/forecast.json, and only then trains the target and
compares. The same command resumes what was interrupted.
"""

import argparse
import datetime
import importlib.metadata
import json
import pathlib
from collections.abc import Sequence
from typing import Any

from gpt4jax import config as configuration
from gpt4jax import files, job
from gpt4jax.errors import UserError
from gpt4jax.train import train

SEAL = "forecast.sha256"  # in the target's folder: of the forecast that it was begun with
STAGES = ("ladder", "forecast", "target")
# Neither changes what a run computes.
_MAY_CHANGE = ("ladder.workers", "data.cache_dir", "data.prefetch")


def main(argv: Sequence[str]) -> int:
    """Reads the flags and forecasts; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.predict", description=__doc__.partition("\n")[0])
    job.config_flags(parser)
    parser.add_argument(
        "--until", choices=STAGES, default="target", help="stop after this stage (default: %(default)s)"
    )
    parser.add_argument(
        "--force", action="store_true", help="go on although code or data changed since the ladder; it is recorded"
    )
    flags, overrides = job.parse(parser, argv)
    from gpt4jax.scaling import ladder

    config = configuration.load(flags.config, overrides, ladder.default)
    return predict(config, flags.workdir, until=flags.until, force=flags.force)


def predict(config, workdir: pathlib.Path, *, until: str = "target", force: bool = False) -> int:
    """Runs (or resumes) the stages of a forecast up to `until`; returns the exit status.

    Raises:
        UserError: what is wrong with the config, the data, the workdir or the runs, in words.
    """
    import jax

    from gpt4jax.scaling import figures, forecast, ladder, pool, solving

    workdir = files.local_folder(workdir, "--workdir")
    configuration.check_values(config)
    plan = ladder.plan(config)
    problems = _problems(config.ladder)
    _open(workdir, config)
    job.say(f"{ladder.describe(plan)}\nworkdir {workdir}")

    # --- The data, prepared once for all workers; this process itself leaves accelerators to them.
    left = any(pool.result(run, workdir / "runs") is None for run in plan.runs)
    where = pool.places(config.ladder.workers, *pool.machine()) if left else []
    jax.config.update("jax_platforms", "cpu")
    facts, units = _data(config, plan)

    # --- The small runs.
    path = workdir / "forecast.json"
    forced = [] if path.exists() else _foreign(plan.runs, workdir / "runs", forecast.code_digest(), facts, force)
    results = pool.train_all(plan.runs, workdir / "runs", where, train, job.say)
    files.replace(workdir / "ladder.json", json.dumps([_row(r) for r in results], indent=1) + "\n")
    solved = _solved(results, workdir / "runs", problems, config.ladder)
    if until == "ladder":
        return 0

    # --- The forecast, before the target has taken a step.
    document = files.read_json(path)
    if not document:
        document = register(config, plan, results, workdir, facts, units, forced, problems, solved)
        files.replace(path, json.dumps(document, indent=1) + "\n")
    forecast.check_seal(document, str(path))
    print(forecast.describe(document, units))
    if problems:
        print(solving.describe(document["capability"], config.ladder), flush=True)
    figures.ladder(document, results, None, units, workdir)
    if until == "forecast":
        return 0

    # --- The target, and what came of the forecast.
    _check_target(document, plan, workdir)
    left = any(pool.result(run, workdir / "target") is None for run in plan.targets)
    since = _changed_since(document, facts, force) if left else []
    sealed = workdir / "target" / SEAL
    files.replace(sealed, document["sha256"] + "\n")
    done = pool.train_all(plan.targets, workdir / "target", [pool.Place({}, ())], train, job.say)
    losses = [r.loss for r in done if r.ended]
    if not losses:
        raise UserError(f"the target came to no loss: {[r.reason for r in done]}; the forecast stands in {path}")
    trained = _foreign(plan.targets, workdir / "target", document["code"], document["corpus"], True)
    report: dict[str, Any] = {"forecast_sha256": document["sha256"], "forced": [*document["forced"], *since, *trained]}
    report |= {"targets": [_row(r) for r in done], "forecasts": forecast.compare(document, losses)}
    if problems:
        outcomes = list(_solved(done, workdir / "target", problems, config.ladder).values())
        names = [problem.name for problem in problems]
        report["capability"] = [solving.compare(one, names, outcomes, config.ladder) for one in document["capability"]]
        figures.capability(document, report, workdir / "figure2.png")
    files.replace(workdir / "report.json", json.dumps(report, indent=1) + "\n")
    figures.ladder(document, results, done, units, workdir)
    figures.collapse([*results, *done], document, workdir)
    print(forecast.verdict(report, units))
    if problems:
        print(solving.describe(document["capability"], config.ladder, report["capability"]))
    print(f"workdir {workdir}")
    return 0


def _solved(results, folder: pathlib.Path, problems, options) -> dict[str, Any]:
    """Each ended run's outcomes over the problems, sampled where they are not kept yet."""
    from gpt4jax.scaling import solving

    outcomes = {}
    for result in results if problems else ():
        if result.ended:
            name = result.run.name
            outcomes[name] = solving.of_run(folder / name, problems, options, folder / f"{name}.solved.json")
            job.say(f"{name}: solved {sum(map(any, outcomes[name]))} of {len(problems)} problems")
    return outcomes


def register(
    config, plan, results, workdir: pathlib.Path, facts, units, forced: list[str], problems=(), solved=None
) -> dict[str, Any]:
    """The forecast as it will be sealed; `forced` says how runs of the ladder were not trained as this code would.

    Raises:
        UserError: the target has been begun, or no law fits.
    """
    import dataclasses

    from gpt4jax.scaling import forecast

    if (workdir / "target").exists():  # with whatever in it: a checkpoint, metrics, or only the code that began it
        raise UserError(f"{workdir / 'target'} exists, so the target was begun: a forecast of it now would be none")
    target = plan.targets[0]
    forecasts, without = [], {}
    for ratio in config.ladder.ratios:
        try:
            forecasts.append(forecast.fit(results, target, ratio, config.ladder.level))
        except UserError as error:
            without[f"{ratio:g}"] = str(error)
    if not forecasts:
        raise UserError("; ".join(without.values()))
    return forecast.seal(
        {
            "registered": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "unit": "held-out nats per token",
            "units": dataclasses.asdict(units),
            "least_loss": facts["least_loss"],  # known of the grammar alone
            "level": config.ladder.level,
            "forecasts": forecasts,
            "without_forecast": without,
            "capability": _capability(config, plan, results, problems, solved) if problems else [],
            "target": {"compute": target.compute, "num_params": target.num_params, "num_tokens": target.num_tokens,
                       "epochs": target.num_tokens / facts["train"]["pairs"],
                       "seeds": [run.seed for run in plan.targets], "config": target.config.to_dict()},
            "ladder": [_row(r) for r in results],
            "corpus": {key: facts[key] for key in ("dataset", "fingerprint", "tokenizer", "tokenizer_fingerprint")},
            "code": forecast.code_digest(),
            "versions": _versions(),
            "forced": forced,
        }
    )  # fmt: skip


def _capability(config, plan, results, problems, solved) -> list[dict[str, Any]]:
    """The forecasts of pass rates, one of each ratio."""
    from gpt4jax.scaling import solving

    target, out = plan.targets[0].compute, []
    for ratio in config.ladder.ratios:
        runs = [r.run for r in results if r.run.name in solved and r.run.compute <= target / ratio]
        outcomes, names = [solved[run.name] for run in runs], [problem.name for problem in problems]
        try:
            one = solving.forecast([run.compute for run in runs], outcomes, names, target, config.ladder)
        except (UserError, ValueError) as error:
            one = {"buckets": [], "no_forecast": str(error)}
        out.append({"ratio": ratio, **one})
    return out


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", "gpt4jax")}


def _open(workdir: pathlib.Path, config) -> None:
    saved = workdir / "config.json"
    old = files.read_json(saved)
    if old and "ladder" not in old:
        raise UserError(f"{workdir} holds another job's run; choose another workdir")
    if old and (different := configuration.differences(old, config, _MAY_CHANGE)):
        raise UserError(
            f"{workdir} was begun with another config; choose another workdir, or change back " + "; ".join(different)
        )
    if not old and workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and no forecast of gpt4jax; choose another")
    files.replace(saved, configuration.to_json(config))


def _data(config, plan):
    """What identifies the data, and the units of the held-out rows; says how many epochs the longest run makes."""
    from gpt4jax.data import text
    from gpt4jax.scaling import forecast

    data = text.load(config.data, config.model.vocab_size, files.cache_dir(config.data.cache_dir), job.say)
    epochs = plan.targets[0].num_tokens / data.facts["train"]["pairs"]
    job.say(f"the target reads {epochs:.2f} of the training tokens" + (": more than one epoch" if epochs > 1 else ""))
    held = data.rows["eval"], data.tokenizer, config.eval.num_rows
    least = forecast.least_loss(*held) if config.data.dataset.startswith("grammar:") else None
    return {**data.facts, "least_loss": least}, forecast.units(*held)


def _problems(options) -> tuple:
    """The code tasks that every run is asked to solve.

    Raises:
        UserError: more than there are.
    """
    from gpt4jax.data import code_tasks

    try:
        return code_tasks.problems(0, options.problems_per_level) if options.problems_per_level else ()
    except ValueError as error:
        raise UserError(f"ladder.problems_per_level is {options.problems_per_level}: {error}") from error


def _check_target(document, plan, workdir: pathlib.Path) -> None:
    """Checks that the target is the one that was registered, and this forecast the one it was begun with.

    Raises:
        UserError: one is not.
    """
    from gpt4jax.scaling import pool

    now = json.loads(json.dumps(plan.targets[0].config.to_dict()))
    other = configuration.differences(document["target"]["config"], now, pool.MAY_CHANGE)
    if other or document["target"]["seeds"] != [run.seed for run in plan.targets]:
        raise UserError(f"the target is not the one that was registered: {'; '.join(other) or 'other seeds'}")
    sealed = workdir / "target" / SEAL
    if (workdir / "target").exists() and not (sealed.is_file() and sealed.read_text().strip() == document["sha256"]):
        raise UserError(f"the target was begun with another forecast than {workdir / 'forecast.json'} (see {sealed})")


def _foreign(runs, folder: pathlib.Path, code: str, facts, force: bool) -> list[str]:
    """Which runs were trained by other code, or on other data, than these.

    Raises:
        UserError: any, unless forced.
    """
    from gpt4jax.scaling import pool

    found = pool.other_code(runs, folder, code)
    for run in runs:
        old = files.read_json(folder / run.name / "data.json")
        changed = [key for key in ("fingerprint", "tokenizer_fingerprint") if old and old[key] != facts[key]]
        found += [f"{run.name} was trained with another {key.replace('_', ' ')} of the data" for key in changed]
    if found and not force:
        raise UserError("; ".join(found) + ". Choose another workdir, or --force it, which the forecast will say")
    return found


def _changed_since(document, facts, force: bool) -> list[str]:
    """How code and data differ from those of the registration; an error in words unless forced."""
    from gpt4jax.scaling import forecast

    changed = [key for key in ("fingerprint", "tokenizer_fingerprint") if document["corpus"][key] != facts[key]]
    words = [f"the data's {key.replace('_', ' ')} is another" for key in changed]
    if document["code"] != forecast.code_digest():
        words.append("the code that trains is another")
    if document["versions"] != (now := _versions()):
        words.append(f"versions are others ({document['versions']} -> {now})")
    if words and not force:
        raise UserError(
            f"since the forecast was registered {'; '.join(words)}: the target would be no test of it. "
            "--force trains it all the same"
        )
    return [f"since the registration {line}" for line in words]


def _row(result) -> dict[str, Any]:
    run = result.run
    return {"name": run.name, "compute": run.compute, "num_params": run.num_params, "num_tokens": run.num_tokens,
            "seed": run.seed, "loss": result.loss if result.ended else None, "reason": result.reason}  # fmt: skip


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
