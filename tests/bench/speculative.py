"""Speculative decoding: is the distribution that of plain sampling, and how many passes are saved?

    pip install '.[test]' && python -m tests.bench.speculative [--draws 100000]

First a small model with another as its draft: counts of all continuations of three tokens against their exact
probabilities (Pearson's chi-square), for three mixtures of settings, and once more against the draft's own
distribution, which must fail. Then SmolLM2-135M with drafts made of itself, since no smaller model shares its
tokenizer: its own int8 weights, and its first layers alone. Tokens a pass of the large model, one request at a time.
"""

import argparse
import dataclasses

import jax
import numpy as np

from gpt4jax import model, weights
from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request
from gpt4jax.inference.speculative import Draft
from tests.bench.inference import MODEL, prompts_of
from tests.inference.exact import joint, p_value

LARGE = model.Config(
    6, 2, 32, 4, 2, 8, 64, 32, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, init_std=0.3
)
SMALL = model.Config(6, 1, 32, 4, 4, 8, 64, 32, init_std=0.3)
SETTINGS = [{}, dict(temperature=1.5, top_k=4), dict(top_p=0.8, min_p=0.05, repetition_penalty=1.4)]


def chi_square(draws: int) -> None:
    """Prints p-values; a small one would say that the draws are of another distribution."""
    large, small = (model.init(config, jax.random.key(i)) for i, config in enumerate((LARGE, SMALL)))
    engine = Engine(LARGE, large, rows=4096, max_len=16, draft=Draft(SMALL, small, tokens=2))
    for settings in SETTINGS:
        counts = np.zeros((6, 6, 6))
        for result in engine.generate(Request([2], 3, seed=seed, **settings) for seed in range(draws)):
            counts[result.tokens] += 1
        own = p_value(counts, joint(LARGE, large, [2], 3, settings))
        drafts = p_value(counts, joint(SMALL, small, [2], 3, settings))
        print(f"{draws:,} draws with {settings}: p = {own:.3f}; against the draft's distribution p = {drafts:.1e}")


def passes(max_tokens: int) -> None:
    """Prints tokens a pass, greedy and drawn."""
    loaded = weights.load(MODEL)
    prompts = prompts_of(loaded.tokenizer)[::4]

    def first_layers(n: int) -> Draft:
        params = dict(loaded.params) | {"layers": {name: a[:n] for name, a in loaded.params["layers"].items()}}
        return Draft(dataclasses.replace(loaded.config, num_layers=n), params)

    drafts = {"itself in int8": Draft(loaded.config, loaded.params, weights="int8")}
    drafts |= {f"its first {n} of 30 layers": first_layers(n) for n in (15, 25)}
    for name, draft in drafts.items():
        engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=1, max_len=256, draft=draft)
        for temperature in (0.0, 0.8):
            before, tokens = engine.passes, 0
            for prompt in prompts:
                request = Request(prompt, max_tokens, temperature=temperature, stop_ids=frozenset())
                tokens += len(engine.generate([request])[0].tokens)
            print(
                f"SmolLM2 drafted by {name}, {draft.tokens} tokens at a time, temperature {temperature}: "
                f"{tokens / (engine.passes - before):.2f} tokens a pass",
                flush=True,
            )


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--draws", type=int, default=100_000)
    parser.add_argument("--max_tokens", type=int, default=60)
    options = parser.parse_args()
    chi_square(options.draws)
    passes(options.max_tokens)


if __name__ == "__main__":
    main()
