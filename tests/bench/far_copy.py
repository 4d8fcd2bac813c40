"""Can a pattern carry a fact over 3,000 tokens? `python -m tests.bench.far_copy [--patterns NAME ...]`.

A row of 4,096 tokens is noise but for one marker near its beginning, one of 16. At every token behind it the answer
is the marker. A layer sees the marker itself or it does not; then a token between has to tell. Trained on all places
behind the marker, those d behind it with a weight of 1 / d: on rows of 256 tokens first, then of 1,024, then of 4,096.
Measured on rows never seen, at the place exactly 3,000 tokens behind the marker. Two layers of width 64.

Seed 1, 3 to 6 minutes each on two busy cores (the last one 16): all but banded:256 1.000; banded:256, whose two layers
reach 510 tokens back, 0.082.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt4jax import model

LENGTH, DISTANCE, MARKERS, NOISE = 4096, 3000, 16, 8
STAGES = ((256, 64), (1024, 16), (LENGTH, 4))  # the length of rows, and how many a step has
PATTERNS = {
    "dense, banded:256": ("dense", "banded:256"),
    "strided:64": ("strided:64",),
    "fixed:64:8": ("fixed:64:8",),
    "banded:64, column:64": ("banded:64", "column:64"),
    "banded:256": ("banded:256",),
}


def rows(seed: int, length: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (B, T), the marker (B,) of each row, and its place (B,), in the first quarter."""
    rng = np.random.default_rng(seed)
    tokens = MARKERS + rng.integers(0, NOISE, (count, length))
    marker, place = rng.integers(0, MARKERS, count), rng.integers(0, length * (LENGTH - DISTANCE) // LENGTH, count)
    tokens[np.arange(count), place] = marker
    return tokens, marker, place


def train(attention: tuple[str, ...], steps: int, seed: int) -> tuple[float, float]:
    """The accuracy at DISTANCE, and of all places behind the marker, on 256 rows.

    Up to so many steps of each length; the next one begins when the loss is below 0.01.
    """
    config = model.Config(
        MARKERS + NOISE, 2, 64, 2, 2, 32, 128, LENGTH, norm="rmsnorm", position="rope", rope_theta=1e6, use_bias=False,
        init_std=0.1, attention=attention,
    )  # fmt: skip
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.warmup_constant_schedule(0, 3e-3, 20)))
    params = model.init(config, jax.random.key(seed))
    moments = optimizer.init(params)

    def logits(params, tokens_bt):
        return model.apply(config, params, tokens_bt)[..., :MARKERS]

    def loss(params, tokens_bt, marker_b, place_b):
        label_bt = jnp.broadcast_to(marker_b[:, None], tokens_bt.shape)
        nll_bt = optax.losses.softmax_cross_entropy_with_integer_labels(logits(params, tokens_bt), label_bt)
        distance_bt = jnp.arange(tokens_bt.shape[1]) - place_b[:, None]
        weight_bt = jnp.where(distance_bt > 0, 1 / jnp.maximum(distance_bt, 1), 0)
        return jnp.sum(nll_bt * weight_bt) / jnp.sum(weight_bt)

    @jax.jit
    def step(params, moments, *data):
        value, grads = jax.value_and_grad(loss)(params, *data)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    @jax.jit
    def right(params, tokens_bt, marker_b, place_b):
        right_bt = jnp.argmax(logits(params, tokens_bt), axis=-1) == marker_b[:, None]
        far_b = right_bt[jnp.arange(len(place_b)), place_b + DISTANCE]
        return far_b, jnp.mean(right_bt, axis=1, where=jnp.arange(LENGTH) > place_b[:, None])

    began = time.perf_counter()
    for length, batch in STAGES:
        for i in range(steps):
            params, moments, value = step(params, moments, *rows(10**5 * seed + i, length, batch))
            if i % 50 == 49:
                print(f"  {length}, step {i + 1}: loss {value:.4f}, {time.perf_counter() - began:.0f} s", flush=True)
                if value < 0.01:
                    break
    far, every = zip(*(right(params, *rows(10**9 + i, LENGTH, 8)) for i in range(32)), strict=True)
    return float(np.mean(far)), float(np.mean(every))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS))
    parser.add_argument("--steps", type=int, default=400, help="of each length, at most")
    parser.add_argument("--seed", type=int, default=1)
    flags = parser.parse_args()
    for name in flags.patterns:
        far, every = train(PATTERNS[name], flags.steps, flags.seed)
        told = f"{far:.3f} of 256 answers 3,000 tokens back right, {every:.3f} of all; chance {1 / MARKERS:.3f}"
        print(f"{name}: {told}", flush=True)


if __name__ == "__main__":
    main()
