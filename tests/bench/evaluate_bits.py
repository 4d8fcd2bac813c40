"""SmolLM2's scores in any batch, order and on many devices; and what reading a shared beginning once saves.

    pip install '.[test]'
    python -m tests.bench.evaluate_bits bits [--items 24]
    python -m tests.bench.evaluate_bits prefix [--items 16]

bits: PIQA, HellaSwag and GSM8K (written answers) with batches of 1, 5 and 16, shuffled, and on eight virtual devices.
prefix: 5-shot MMLU of one subject as `gpt4jax.evaluate` asks it, and each choice read from its first token on.
"""

import argparse
import os
import random
import time

os.environ["JAX_NUM_CPU_DEVICES"] = "8"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import numpy as np

from gpt4jax import files, weights
from gpt4jax.evals import catalog, runner
from gpt4jax.evals.asking import Asker
from gpt4jax.inference import Candidates, Engine
from gpt4jax.parallel.mesh import make_mesh


def bits(items: int) -> None:
    """Prints what is equal to what."""
    loaded = weights.load("smollm2-135m-instruct")
    tasks = catalog.build(["piqa", "hellaswag", "gsm8k"], {}, None, files.cache_dir())
    counts = (items, items, max(items // 3, 1))
    calls = [
        call for task, count in zip(tasks, counts, strict=True) for item in runner.sample(task.items, count)
        for call in next(task.solve(item))
    ]  # fmt: skip

    def answers(engine: Engine, batch_size: int, order: list[int]) -> list:
        found = dict(Asker(engine, None, batch_size).ask([calls[i] for i in order]))
        return [found[order.index(i)] for i in range(len(calls))]

    options = dict(tokenizer=loaded.tokenizer, max_len=1536)
    one = Engine(loaded.config, loaded.params, rows=16, **options)
    plain = list(range(len(calls)))
    expected = answers(one, 16, plain)
    for batch_size in (1, 5):
        print(f"batches of {batch_size}: equal bits {answers(one, batch_size, plain) == expected}", flush=True)
    shuffled = random.Random(0).sample(plain, len(plain))
    print(f"shuffled: equal bits {answers(one, 16, shuffled) == expected}", flush=True)
    again = Engine(loaded.config, loaded.params, rows=16, **options)
    print(f"another engine: equal bits {answers(again, 16, shuffled) == expected}", flush=True)
    mesh = make_mesh({"data": 8, "fsdp": 1, "tensor": 1}, jax.devices()[:8])
    eight = answers(Engine(loaded.config, loaded.params, rows=2, mesh=mesh, **options), 16, plain)
    chosen = [(a, b) for a, b in zip(expected, eight, strict=True) if hasattr(a, "logprobs")]
    worst = max(float(np.abs(np.subtract(a.logprobs, b.logprobs)).max()) for a, b in chosen)
    same = sum(np.argmax(a.logprobs) == np.argmax(b.logprobs) for a, b in chosen)
    texts = [(a, b) for a, b in zip(expected, eight, strict=True) if not hasattr(a, "logprobs")]
    equal = sum(a.text == b.text for a, b in texts)
    print(
        f"eight devices: the same choice on {same} of {len(chosen)}, log likelihoods within {worst:.1e}; {equal} of "
        f"{len(texts)} texts equal"
    )


def prefix(items: int) -> None:
    """Prints both speeds."""
    loaded = weights.load("smollm2-135m-instruct")
    (task,) = catalog.build(["mmlu"], {}, None, files.cache_dir())
    group = runner.sample(task.items, 1)[0].group
    own = [item for item in task.items if item.group == group][: items + 1]
    engine = Engine(loaded.config, loaded.params, rows=1, max_len=128, tokenizer=loaded.tokenizer)
    asker = Asker(engine, None, 1)
    asked = [asker.prepare(next(task.solve(item))[0]).asked for item in own]
    naive = [
        Candidates((text,), (start,)) for one in asked for text, start in zip(one.texts, one.score_from, strict=True)
    ]
    seconds, scores = {}, {}
    for name, some in (("shared", asked), ("naive", naive)):
        list(engine.score(some[: len(some) // len(own)] * 2))  # compiles
        list(engine.score(some[:1]))
        started = time.perf_counter()
        scores[name] = dict(engine.score(some))
        seconds[name] = time.perf_counter() - started
    ours = [score.logprob for i in range(len(asked)) for score in scores["shared"][i]]
    theirs = [scores["naive"][i][0].logprob for i in range(len(naive))]
    worst = float(np.abs(np.subtract(ours, theirs)).max())
    print(
        f"{group}: {len(asked)} items, {len(asked) / seconds['shared']:.2f} items/s, each choice by itself "
        f"{len(asked) / seconds['naive']:.2f}: {seconds['naive'] / seconds['shared']:.1f}x; at most {worst:.1e} apart"
    )


def main() -> None:
    """Reads the flags and runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("bits", "prefix"))
    parser.add_argument("--items", type=int, default=16)
    flags = parser.parse_args()
    (bits if flags.part == "bits" else prefix)(flags.items)


if __name__ == "__main__":
    main()
