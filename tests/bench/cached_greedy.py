"""Cached greedy sampling against the uncached forward pass, at two sizes.

    python -m tests.bench.cached_greedy [--size real]

Generates greedily through the KV cache, then runs the whole text through the decoder once without a cache:
token i must be the likeliest after the first i. Counts disagreements, and of those the ones where the best two
logits lie within 1e-4. Random weights, drawn wider than for training so that the text does not settle.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import model
from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request

LLAMA = dict(norm="rmsnorm", position="rope", rope_theta=1e5, activation="swiglu", use_bias=False)
SHAPES = {
    "small": {
        "gpt": (model.Config(4096, 6, 384, 6, 6, 64, 1536, 1024, init_std=0.06), 1000),
        "llama": (model.Config(4096, 6, 384, 6, 2, 64, 1024, 2048, init_std=0.06, **LLAMA), 2000),
    },
    "real": {
        "gpt (GPT-2 124M)": (model.Config(50257, 12, 768, 12, 12, 64, 3072, 1024, init_std=0.05), 1000),
        "llama (SmolLM2 135M)": (model.Config(49152, 30, 576, 9, 3, 64, 1536, 2048, init_std=0.06, **LLAMA), 2000),
    },
}


def compare(config: model.Config, max_tokens: int, seed: int) -> dict[str, float]:
    """Counts over one text; "distinct" says how many different tokens it has."""
    params = jax.jit(model.init, static_argnums=0)(config, jax.random.key(seed))
    prompt = list(range(10, 18))
    start = time.monotonic()
    engine = Engine(config, params, rows=1)
    tokens = engine.generate([Request(prompt, max_tokens, temperature=0.0)])[0].tokens
    seconds = time.monotonic() - start
    rows_bt = jnp.asarray([[*prompt, *tokens[:-1]]])

    @jax.jit
    def best_two(params, rows_bt):
        x_btd, _ = model.features(config, params, rows_bt)
        # A slice at a time: the logits of all positions would take hundreds of megabytes.
        parts = jnp.split(x_btd[:, len(prompt) - 1 :], max_tokens // 100, axis=1)
        tops = [jax.lax.top_k(model.unembed(config, params, part), 2) for part in parts]
        return [jnp.concatenate([top[i][0] for top in tops]) for i in range(2)]

    values_t2, ids_t2 = map(np.asarray, best_two(params, rows_bt))
    differs = ids_t2[:, 0] != np.asarray(tokens)
    near = values_t2[:, 0] - values_t2[:, 1] < 1e-4
    return {
        "tokens": len(tokens), "distinct": len(set(tokens)), "differ": int(differs.sum()),
        "differ_within_1e-4": int((differs & near).sum()), "differ_beyond": int((differs & ~near).sum()),
        "tokens_per_second": round(len(tokens) / seconds, 1),
    }  # fmt: skip


def main() -> None:
    """Prints the counts for both shapes; exits with status 1 if a token differs beyond 1e-4."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--size", choices=list(SHAPES), default="small", help="real: 124M and 135M parameters")
    options = parser.parse_args()
    results = {name: compare(config, count, options.seed) for name, (config, count) in SHAPES[options.size].items()}
    for name, result in results.items():
        print(name, result)
    raise SystemExit(any(result["differ_beyond"] for result in results.values()))


if __name__ == "__main__":
    main()
