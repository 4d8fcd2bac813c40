"""Does a model get better at arithmetic by what it agrees with itself on?

python -m tests.bench.self_improve --workdir DIR

Trains a decoder of 0.8M parameters from scratch on some hundred sums with their chains of thought, in the four formats
of Huang et al. 2022; lets it answer other sums, whose answers nobody tells it, many times; fine-tunes it on the chains
that most of its answers agree with; and asks both models sums that neither has seen. Beside it a control: the first
model, trained for as many steps more on what it was given at first. All training is `gpt4jax.train` with a JSONL file.
Runs that are done already in DIR are not trained again, nor paths drawn again.
"""

import argparse
import json
import pathlib
import sys
import time

import numpy as np

from gpt4jax import files, job
from gpt4jax.align import arithmetic, self_improve
from gpt4jax.align.self_improve import Demonstration, Exemplar, Sampling, Voted
from gpt4jax.evals import stats
from gpt4jax.inference import Engine
from tests import runs

SUMS = arithmetic.Difficulty(fewest=3, most=4, largest=20, words=False)
EXEMPLARS = 2
MAX_TOKENS = 64  # of a chain: the longest right ones have some 40
VOCABULARY = 384  # with most numbers as one token
SHAPE = {
    "model.vocab_size": VOCABULARY, "model.embed_dim": 128, "model.num_heads": 4, "model.num_kv_heads": 4,
    "model.head_dim": 32, "model.mlp_dim": 352, "batch_size": 8, "eval.eval_every_steps": 0, "eval.sample_prompt": "",
    "checkpoint.checkpoint_every_steps": 0,
}  # fmt: skip


def train(folder: pathlib.Path, data: list[Demonstration], **options: object) -> pathlib.Path:
    """A run on demonstrations, prompts and responses alike, with its data beside it."""
    lines = [json.dumps({**one, "text": one["prompt"] + one["response"]}) for one in data]
    files.replace(folder / "data.jsonl", "\n".join(lines) + "\n")
    warmup = min(100, int(str(options["num_steps"])) // 4)  # a short tuning has a short one
    data_of = {"data.dataset": f"jsonl:{folder / 'data.jsonl'}", "optimizer.warmup_steps": warmup}
    overrides = SHAPE | data_of | options
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    done = runs.run(
        "train", "--config", runs.ROOT / "configs" / "quickstart.py", "--workdir", folder / "run", *flags,
        cache=files.cache_dir(),
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(done.stderr)
    return folder / "run"


def serve(workdir: pathlib.Path, rows: int) -> Engine:
    """An engine for a run."""
    loaded = job.load_model(argparse.Namespace(workdir=workdir, weights=None))
    return Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=rows)


def told(name: str, estimate: stats.Estimate) -> None:
    print(f"  {name}: {estimate.mean:.3f} ({estimate.low:.3f}-{estimate.high:.3f})", flush=True)


class Trial:
    """What is asked of each model, and how."""

    def __init__(self, flags: argparse.Namespace):
        self.flags, self.seed = flags, flags.seed
        worked = arithmetic.problems(self.seed, "demonstrations", EXEMPLARS + flags.demonstrations, SUMS)
        # Chains go through the numbers in any order: as a question has many right chains, votes can tell more than one.
        rng = np.random.default_rng(self.seed)
        worked = [arithmetic.rearranged(one, rng) for one in worked]
        self.exemplars = [Exemplar(one.question, one.path) for one in worked[:EXEMPLARS]]
        self.given = [
            demonstration
            for one in worked[EXEMPLARS:]
            for demonstration in self_improve.formats(one.question, one.path, self.exemplars)
        ]
        self.unanswered = [one.question for one in arithmetic.problems(self.seed, "questions", flags.questions, SUMS)]
        self.held_out = arithmetic.problems(self.seed, "held_out", flags.held_out, SUMS)

    def ask(self, workdir: pathlib.Path) -> dict[str, np.ndarray]:
        """Prints how good a model is, and gives whether each greedy answer is right."""
        engine = serve(workdir, self.flags.rows)
        questions, golds = [one.question for one in self.held_out], [str(one.answer) for one in self.held_out]
        right = {}
        for form in ("few_shot_cot", "zero_shot_cot", "few_shot", "zero_shot"):
            greedy = Sampling(1, 0.0, max_tokens=MAX_TOKENS)
            voted = self_improve.ask(engine, questions, self.exemplars, greedy, form)
            right[form] = np.array([one.answer == gold for one, gold in zip(voted, golds, strict=True)])
            told(f"greedy, {form}", stats.mean(right[form]))
            if form == "few_shot_cot":
                sound = [arithmetic.verify(one, vote.paths[0]) for one, vote in zip(self.held_out, voted, strict=True)]
                told("greedy, few_shot_cot, and all its equations true", stats.mean([all(one) for one in sound]))
        drawn = Sampling(self.flags.paths, self.flags.temperature, max_tokens=MAX_TOKENS, seed=self.seed + 1000)
        voted = self_improve.ask(engine, questions, self.exemplars, drawn)
        for name, estimate in self_improve.measure(voted, golds).items():
            told(f"{name} of {self.flags.paths} paths at T={drawn.temperature}", estimate)
        self.confidence(voted, golds)
        return right

    def confidence(self, voted: list[Voted], golds: list[str]) -> None:
        """Prints how often the majority is right, by how large it is."""
        for low, high, estimate in self_improve.by_confidence(voted, golds):
            if estimate is not None:
                told(f"majority of a confidence in ({low}, {high}], {estimate.items} questions", estimate)

    def draw(self, model: pathlib.Path, number: int) -> list[Voted]:
        """The paths that a model draws for the questions without answers; those that are there already are read."""
        temperature = self_improve.TUNED_TEMPERATURE if number else self.flags.temperature
        kept = model.parent / f"paths-{self.flags.paths}-{temperature}.jsonl"
        if not kept.is_file():
            drawn = Sampling(self.flags.paths, temperature, max_tokens=MAX_TOKENS, seed=self.seed + number)
            voted = self_improve.ask(serve(model, self.flags.rows), self.unanswered, self.exemplars, drawn)
            files.replace(kept, "".join(json.dumps(one.paths) + "\n" for one in voted))
        lines = kept.read_text().splitlines()
        return [self_improve.vote(one, json.loads(line)) for one, line in zip(self.unanswered, lines, strict=True)]

    def tune(self, model: pathlib.Path, data: list[Demonstration], folder: pathlib.Path) -> pathlib.Path:
        """Fine-tunes a model, on as many demonstrations as it will see, drawn without replacement."""
        most = self.flags.tune_steps * 8 * 5
        chosen = np.random.default_rng(self.seed).permutation(len(data))[:most]
        return train(
            folder, [data[i] for i in chosen], init_from=model, num_steps=self.flags.tune_steps,
            **{"data.tokenizer": "weights", "optimizer.learning_rate": self.flags.tune_rate},
        )  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--demonstrations", type=int, default=1000, help="sums that are answered for the first model")
    parser.add_argument("--questions", type=int, default=1000, help="sums that are not")
    parser.add_argument("--held_out", type=int, default=300, help="sums that models are compared on")
    parser.add_argument("--paths", type=int, default=self_improve.PATHS)
    parser.add_argument("--temperature", type=float, default=self_improve.TEMPERATURE, help="of the first round's")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument(
        "--least_confidence", type=float, nargs="+", default=[0.0, 0.6], help="of questions to learn from"
    )
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--tune_steps", type=int, default=800)
    parser.add_argument("--tune_rate", type=float, default=5e-4)
    parser.add_argument("--rows", type=int, default=64, help="chains that are drawn at once; they change nothing")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    began = time.perf_counter()
    trial = Trial(flags)
    flags.workdir = flags.workdir.absolute()
    base = train(
        flags.workdir / "base", trial.given, num_steps=flags.steps, seed=flags.seed,
        **{"data.tokenizer": f"bpe:{VOCABULARY}", "optimizer.learning_rate": 2e-3},
    )  # fmt: skip
    print("before", flush=True)
    before = trial.ask(base)
    answers = [str(one.answer) for one in arithmetic.problems(flags.seed, "questions", flags.questions, SUMS)]
    for least in flags.least_confidence:
        model = base
        for i in range(flags.rounds):
            voted = trial.draw(model, i)
            print(f"round {i + 1}: of the sums without answers (which only these lines know)", flush=True)
            for name, estimate in self_improve.measure(voted, answers).items():
                told(name, estimate)
            trial.confidence(voted, answers)
            data = self_improve.demonstrations(voted, trial.exemplars, least_confidence=least)
            questions = sum(one.confidence >= least for one in voted)
            print(f"after round {i + 1} on {questions} questions of a confidence of {least} or more", flush=True)
            model = trial.tune(model, data, flags.workdir / f"confidence{least}-round{i + 1}")
            after = trial.ask(model)
            for form in after:
                told(f"greedy, {form}, after - before", stats.difference(after[form], before[form]))
    control = trial.tune(base, trial.given, flags.workdir / "control")
    print("the control: as many steps on what was given at first", flush=True)
    after = trial.ask(control)
    told("greedy, few_shot_cot, control - before", stats.difference(after["few_shot_cot"], before["few_shot_cot"]))
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
