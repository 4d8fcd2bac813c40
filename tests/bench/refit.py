"""What the law of a forecast rests on: fitted again without each level, without the smallest ones, and with the target.

pip install '.[test]'
python -m tests.bench.refit DIR [DIR ...]

DIR is a workdir of gpt4jax.predict whose report is written. Nothing here is a forecast: the target is known. The last
line joins all DIRs, whose ladders must be of one recipe.
"""

import argparse
import json
import pathlib

import numpy as np

from gpt4jax.scaling import laws

Points = tuple[np.ndarray, np.ndarray]  # FLOPs and losses of runs


def points(document: pathlib.Path, key: str) -> Points:
    """The runs that a forecast (ladder) or a report (targets) lists."""
    runs = json.loads(document.read_text())[key]
    return np.array([run["compute"] for run in runs]), np.array([run["loss"] for run in runs])


def joined(*parts: Points) -> Points:
    """All the runs."""
    return np.concatenate([compute for compute, _ in parts]), np.concatenate([loss for _, loss in parts])


def show(name: str, runs: Points, target: Points) -> laws.PowerLaw:
    """Prints a law with a c through these runs, and how far it is from the target's mean loss."""
    law, (compute, loss) = laws.fit(*runs), target
    at = law.predict(compute[0])
    print(f"  {name}: L(C) = {law.a:.4g} C^{law.b:.4f} + {law.c:.4f}; target {at:.4f} ({at / loss.mean() - 1:+.2%})")
    return law


def levels_off(law: laws.PowerLaw, runs: Points) -> str:
    """How far each level's mean lies above the law."""
    compute, loss = runs
    return ", ".join(f"{loss[compute == c].mean() / law.predict(c) - 1:+.2%}" for c in np.unique(compute))


def main() -> None:
    """Prints the laws of each workdir."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workdirs", nargs="+", type=pathlib.Path)
    everything = []
    for workdir in parser.parse_args().workdirs:
        runs, target = points(workdir / "forecast.json", "ladder"), points(workdir / "report.json", "targets")
        everything += [runs, target]
        print(f"{workdir.name}: {len(runs[0])} runs, target {target[1].mean():.4f} nats/token at {target[0][0]:.3g}")
        print(f"  levels above it: {levels_off(show('as registered', runs, target), runs)}")
        compute, loss = runs
        for level in np.unique(compute):
            show(f"without {level:.3g}", (compute[compute != level], loss[compute != level]), target)
        for level in np.unique(compute)[1:-4]:  # a law with a c needs five levels to be worth a look
            show(f"from {level:.3g} on", (compute[compute >= level], loss[compute >= level]), target)
        law = show("with the target", joined(runs, target), target)
        print(f"  levels above it: {levels_off(law, joined(runs, target))}")
    law = show("all together", joined(*everything), everything[-1])
    print(f"  levels above it: {levels_off(law, joined(*everything))}")


if __name__ == "__main__":
    main()
