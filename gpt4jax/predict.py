"""Forecasts a large run from small ones: `python -m gpt4jax.predict --config configs/ladder_cpu.py --workdir DIR`.

Trains the ladder's runs, fits a law, registers the forecast in DIR/forecast.json, and only then trains the target and
compares. The same command resumes what was interrupted.
"""

import argparse
import dataclasses
import datetime
import functools
import json
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

from gpt4jax import config as configuration
from gpt4jax import files, job
from gpt4jax.data import code_tasks, text
from gpt4jax.data.operations import DESCRIBED, FAMILIES
from gpt4jax.errors import UserError
from gpt4jax.scaling import figures, forecast, ladder, pool, solving
from gpt4jax.train import train

FORECAST = "forecast.json"
SEAL = "forecast.sha256"  # in the target's folder: of the forecast that it was begun with
FORCED = "forced.txt"  # there too: what had changed since the registration at each start that was forced
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
    config = configuration.load(flags.config, overrides, ladder.default)
    return predict(config, flags.workdir, until=flags.until, force=flags.force)


class Study(NamedTuple):
    """What every stage of a forecast is about.

    Attributes:
        config: with the group `ladder`.
        plan: its runs.
        problems: code tasks that every run is asked to solve; empty: none.
        workdir: of the whole forecast.
        facts: what identifies the data, and the least loss there is if that is known.
        units: the held-out rows.
    """

    config: Any
    plan: ladder.Ladder
    problems: tuple
    workdir: pathlib.Path
    facts: dict[str, Any]
    units: forecast.Units


def predict(config, workdir: pathlib.Path, *, until: str = "target", force: bool = False) -> int:
    """Runs (or resumes) the stages of a forecast up to `until`; returns the exit status.

    Raises:
        UserError: what is wrong with the config, the data, the workdir or the runs, in words.
    """
    import jax

    workdir = files.local_folder(workdir, "--workdir")
    configuration.check_values(config)
    configuration.check_packed(config, "a forecast")
    plan, problems = ladder.plan(config), _problems(config)
    _open(workdir, config)
    job.say(f"{ladder.describe(plan)}\nworkdir {workdir}")

    # The data are prepared once for all workers; this process itself leaves accelerators to them.
    left = any(pool.result(run, workdir / "runs") is None for run in plan.runs)
    where = pool.places(config.ladder.workers, *pool.machine()) if left else []
    jax.config.update("jax_platforms", "cpu")
    study = Study(config, plan, problems, workdir, *_data(config, plan, problems))

    results, solved, forced = _train_ladder(study, where, force)
    if until == "ladder":
        return 0
    document = _forecast(study, results, solved, forced)
    if until != "forecast":
        _train_target(study, results, document, force)
    return 0


def _train_ladder(study: Study, where, force: bool):
    """The small runs: their results, what they solved, and what was forced."""
    runs, folder = study.plan.runs, study.workdir / "runs"
    registered = (study.workdir / FORECAST).exists()
    forced = [] if registered else _foreign(runs, folder, forecast.provenance(), study.facts, force)
    results = pool.train_all(runs, folder, where, _job(study), job.say)
    files.replace(study.workdir / "ladder.json", json.dumps([_row(r) for r in results], indent=1) + "\n")
    return results, _solved(study, results, folder), forced


def _forecast(study: Study, results, solved, forced: list[str]) -> dict[str, Any]:
    """The forecast, registered before the target has taken a step; printed and drawn."""
    path = study.workdir / FORECAST
    document = files.read_json(path)
    if not document:
        document = register(study, results, solved, forced)
        files.replace(path, json.dumps(document, indent=1) + "\n")
    forecast.check_seal(document, str(path))
    print(forecast.describe(document, study.units), flush=True)
    if study.problems:
        print(solving.describe(document["capability"], study.config.ladder), flush=True)
    figures.ladder(document, results, None, study.units, study.workdir)
    figures.collapse(results, document, study.workdir)
    return document


def _train_target(study: Study, results, document: dict[str, Any], force: bool) -> None:
    """The target, and what came of the forecast."""
    plan, workdir, folder = study.plan, study.workdir, study.workdir / "target"
    _check_target(document, plan, workdir)
    where: list[pool.Place] = []
    if any(pool.result(run, folder) is None for run in plan.targets):
        since = _changed_since(document, study.facts, force)
        files.replace(folder / SEAL, document["sha256"] + "\n")
        with (folder / FORCED).open("a") as lines:  # every start's, so that no later report forgets it
            lines.writelines(f"{line}\n" for line in since)
        where = pool.places_of_targets(len(plan.targets), pool.machine()[0])
    done = pool.train_all(plan.targets, folder, where, _job(study), job.say)
    as_registered = forecast.provenance(document["code"], document["versions"])
    trained = _foreign(plan.targets, folder, as_registered, document["corpus"], force=True)
    starts = (folder / FORCED).read_text().splitlines() if (folder / FORCED).is_file() else []
    forced = [*document["forced"], *dict.fromkeys(starts), *trained]
    losses = [r.loss for r in done if r.ended]
    report: dict[str, Any] = {
        "forecast_sha256": document["sha256"],
        "forced": forced,
        "targets": [_row(r) for r in done],
    }
    report["forecasts"] = forecast.compare(document, losses) if losses else []
    if study.problems and losses:
        outcomes, names = list(_solved(study, done, folder).values()), [problem.name for problem in study.problems]
        report["capability"] = [
            solving.compare(one, names, outcomes, study.config.ladder) for one in document["capability"]
        ]
        figures.capability(document, report, workdir / "figure2.png")
    files.replace(workdir / "report.json", json.dumps(report, indent=1) + "\n")
    figures.ladder(document, results, done, study.units, workdir)
    figures.collapse([*results, *done], document, workdir)
    print(forecast.verdict(report, study.units))
    if "capability" in report:
        print(solving.describe(document["capability"], study.config.ladder, report["capability"]))
    print(f"workdir {workdir}")
    if not losses:
        raise UserError(f"the target came to no loss; the forecast stands in {workdir / FORECAST}")


def _job(study: Study) -> pool.Train:
    """What a worker does with a run."""
    return functools.partial(solving.after, train, study.problems, study.config.ladder) if study.problems else train


def _solved(study: Study, results, folder: pathlib.Path) -> dict[str, Any]:
    """Each ended run's outcomes over the problems.

    Its worker has drawn them; what a stop left, or changed code made void, is drawn here, on the CPU.
    """
    outcomes = {}
    for result in results if study.problems else ():
        if result.ended:
            name = result.run.name
            outcomes[name] = solving.of_run(folder / name, study.problems, study.config.ladder)
            job.say(f"{name}: solved {sum(map(any, outcomes[name]))} of {len(study.problems)} problems")
    return outcomes


def register(study: Study, results, solved, forced: list[str]) -> dict[str, Any]:
    """The forecast as it will be sealed; `forced` says how runs of the ladder were not trained as this code would.

    Raises:
        UserError: the target has been begun, or no law fits.
    """
    config, plan, facts, workdir = study.config, study.plan, study.facts, study.workdir
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
            "units": dataclasses.asdict(study.units),
            "least_loss": facts["least_loss"],  # known of the grammar alone
            "level": config.ladder.level,
            "forecasts": forecasts,
            "without_forecast": without,
            "capability": _capability(study, results, solved) if study.problems else [],
            "target": {"compute": target.compute, "num_params": target.num_params, "num_tokens": target.num_tokens,
                       "epochs": target.num_tokens / facts["train"]["pairs"],
                       "seeds": [run.seed for run in plan.targets], "config": target.config.to_dict()},
            "ladder": [_row(r) for r in results],
            "corpus": {key: facts[key] for key in ("dataset", "fingerprint", "tokenizer", "tokenizer_fingerprint")},
            "code": forecast.code_digest(),
            "versions": forecast.versions(),
            "forced": forced,
        }
    )  # fmt: skip


def _capability(study: Study, results, solved) -> list[dict[str, Any]]:
    """The forecasts of pass rates, one of each ratio."""
    target, out = study.plan.targets[0].compute, []
    names = [problem.name for problem in study.problems]
    for ratio in study.config.ladder.ratios:
        runs = [r.run for r in results if r.run.name in solved and r.run.compute <= target / ratio]
        outcomes = [solved[run.name] for run in runs]
        try:
            one = solving.forecast([run.compute for run in runs], outcomes, names, target, study.config.ladder)
        except (UserError, ValueError) as error:
            one = {"buckets": [], "no_forecast": str(error)}
        out.append({"ratio": ratio, **one})
    return out


def _open(workdir: pathlib.Path, config) -> None:
    saved = workdir / "config.json"
    old = files.read_json(saved)
    if old and "ladder" not in old:
        raise UserError(f"{workdir} holds another job's run; choose another workdir")
    begun = any((workdir / name).exists() for name in ("runs", FORECAST))  # until then nothing was done with it
    if old and begun and (different := configuration.differences(old, config, _MAY_CHANGE)):
        raise UserError(
            f"{workdir} was begun with another config; choose another workdir, or change back " + "; ".join(different)
        )
    if not old and workdir.is_dir() and any(workdir.iterdir()):
        raise UserError(f"{workdir} is not empty and no forecast of gpt4jax; choose another")
    files.replace(saved, configuration.to_json(config))


def _data(config, plan, problems) -> tuple[dict[str, Any], forecast.Units]:
    """What identifies the data, and the units of the held-out rows; says how many epochs the longest run makes."""
    data = text.load(config.data, config.model.vocab_size, files.shared_cache(config.data.cache_dir), job.say)
    if problems:
        solving.check_problems(problems, data.tokenizer, config.model.max_seq_len)
    epochs = plan.targets[0].num_tokens / data.facts["train"]["pairs"]
    job.say(f"the target reads {epochs:.2f} of the training tokens" + (": more than one epoch" if epochs > 1 else ""))
    held = data.rows["eval"], data.tokenizer, config.eval.num_rows
    least = forecast.least_loss(*held) if config.data.dataset.startswith("grammar:") else None
    return {**data.facts, "least_loss": least}, forecast.units(*held)


def _problems(config) -> tuple:
    """The code tasks that every run is asked to solve: of the family of the text, or described ones of other text.

    Raises:
        UserError: more than there are.
    """
    if not (per_level := config.ladder.problems_per_level):
        return ()
    operations = FAMILIES.get(config.data.dataset.partition(":")[0], DESCRIBED)
    try:
        return code_tasks.problems(0, per_level, operations=operations)
    except ValueError as error:
        raise UserError(f"ladder.problems_per_level is {per_level}: {error}") from error


def _check_target(document, plan, workdir: pathlib.Path) -> None:
    """Checks that the target is the one that was registered, and this forecast the one it was begun with.

    Raises:
        UserError: one is not.
    """
    now = json.loads(json.dumps(plan.targets[0].config.to_dict()))
    other = configuration.differences(document["target"]["config"], now, pool.MAY_CHANGE)
    if other or document["target"]["seeds"] != [run.seed for run in plan.targets]:
        raise UserError(f"the target is not the one that was registered: {'; '.join(other) or 'other seeds'}")
    sealed = workdir / "target" / SEAL
    if (workdir / "target").exists() and not (sealed.is_file() and sealed.read_text().strip() == document["sha256"]):
        raise UserError(f"the target was begun with another forecast than {workdir / 'forecast.json'} (see {sealed})")


def _foreign(runs, folder: pathlib.Path, provenance: str, facts, force: bool) -> list[str]:
    """Which runs were trained by other code or versions, or on other data, than these; or by nobody knows what.

    Raises:
        UserError: any, unless forced.
    """
    found = pool.other_code(runs, folder, provenance)
    for run in runs:
        old = files.read_json(folder / run.name / "data.json")
        changed = [key for key in ("fingerprint", "tokenizer_fingerprint") if old and old[key] != facts[key]]
        found += [f"{run.name} was trained with another {key.replace('_', ' ')} of the data" for key in changed]
        if not old and pool.result(run, folder) is not None:
            found.append(f"{run.name} does not say what data it was trained on")
    if found and not force:
        raise UserError("; ".join(found) + ". Choose another workdir, or --force it, which the forecast will say")
    return found


def _changed_since(document, facts, force: bool) -> list[str]:
    """How code and data differ from those of the registration; an error in words unless forced."""
    changed = [key for key in ("fingerprint", "tokenizer_fingerprint") if document["corpus"][key] != facts[key]]
    words = [f"the data's {key.replace('_', ' ')} is another" for key in changed]
    if document["code"] != forecast.code_digest():
        words.append("the code that trains is another")
    if document["versions"] != (now := forecast.versions()):
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
