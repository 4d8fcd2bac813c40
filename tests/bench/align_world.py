"""How good PPO becomes in the known world, seed by seed: the share of the gold reward that the best policy gains.

    python -m tests.bench.align_world --workdir DIR [--seeds 10]

Each seed is a whole run of the public command: demonstrations, reward model, PPO (configs/align_quickstart.py). A line
of DIR/results.jsonl says what came of it; a seed that is there is not run again.
"""

import argparse
import json
import pathlib
import subprocess
import sys
import time

from gpt4jax.training import metrics
from tests.runs import ROOT, command

CONFIG = ROOT / "configs" / "align_quickstart.py"


def one(workdir: pathlib.Path, seed: int) -> dict[str, float]:
    """Runs a seed and reads where its policy stands."""
    began = time.monotonic()
    flags = ["--config", CONFIG, "--workdir", workdir, f"--config.seed={seed}"]
    with (workdir.parent / f"{workdir.name}.log").open("w") as log:
        subprocess.run(command("align", *flags), cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, check=True)
    seconds = time.monotonic() - began
    (*_, last) = (line for line in metrics.read(workdir / "ppo") if "eval/align/gold" in line)
    found = {name.removeprefix("eval/align/"): value for name, value in last.items() if name.startswith("eval/align/")}
    return {"seed": seed, "seconds": round(seconds, 1), **found}


def main() -> None:
    """Runs the seeds that are missing and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--seeds", type=int, default=10)
    flags = parser.parse_args()
    flags.workdir.mkdir(parents=True, exist_ok=True)
    results = flags.workdir / "results.jsonl"
    done = [json.loads(line) for line in results.read_text().splitlines()] if results.is_file() else []
    for seed in range(flags.seeds):
        if seed not in {row["seed"] for row in done}:
            done.append(one(flags.workdir / f"seed-{seed}", seed))
            with results.open("a") as file:
                file.write(json.dumps(done[-1]) + "\n")
        row = next(row for row in done if row["seed"] == seed)
        print(
            f"seed {seed}: gold {row['gold_before']:.3f} -> {row['gold']:.3f} at {row['kl']:.3f} nats an answer, best "
            f"{row['gold_best']:.3f}: {row['gold'] / row['gold_best']:.1%} of it, {row['share_of_best']:.1%} of its "
            f"gain; {row['seconds']:.0f} s",
            flush=True,
        )
    least, enough = min(row["share_of_best"] for row in done), sum(row["share_of_best"] >= 0.95 for row in done)
    print(f"{len(done)} seeds, the least {least:.1%} of the best gain; {enough} at 95% or more")


if __name__ == "__main__":
    sys.exit(main())
