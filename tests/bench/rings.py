"""Decoding behind a long context with and without rings for the banded layers, in turn, on an otherwise idle machine.

    python -m tests.bench.rings [--rows 1] [--context 4000] [--steps 33] [--window 256]

GPT-2 124M's shape with random parameters and the cycle ("dense", "banded:WINDOW"). Both caches read the same text in
chunks and then decode greedily: milliseconds a chunk and a step (medians), bytes of each cache, tokens that differ.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import model
from gpt4jax.inference.engine import CHUNK
from gpt4jax.inference.prepare import prepare


@partial(jax.jit, static_argnums=0, donate_argnums=2)
def read(config, params, state, tokens_bt):
    """The state with the tokens in it, and the likeliest next ones, (B, 1)."""
    x_btd, state = model.features(config, params, tokens_bt, state=state)
    return state, jnp.argmax(model.unembed(config, params, x_btd[:, -1:]), axis=-1)


def main() -> None:
    """Prints a line for each kind of cache."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--context", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=33)
    parser.add_argument("--window", type=int, default=256)
    options = parser.parse_args()
    attention = ("dense", f"banded:{options.window}")
    length = -(-(options.context + options.steps) // CHUNK) * CHUNK
    config = model.Config(50257, 12, 768, 12, 12, 64, 3072, length, init_std=0.05, attention=attention)
    params = prepare(config, jax.jit(model.init, static_argnums=0)(config, jax.random.key(0)), consume=True)
    kinds = {"plain": None, "rings": CHUNK}
    states = {kind: model.init_cache(config, options.rows, length, append=most) for kind, most in kinds.items()}
    seconds: dict[str, dict[int, list[float]]] = {kind: {CHUNK: [], 1: []} for kind in kinds}
    told: dict[str, list[np.ndarray]] = {kind: [] for kind in kinds}

    def timed(kind: str, tokens_bt: np.ndarray) -> np.ndarray:
        start = time.monotonic()
        states[kind], next_b1 = read(config, params, states[kind], tokens_bt)
        next_b1 = np.asarray(next_b1)
        seconds[kind].setdefault(tokens_bt.shape[1], []).append(time.monotonic() - start)
        return next_b1

    text_bt = np.random.default_rng(0).integers(0, config.vocab_size, (options.rows, options.context))
    for start in range(0, options.context, CHUNK):
        next_b1 = {kind: timed(kind, text_bt[:, start : start + CHUNK]) for kind in kinds}
    for _ in range(options.steps):
        for kind in kinds:
            told[kind].append(next_b1[kind])
            next_b1[kind] = timed(kind, next_b1[kind])
    for kind, most in kinds.items():
        # The first of each compiles; of the chunks, the last quarter lies behind a long context.
        chunks, steps = seconds[kind][CHUNK], seconds[kind][1][1:]
        late = statistics.median(chunks[-(len(chunks) // 4) :]) * 1e3
        mib = model.cache_bytes(config, options.rows, length, append=most) / 2**20
        print(f"{kind}: {statistics.median(steps) * 1e3:.1f} ms a step, {late:.0f} ms a late chunk, {mib:.0f} MiB")
    differ = int((np.array(told["plain"]) != np.array(told["rings"])).sum())
    print(f"{differ} of {options.rows * options.steps} tokens differ")


if __name__ == "__main__":
    main()
