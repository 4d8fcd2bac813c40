"""Draws how PPO over-optimises a reward model in the known world, and fits d (a - b log d) to it.

    python -m tests.bench.overoptimisation --workdir DIR [--comparisons 360] [--seed 0]

The policy of configs/align_quickstart.py is trained against a reward model of few comparisons, without a KL in its
reward. Gold and KL are exact (gpt4jax/align/world.py). Writes DIR/overoptimisation.png and .json.
"""

import argparse
import json
import pathlib
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np

from gpt4jax import weights
from gpt4jax.align import overoptimisation, world
from gpt4jax.training import metrics
from tests.runs import ROOT, command

CONFIG = ROOT / "configs" / "align_quickstart.py"


def train(workdir: pathlib.Path, comparisons: int, seed: int) -> list[dict[str, float]]:
    """The evaluations of PPO."""
    few = [
        f"--config.reward.data=world:{comparisons}", "--config.reward.num_steps=300", "--config.reward.warmup_steps=30",
        "--config.reward.learning_rate=1e-3", "--config.ppo.kl_coefficient=0.0", "--config.ppo.learning_rate=5e-4",
        "--config.ppo.num_steps=240", "--config.ppo.eval_every_steps=6", f"--config.seed={seed}",
    ]  # fmt: skip
    subprocess.run(command("align", "--config", CONFIG, "--workdir", workdir, *few), cwd=ROOT, check=True)
    return [line for line in metrics.read(workdir / "ppo") if "eval/align/gold" in line]


def main() -> None:
    """Trains, fits and draws."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--comparisons", type=int, default=360)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    lines = train(flags.workdir, flags.comparisons, flags.seed)
    kl, gold, score = (np.array([line[f"eval/align/{name}"] for line in lines]) for name in ("kl", "gold", "score"))
    before = lines[0]["eval/align/gold_before"]
    law = overoptimisation.fit(kl, gold - before)
    found = dict(
        law._asdict(), peak_kl=law.peak_kl, kl=kl.tolist(), gain=(gold - before).tolist(), score=score.tolist()
    )
    (flags.workdir / "overoptimisation.json").write_text(json.dumps(found, indent=1))

    sft = weights.load(str(flags.workdir / "sft" / "export"))
    reference = world.table(sft.config, sft.params, 6, 6)
    grid = np.linspace(0.02, kl.max(), 60)
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    d = np.sqrt(grid)
    axes.plot(d, [world.best_at(reference, one).gold - before for one in grid], color="0.6", label="best policy")
    axes.plot(np.sqrt(kl), score - score[0], ".", color="C1", label="reward model's score of it, 36 answers")
    axes.plot(np.sqrt(kl), gold - before, ".", color="C0", label="PPO's gold reward")
    axes.plot(d, law.gain(grid), color="C0", label=f"d ({law.a:.2f} - {law.b:.2f} log d)")
    axes.set(xlabel="d = sqrt(KL), KL in nats an answer", ylabel="gain over the policy before PPO")
    axes.legend(frameon=False)
    figure.savefig(flags.workdir / "overoptimisation.png", dpi=150)
    print(
        f"gain = d ({law.a:.3f} - {law.b:.3f} log d), root mean squared error {law.error:.3f}; largest at a KL of "
        f"{law.peak_kl:.2f} nats; PPO's best {np.max(gold - before):.3f}, its last {gold[-1] - before:.3f}"
    )


if __name__ == "__main__":
    sys.exit(main())
