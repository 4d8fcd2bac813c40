"""Draws how PPO over-optimises a reward model in the known world, and fits d (a - b log d) to it.

    python -m tests.bench.overoptimisation --workdir DIR [--comparisons 360] [--seed 0]

The policy of configs/align_quickstart.py is trained against a reward model of few comparisons, without a KL in its
reward. Gold and KL are exact (gpt4jax/align/world.py). Writes DIR/overoptimisation.png.
"""

import argparse
import pathlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

from gpt4jax.align import report
from gpt4jax.training import metrics
from tests.runs import ROOT, command

CONFIG = ROOT / "configs" / "align_quickstart.py"


def train(workdir: pathlib.Path, comparisons: int, seed: int) -> Sequence[Mapping[str, float]]:
    """The evaluations of PPO."""
    few = [
        f"--config.reward.data=world:{comparisons}", "--config.reward.num_steps=300", "--config.reward.warmup_steps=30",
        "--config.reward.learning_rate=1e-3", "--config.ppo.kl_coefficient=0.0", "--config.ppo.learning_rate=5e-4",
        "--config.ppo.num_steps=240", "--config.ppo.eval_every_steps=6", f"--config.seed={seed}",
    ]  # fmt: skip
    subprocess.run(command("align", "--config", CONFIG, "--workdir", workdir, *few), cwd=ROOT, check=True)
    return report.in_the_known_world(metrics.read(workdir / "ppo"))


def main() -> None:
    """Trains, draws and fits."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--comparisons", type=int, default=360)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    known = train(flags.workdir, flags.comparisons, flags.seed)
    report.gain_figure(known).savefig(flags.workdir / "overoptimisation.png", dpi=150)
    print(report.gain_words(known))


if __name__ == "__main__":
    sys.exit(main())
