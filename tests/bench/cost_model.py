"""The model of a step's time (`gpt4jax.parallel.cost`) beside published step times.

    python -m tests.bench.cost_model [--fit] [--compile NAME ...] [--best NAME ...]

`published_steps.json` has the rows: shape, mesh, batch and compiler flags of a run as its source gives them, and the
seconds of a step, read from its log or worked out from the FLOP/s that it says. Each row's step is OUR train step of
that shape, compiled for its topology. `--compile` does that for rows whose name begins so ("all": those that are not
there yet; minutes each, needs the extra `tpu`) and keeps what the steps of the program take in `priced_steps.json.gz`,
from which the rest works. A step that does not fit a chip here (theirs kept activations in the host's memory) is
compiled with fewer layers, and its loops over layers are counted as often as there are layers.

`--fit` fits the constants on the rows that say `fitted`, by least squares of the logarithms. `--best` sweeps over other
meshes, remat policies and batches of a row's shape on its topology, and puts the best beside the published one, both by
the model; only what exceeds the 75th percentile of the model's error is a gain.
"""

import argparse
import gzip
import json
import os
import pathlib
import statistics
import sys
from typing import Any

import numpy as np
from scipy import optimize

from gpt4jax import config as configuration
from gpt4jax.data import multimodal
from gpt4jax.errors import UserError
from gpt4jax.parallel import cost, hlo, schedule, topology

# By matrix unit, what the large products of these rows take at the peak, over what the compiler's cycles stand for.
_PEAK = {128: 0.85, 256: 0.67}
_PRIOR, _PRIORS = {128: 0.85, 256: 0.7}, (0.85, 0.63, 0.8)  # products by matrix unit; elementwise, kernels, links
_TIE = 0.2  # to these, where the fit starts: of little data, a constant that moves nothing stays
HERE = pathlib.Path(__file__).parent
ROWS, KEPT = HERE / "published_steps.json", HERE / "priced_steps.json.gz"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--fit", action="store_true", help="fit the constants first")
    parser.add_argument("--compile", nargs="*", default=[], help="names of rows, or all")
    parser.add_argument("--best", nargs="*", default=[], help="names of rows to sweep over")
    flags = parser.parse_args()
    rows = json.loads(ROWS.read_text())
    kept = json.loads(gzip.decompress(KEPT.read_bytes())) if KEPT.exists() else {}
    for row in rows:
        if any(row["name"].startswith(name) or (name == "all" and row["name"] not in kept) for name in flags.compile):
            kept[row["name"]] = compiled(row)
            KEPT.write_bytes(gzip.compress(json.dumps(kept).encode(), mtime=0))
    there = [row for row in rows if row["name"] in kept]
    steps = {row["name"]: from_json(kept[row["name"]]["steps"]) for row in there}
    found = constants(there, steps) if flags.fit else {row["name"]: cost.constants(kind(row)) for row in there}
    report(rows, kept, steps, found)
    for row in there:
        if any(row["name"].startswith(name) for name in flags.best):
            best(row, cost.cost(steps[row["name"]], found[row["name"]]).seconds)


def of_row(row: dict[str, Any]) -> Any:
    """The config of a row's run."""
    config = configuration.default().unlock()
    with config.ignore_type():
        config.update(row["config"])
    return config.lock()


def best(row: dict[str, Any], seconds: float) -> None:
    """The fastest of a row's own variant and the four most promising, with its flags, beside the row as published."""
    from gpt4jax import plan

    config = of_row(row)
    found = plan.sweep(config, row["topology"], 5, row["flags"])
    published = config.batch_size * config.data.seq_len / seconds
    gain = found["tokens_per_second"] / published - 1
    print(f"{row['name']}: published {published:,.0f} tokens/s, best {found['tokens_per_second']:,.0f} ({gain:+.1%})")
    for tried in found["tried"]:
        print(f"    {tried}")


def kind(row: dict[str, Any]) -> str:
    return topology.parse(row["topology"]).kind


def compiled(row: dict[str, Any]) -> dict[str, Any]:
    """What the steps of a row's program take, with as many of its layers as fit."""
    from gpt4jax import plan

    config = of_row(row)
    where, layers = topology.parse(row["topology"]), config.model.num_layers
    for share in (1, 2, 4, 8):
        # An odd number: no other loop runs so often.
        config.model.num_layers = layers if share == 1 else layers // share // 2 * 2 - 1
        program = plan.program(config, where)
        try:
            memory, text = topology.compiled(program.lowered, where, row["flags"])
        except UserError as error:
            print(f"{row['name']}, {config.model.num_layers} layers: {str(error)[:150]}", file=sys.stderr)
            continue
        placement = cost.Placement(where, dict(program.mesh.shape), list(program.mesh.devices.flat))
        areas = cost.tile_areas(program.model_config, *multimodal.room(config.data))
        steps = cost.priced(schedule.schedule(hlo.parse(text)), placement, areas)
        total = memory.argument_size_in_bytes + memory.temp_size_in_bytes
        print(f"{row['name']}: compiled with {config.model.num_layers} of {layers} layers", file=sys.stderr)
        counted = repeated(steps, config.model.num_layers, layers)
        return {"layers": config.model.num_layers, "bytes": total, "steps": to_json(counted)}
    raise UserError(f"{row['name']}: no room even for {config.model.num_layers} layers")


def repeated(steps: cost.Priced, layers: int, all_layers: int) -> cost.Priced:
    """With the loops over `layers` counted as often as there are layers, or all but one, which the compiler peeled."""
    times = {layers: all_layers, layers - 1: all_layers - 1}
    return tuple(
        cost.Repeated(times.get(step.trips, step.trips), repeated(step.steps, layers, all_layers))
        if isinstance(step, cost.Repeated)
        else step
        for step in steps
    )


def to_json(steps: cost.Priced) -> list[Any]:
    """Lists that begin with the name of a step's class; what takes no time is left out."""
    out: list[Any] = []
    for step in steps:
        if isinstance(step, cost.Repeated):
            out.append(["Repeated", step.trips, to_json(step.steps)])
        elif isinstance(step, schedule.Done):
            out.append(["Done", step.key])
        elif not isinstance(step, cost.Busy) or step.seconds:
            out.append([type(step).__name__, *(float(f"{x:.6g}") if isinstance(x, float) else x for x in step)])
    return out


def from_json(lists: list[Any]) -> cost.Priced:
    makers: dict[str, Any] = {"Busy": cost.Busy, "Sending": cost.Sending, "Done": schedule.Done}
    return tuple(
        cost.Repeated(rest[0], from_json(rest[1])) if name == "Repeated" else makers[name](*rest)
        for name, *rest in lists
    )


def constants(rows: list[dict[str, Any]], steps: dict[str, cost.Priced]) -> dict[str, cost.Constants]:
    """Fitted ones: `products` for each kind of chip that has a fitted row, the others for all."""
    fitted = [row for row in rows if row["fitted"]]
    kinds = sorted({kind(row) for row in fitted})
    start = np.log([*(_PRIOR[topology.DEVICES[one].mxu] for one in kinds), *_PRIORS])

    def of(logs: np.ndarray, row: dict[str, Any]) -> cost.Constants:
        return cost.Constants(*map(float, np.exp([logs[kinds.index(kind(row))], *logs[-3:]])))

    def away(logs: np.ndarray) -> np.ndarray:
        errors = [np.log(cost.cost(steps[row["name"]], of(logs, row)).seconds / row["seconds"]) for row in fitted]
        return np.array([*errors, *(_TIE * (logs - start))])

    # Nothing is faster than its data sheet says: kernels and links reach at most 1, products the peak.
    lowest = np.log([*(_PEAK[topology.DEVICES[one].mxu] for one in kinds), 0.2, 0.2, 0.2]) - 1e-9
    highest = np.log([*(1.5 for _ in kinds), 1.5, 1.0, 1.0]) + 1e-9
    found = optimize.least_squares(away, np.clip(start, lowest, highest), bounds=(lowest, highest)).x
    for one in kinds:
        print(f"fitted, {one}:", of(found, next(row for row in fitted if kind(row) == one)))
    return {row["name"]: of(found, row) for row in rows if kind(row) in kinds}


def report(rows, kept, steps, found) -> None:
    """Each row, and the errors of those that nothing was fitted on."""
    held = []
    print(f"{'':28} published  modelled   error             seconds of")
    for row in rows:
        name = row["name"]
        if name not in kept:
            print(f"{name:28} {row['seconds']:8.2f} s  not compiled")
            continue
        result = cost.cost(steps[name], found[name])
        error = result.seconds / row["seconds"] - 1
        if not row["fitted"]:
            held.append(abs(error))
        parts = ", ".join(f"{part} {seconds:.2f}" for part, seconds in result.by_kind.items() if seconds > 5e-3)
        layers = kept[name]["layers"]
        cut = "" if layers == row["config"]["model"]["num_layers"] else f" (compiled with {layers} layers)"
        how = "fitted  " if row["fitted"] else "held out"
        print(f"{name:28} {row['seconds']:8.2f} s {result.seconds:8.2f} s  {error:+6.1%}  {how}  {parts}{cut}")
    if len(held) > 1:
        quarter = statistics.quantiles(held, n=4, method="inclusive")[2]
        print(f"{len(held)} rows held out: median error {statistics.median(held):.1%}, 75th percentile {quarter:.1%}")


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"
    main()
