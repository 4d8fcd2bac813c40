"""Does one learning rate serve all sizes? `python -m gpt4jax.scaling.transfer --config configs/mup.py --workdir DIR`.

Short runs over learning rates, widths, depths and seeds, in muP and in the standard parametrisation; the best rate of
each size is the vertex of a parabola. DIR gets runs.jsonl (resumed from), and transfer.json and transfer.png of the
sizes asked for. A start that asks for more seeds or other rates of some sizes adds its runs there, for later ones.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy.special import stdtrit

from gpt4jax import config as configuration
from gpt4jax import files, job
from gpt4jax.errors import UserError
from gpt4jax.scaling import forecast

REACH = 2.0  # octaves on each side of the best learning rate that the parabola goes through


class Vertex(NamedTuple):
    """The learning rate of least loss: log2 of it, and the half width of its interval (NaN with one seed)."""

    log2_rate: float
    half_width: float


def vertex(log2_rates: Sequence[float], losses_sr: np.ndarray, level: float = 0.9) -> Vertex:
    """The vertex of a parabola through the losses (seeds, rates) about the rate of least mean loss.

    Each seed has a parabola of its own, and the interval is Student's of their vertices. Runs that are not finite are
    left out, a seed's others not.

    Raises:
        ValueError: the least loss is at an end of the rates, or a parabola has no minimum.
    """
    x, y = np.asarray(log2_rates, float), np.asarray(losses_sr, float)
    order = np.argsort(x)
    x, y = x[order], y[:, order]
    mean = np.array([column[np.isfinite(column)].mean() if np.isfinite(column).all() else np.inf for column in y.T])
    best = int(np.argmin(mean))
    if not 0 < best < len(x) - 1 or not np.isfinite(mean[best - 1 : best + 2]).all():
        raise ValueError(f"the least loss is at the end of the learning rates, 2^{x[best]:g}: widen them")
    near = np.abs(x - x[best]) <= REACH  # not a number of rates: some sizes may have more of them than others
    found = []
    for row in y[:, near]:
        keep = np.isfinite(row)
        a, b, _ = np.polyfit(x[near][keep], row[keep], 2)
        if a <= 0:
            raise ValueError("the losses about the best learning rate have no minimum: more steps or seeds are needed")
        found.append(-b / (2 * a))
    if len(found) == 1:
        return Vertex(float(found[0]), float("nan"))
    t = stdtrit(len(found) - 1, (1 + level) / 2)
    return Vertex(float(np.mean(found)), float(t * np.std(found, ddof=1) / np.sqrt(len(found))))


def spread(vertices: Mapping[Any, Vertex]) -> tuple[float, tuple[float, float] | None]:
    """The largest best rate over the smallest, and the interval of that ratio (None with one seed).

    The interval takes the two extreme sizes for given; their half widths add in squares.
    """
    low, high = (pick(vertices.values(), key=lambda v: v.log2_rate) for pick in (min, max))
    moved, half = high.log2_rate - low.log2_rate, math.hypot(high.half_width, low.half_width)
    return 2**moved, None if math.isnan(half) else (2 ** max(0.0, moved - half), 2 ** (moved + half))


def main(argv: Sequence[str]) -> int:
    """Reads the flags, runs what is missing and draws it; returns the exit status."""
    from gpt4jax.scaling import figures, sweep

    parser = argparse.ArgumentParser(prog="python -m gpt4jax.scaling.transfer", description=__doc__.partition("\n")[0])
    job.config_flags(parser)
    flags, overrides = job.parse(parser, argv)
    config = configuration.load(flags.config, overrides, sweep.default)
    workdir = files.local_folder(flags.workdir, "--workdir")
    sizes = {("width", width): (width, config.model.num_layers) for width in config.sweep.widths}
    sizes |= {("depth", depth): (config.model.embed_dim, depth) for depth in config.sweep.depths}
    shapes = sweep.shapes(config, sizes.values())
    data = sweep.load(config, job.say)
    runs = _Runs(workdir / "runs.jsonl", config, data.facts)
    batches = {s: sweep.batches(data.rows["train"], config, config.num_steps, s) for s in range(config.sweep.seeds)}
    for (name, width, depth), shape in shapes.items():
        for seed, rows in batches.items():
            for rate in config.sweep.learning_rates:
                key = (name, width, depth, rate, seed)
                if key not in runs.losses:
                    losses = sweep.losses(shape, config.optimizer, rows, rate, seed)
                    runs.add(key, float(losses[-max(1, round(config.sweep.tail * len(losses))) :].mean()))
        job.say(f"{name} {width}x{depth} done")
    report = summary(runs.losses, sizes, config.sweep)
    files.replace(workdir / "transfer.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
    figures.transfer(report, workdir / "transfer.png")
    print(describe(report))
    return 0


def describe(report: Mapping[str, Any]) -> str:
    """The best rates and how far they move, for a person."""
    lines = []
    for name, axes in report.items():
        for axis, found in axes.items():
            if not found["best"]:
                continue
            best = [f"{size}: {row['error'] if 'error' in row else _rate(row)}" for size, row in found["best"].items()]
            moved = f"x{found['spread']:.2f}" if found["spread"] else "not known"
            if found["interval"]:
                moved += f" (90%: x{found['interval'][0]:.2f} to x{found['interval'][1]:.2f})"
            lines.append(f"{name} over {axis}: the best learning rate moves by {moved}; {', '.join(best)}")
    return "\n".join(lines)


def _rate(row: Mapping[str, Any]) -> str:
    half = f"±{row['half_width']:.2f}" if row["half_width"] is not None else ""
    return f"2^{row['log2_rate']:.2f}{half} ({row['seeds']} seeds)"


def grid(
    losses: Mapping[tuple, float], shape: tuple[str, int, int], rates: Sequence[float], seeds: Sequence[int]
) -> tuple[list[float], np.ndarray]:
    """All that there is of a decoder beside what was asked for: its rates, and its losses (seeds, rates).

    Its rates are those that all of `seeds` have; its seeds those that have all of these rates.
    """
    found = {(rate, seed) for *mine, rate, seed in losses if tuple(mine) == shape}
    have = sorted({r for r, _ in found if all((r, s) in found for s in seeds)} | set(rates))
    more = sorted({s for _, s in found if all((r, s) in found for r in have)} | set(seeds))
    return have, np.array([[losses[(*shape, r, s)] for r in have] for s in more])


def summary(losses: Mapping[tuple, float], sizes: Mapping[tuple, tuple], options: Any) -> dict[str, Any]:
    """Best rates by parametrisation and axis, and how far they move."""
    report: dict[str, Any] = {}
    for name in ("mup", "standard"):
        report[name] = {}
        for axis in ("width", "depth"):
            rows: dict[str, Any] = {}
            vertices = {}
            for (kind, size), shape in sizes.items():
                if kind != axis:
                    continue
                rates, table = grid(losses, (name, *shape), options.learning_rates, range(options.seeds))
                mean = [value if math.isfinite(value) else None for value in table.mean(0).tolist()]
                rows[str(size)] = {"seeds": len(table), "learning_rates": rates, "loss": mean}
                try:
                    vertices[size] = vertex([math.log2(rate) for rate in rates], table)
                    at, half = vertices[size]
                    rows[str(size)] |= {"log2_rate": at, "half_width": None if math.isnan(half) else half}
                except ValueError as error:
                    rows[str(size)]["error"] = str(error)
            moved, interval = spread(vertices) if len(vertices) == len(rows) > 1 else (None, None)
            report[name][axis] = {"best": rows, "spread": moved, "interval": interval}
    return report


class _Runs:
    """The runs so far, on disk line by line."""

    def __init__(self, path: pathlib.Path, config: Any, facts: Mapping[str, Any]):
        # More sizes, rates and seeds may be asked for later; what a run is, and what its result, stays.
        fields = {k: v for k, v in config.to_dict().items() if k != "sweep"}
        fields |= {name: config.sweep[name] for name in ("tail", "grow")}
        data = {name: facts[name] for name in ("fingerprint", "tokenizer_fingerprint")}
        head = json.dumps({"config": fields, "data": data, "trained_by": forecast.provenance()})
        self.losses: dict[tuple, float] = {}
        text = path.read_text() if path.is_file() else ""
        lines = text.split("\n")[:-1]  # a last line that a kill cut off is none
        if lines and lines[0] != head:
            raise UserError(f"{path} was begun with another config, data, code or versions; choose another workdir")
        for line in lines[1:]:
            row = json.loads(line)
            self.losses[tuple(row["run"])] = float("nan") if row["loss"] is None else row["loss"]
        path.parent.mkdir(parents=True, exist_ok=True)
        if text != (whole := "".join(f"{line}\n" for line in lines or [head])):
            files.replace(path, whole)  # and not otherwise: another start may be adding to it
        self._file = path.open("a")

    def add(self, key: tuple, loss: float) -> None:
        """Keeps a run's result."""
        self.losses[key] = loss
        self._file.write(json.dumps({"run": key, "loss": loss if np.isfinite(loss) else None}) + "\n")
        self._file.flush()


if __name__ == "__main__":
    job.main(main)
