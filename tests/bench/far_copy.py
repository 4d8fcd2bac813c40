"""Can a pattern carry a fact over 3,000 tokens? `python -m tests.bench.far_copy [--patterns NAME ...]`.

A row of 4,096 tokens is noise but for one marker near its beginning, one of 16. At every token behind it the answer
is the marker. A layer sees the marker itself or it does not; then a token between has to tell. Trained on all places
behind the marker, those d behind it with a weight of 1 / d, measured on rows never seen, at the place exactly 3,000
tokens behind it. Two layers of width 64.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt4jax import model

LENGTH, DISTANCE, MARKERS, NOISE = 4096, 3000, 16, 8
PATTERNS = {
    "dense, banded:256": ("dense", "banded:256"),
    "strided:64": ("strided:64",),
    "fixed:64:8": ("fixed:64:8",),
    "banded:64, column:64": ("banded:64", "column:64"),
    "banded:256": ("banded:256",),
}


def rows(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (B, T), the marker (B,) of each row, and its place (B,)."""
    rng = np.random.default_rng(seed)
    tokens = MARKERS + rng.integers(0, NOISE, (count, LENGTH))
    marker, place = rng.integers(0, MARKERS, count), rng.integers(0, LENGTH - DISTANCE, count)
    tokens[np.arange(count), place] = marker
    return tokens, marker, place


def train(attention: tuple[str, ...], steps: int, batch: int) -> tuple[float, float]:
    """The accuracy at DISTANCE, and of all places behind the marker, on 256 rows; stops early at a loss of 0.001."""
    config = model.Config(
        MARKERS + NOISE, 2, 64, 2, 2, 32, 128, LENGTH, norm="rmsnorm", position="rope", use_bias=False,
        init_std=0.1, attention=attention,
    )  # fmt: skip
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, 3e-3, 20, steps))
    params = model.init(config, jax.random.key(0))
    moments = optimizer.init(params)

    def logits(params, tokens_bt):
        return model.apply(config, params, tokens_bt)[..., :MARKERS]

    def loss(params, tokens_bt, marker_b, place_b):
        label_bt = jnp.broadcast_to(marker_b[:, None], tokens_bt.shape)
        nll_bt = optax.losses.softmax_cross_entropy_with_integer_labels(logits(params, tokens_bt), label_bt)
        distance_bt = jnp.arange(LENGTH) - place_b[:, None]
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
    for i in range(steps):
        params, moments, value = step(params, moments, *rows(1 + i, batch))
        if i % 50 == 49:
            print(f"  step {i + 1}: loss {float(value):.4f}, {time.perf_counter() - began:.0f} s", flush=True)
            if value < 1e-3:
                break
    far, every = zip(*(right(params, *rows(10**6 + i, 8)) for i in range(32)), strict=True)
    return float(np.mean(far)), float(np.mean(every))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS))
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--batch", type=int, default=4)
    flags = parser.parse_args()
    for name in flags.patterns:
        far, every = train(PATTERNS[name], flags.steps, flags.batch)
        chance = 1 / MARKERS
        print(f"{name}: {far:.3f} of 256 answers 3,000 tokens back right, {every:.3f} of all; chance {chance:.3f}")


if __name__ == "__main__":
    main()
