"""What images cost text: `python -m tests.bench.text_kept`.

Pairs of runs, of each pair one seed, the same rows of text in the same order and as many steps: one has only these, the
other as many rows of drawn pictures with questions beside them in every batch. What is told: the loss on held-out text
of both, the mean of the paired differences with a 95% interval (Student's t), and tokens a second of batches that are
half pictures beside batches of as many tokens of text alone, in turn.
"""

import argparse
import itertools
import statistics
import sys
import time
from functools import partial

import jax
import numpy as np

from gpt4jax import config as configuration
from gpt4jax import files, job
from gpt4jax.data import loader, multimodal
from gpt4jax.evals import stats
from gpt4jax.training import optimizer as optimizers
from gpt4jax.training import state as states
from gpt4jax.training.step import Batch, eval_step, train_step

ROWS = 2  # of text in a batch
HELD_OUT_ROWS = 128
OVERRIDES = (
    "data.tokenizer=bytes", "vision.image_token=258", "model.vocab_size=264", "model.attention=('dense',)",
    "optimizer.warmup_steps=50", "data.seq_len=1024", "model.max_seq_len=1024",  # a picture's questions fit one row
)  # fmt: skip


def batches(rows, seed: int):
    """`ROWS` shuffled rows after another, as dictionaries of (B, ...) arrays."""
    order = loader.shuffled(rows, seed)
    for step in itertools.count():
        each = [order[step * ROWS + i] for i in range(ROWS)]
        yield {name: np.stack([row[name] for row in each]) for name in each[0]}


def joined(one: dict, other: dict) -> Batch:
    """The rows of both in one batch."""
    return Batch.of({name: np.concatenate([one[name], other[name]]) for name in one})


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--config", default="configs/vision_quickstart.py")
    flags = parser.parse_args()
    config = configuration.load(flags.config, [*OVERRIDES, f"num_steps={flags.steps}"])
    model_config = configuration.model_config(config)
    cache = files.shared_cache(config.data.cache_dir)

    def load(dataset: str):
        own = config.data.copy_and_resolve_references().unlock()
        own.dataset = dataset
        return multimodal.load(own, model_config.vision, model_config.vocab_size, cache, job.say)

    text, pictures = load("python_stdlib"), load("rendered:10000")
    tx = optimizers.adamw(config.optimizer, model_config, flags.steps)
    schedule = optimizers.schedule(config.optimizer, flags.steps)
    step = jax.jit(partial(train_step, model_config, tx, schedule, seed=0), donate_argnums=0)
    begin = jax.jit(partial(states.new_state, model_config, tx), static_argnums=0)
    measure = jax.jit(partial(eval_step, model_config))
    held = text.of("eval")
    chosen = loader.evaluated(len(held), HELD_OUT_ROWS)
    held_batches = [
        {name: np.stack([held[i][name] for i in chosen[at : at + 8]]) for name in held[0]}
        for at in range(0, HELD_OUT_ROWS, 8)
    ]

    def heldout(params) -> float:
        sums = [measure(params, Batch.of(batch))[0] for batch in held_batches]
        return sum(float(one.nll) for one in sums) / sum(float(one.targets) for one in sums)

    differences = []
    for seed in range(flags.seeds):
        losses = []
        for mixed in (False, True):
            state = begin(seed)
            texts, others = batches(text.of("train"), seed), batches(pictures.of("train"), seed)
            for _ in range(flags.steps):
                batch = joined(next(texts), next(others)) if mixed else Batch.of(next(texts))
                state, _ = step(state, batch)
            losses.append(heldout(state.params))
        differences.append(losses[1] / losses[0] - 1)
        print(f"seed {seed}: text alone {losses[0]:.4f}, with images {losses[1]:.4f} nats/byte: "
              f"{differences[-1]:+.2%}", flush=True)  # fmt: skip
    if flags.seeds > 1:
        mean = stats.mean(differences)
        print(f"held-out text with images: {mean.mean:+.2%} ({mean.low:+.2%} to {mean.high:+.2%}; {flags.seeds} pairs)")

    # Throughput: the same number of rows, from the same generators, decoding included.
    state = begin(0)
    speeds: dict[bool, list[float]] = {False: [], True: []}
    sources = [batches(text.of("train"), seed) for seed in (1, 2)]
    others = batches(pictures.of("train"), 1)
    for round_ in range(6):
        for mixed in (False, True):
            start = time.monotonic()
            for _ in range(20):
                state, scalars = step(state, joined(next(sources[0]), next(others if mixed else sources[1])))
            jax.block_until_ready(scalars)
            if round_:  # the first compiles
                speeds[mixed].append(20 * 2 * ROWS * config.data.seq_len / (time.monotonic() - start))
    alone, half = (statistics.median(speeds[mixed]) for mixed in (False, True))
    print(f"tokens/s: text alone {alone:,.0f}, half pictures {half:,.0f}: {half / alone:.1%}")
    return 0


if __name__ == "__main__":
    job.use_huge_pages()
    sys.exit(main())
