"""Two evaluations item by item: `python -m gpt4jax.evals.compare OURS THEIRS`, two folders of `gpt4jax.evaluate`.

Of each task that both have: the mean difference of each metric over the items that both scored, with the standard error
of paired, clustered differences, and the smallest difference that so many items would show (at 5%, with a power of
80%).
"""

import argparse
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gpt4jax import files, job
from gpt4jax.errors import UserError
from gpt4jax.evals import stats

Items = Mapping[str, Mapping[str, Any]]


def paired(ours: Items, theirs: Items) -> dict[str, stats.Estimate]:
    """Of each metric ours - theirs, over the items that have it in both; items by their ids, as files have them."""
    found = {}
    both = [name for name in ours if name in theirs and "metrics" in ours[name] and "metrics" in theirs[name]]
    for metric in dict.fromkeys(metric for name in both for metric in ours[name]["metrics"]):
        names = [name for name in both if metric in ours[name]["metrics"] and metric in theirs[name]["metrics"]]
        if names:
            a_i, b_i = ([side[name]["metrics"][metric] for name in names] for side in (ours, theirs))
            clusters = [ours[name]["cluster"] or f"item {name}" for name in names]
            found[metric] = stats.difference(a_i, b_i, clusters)
    return found


def read(folder: pathlib.Path) -> dict[str, Items]:
    """Each task's items.

    Raises:
        UserError: this is no folder of `gpt4jax.evaluate`.
    """
    try:
        tasks = json.loads((folder / "results.json").read_text())["tasks"]
        return {name: _items(folder / f"items-{name}.jsonl") for name in tasks}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{folder} is no finished evaluation of gpt4jax.evaluate: {error!r}") from error


def _items(path: pathlib.Path) -> Items:
    items = [json.loads(line) for line in path.read_text().split("\n") if line]
    if lacking := [one for one in items if not {"id", "cluster"} <= one.keys()]:
        raise ValueError(f"{path.name} has an item without id or cluster: {sorted(lacking[0])}")
    return {one["id"]: one for one in items}


def main(argv: Sequence[str]) -> int:
    """Prints a line for each task and metric; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m gpt4jax.evals.compare", description=__doc__.partition(":")[0] + "."
    )
    parser.add_argument("ours", type=files.user_path, metavar="OURS")
    parser.add_argument("theirs", type=files.user_path, metavar="THEIRS")
    flags = parser.parse_args(argv)
    ours, theirs = (read(folder) for folder in (flags.ours, flags.theirs))
    shared = [name for name in ours if name in theirs]
    if not shared:
        raise UserError(f"no task is in both: {', '.join(ours)} and {', '.join(theirs)}")
    for name in shared:
        differences = paired(ours[name], theirs[name])
        if not differences:
            print(f"{name}: no item is scored in both")
        for metric, one in differences.items():
            if one.clusters == 1:
                print(f"{name}: {metric} {one.mean:+.4f} over {one.items} items of one cluster: no interval")
                continue
            if not one.standard_error:
                print(f"{name}: {metric} {one.mean:+.4f} on each of {one.items} items: no interval")
                continue
            interval = f"95% {one.low:+.4f} to {one.high:+.4f}; standard error {one.standard_error:.4f}"
            least = stats.detectable(one.standard_error)
            print(f"{name}: {metric} {one.mean:+.4f} ({interval}) over {one.items} items; {least:.4f} would show")
    return 0


if __name__ == "__main__":
    job.main(main)
