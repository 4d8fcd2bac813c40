"""Inverse scaling: `python -m gpt4jax.scaling.inverse --weights NAME [--weights NAME ...] --out DIR`.

Accuracy on hindsight neglect (the report's Figure 3): bets that turned out against their expected value. DIR gets
inverse.json and figure3.png.
"""

import argparse
import json
import math
from collections.abc import Sequence

import numpy as np

from gpt4jax import files, job
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.inference.engine import Engine
from gpt4jax.scaling import figures, hindsight

_ANSWER_TOKENS = 4  # at most


def measure(engine: Engine, tokenizer: Tokenizer, items: Sequence[hindsight.Item]) -> dict[str, float]:
    """The accuracy on the items, its standard error, and what always answering Y would get."""
    pairs = [(tokenizer.prompt(item.prompt), tokenizer.encode(answer)) for item in items for answer in item.classes]
    scores = np.array([score for score, _ in engine.loglikelihood(pairs)]).reshape(len(items), -1)
    answers = [item.answer_index for item in items]
    accuracy = hindsight.accuracy(scores, answers)
    return {
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1 - accuracy) / len(items)),
        "always_yes": float(np.mean(np.array(answers) == 0)),
    }


def main(argv: Sequence[str]) -> int:
    """Reads the flags, measures each model and draws them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.scaling.inverse", description=__doc__.partition("\n")[0])
    parser.add_argument("--weights", action="append", required=True, help="as gpt4jax.sample takes them; several times")
    parser.add_argument(
        "--out", required=True, type=files.user_path, help="the folder for inverse.json and figure3.png"
    )
    parser.add_argument("--items", type=int, default=300, help="bets to judge (default: %(default)s)")
    parser.add_argument(
        "--shots", type=int, default=hindsight.SHOTS, help="judged bets in front (default: %(default)s)"
    )
    flags = parser.parse_args(argv)
    if flags.items < 1 or flags.shots < 0:
        raise UserError(f"--items {flags.items} and --shots {flags.shots}: at least 1 and 0")
    out = files.local_folder(flags.out, "--out")
    items = hindsight.items(0, flags.items, flags.shots)
    report = {}
    for name in flags.weights:
        loaded = job.load_model(argparse.Namespace(weights=name, workdir=None))
        longest = max(len(loaded.tokenizer.prompt(item.prompt)) for item in items) + _ANSWER_TOKENS
        if longest > loaded.config.max_seq_len:
            raise UserError(f"{name} has {loaded.config.max_seq_len} positions and bets take {longest}: lower --shots")
        engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, max_len=longest)
        report[name] = found = measure(engine, loaded.tokenizer, items)
        print(f"{name}: accuracy {found['accuracy']:.3f} ± {found['standard_error']:.3f}", flush=True)
    files.replace(
        out / "inverse.json", json.dumps({"items": flags.items, "shots": flags.shots, "models": report}) + "\n"
    )
    figures.inverse(report, out / "figure3.png")
    return 0


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
