"""Can a pattern carry a fact over 3,000 tokens? `python -m tests.bench.far_copy [--patterns NAME ...]`.

A row of 4,096 tokens is noise but for one marker near its beginning, one of 16, and some questions behind it: at each
the answer is the marker. A layer sees the marker itself or it does not; then it has to be told by a token
between, which does not know who will ask. Trained on questions at any distance, measured on rows never seen, by the
question that stands exactly 3,000 tokens behind the marker. Two layers of width 64.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt4jax import model

LENGTH, DISTANCE, MARKERS, NOISE, QUESTIONS = 4096, 3000, 16, 1, 64
ASK = MARKERS + NOISE
PATTERNS = {
    "dense, banded:256": ("dense", "banded:256"),
    "strided:64": ("strided:64",),
    "fixed:64:8": ("fixed:64:8",),
    "banded:64, column:64": ("banded:64", "column:64"),
    "banded:64/column:64": ("banded:64/column:64",),
    "banded:256": ("banded:256",),
}


def rows(seed: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens (B, T), the marker (B,) of each row, and where the questions are (B, Q), the one at DISTANCE first."""
    rng = np.random.default_rng(seed)
    tokens = MARKERS + rng.integers(0, NOISE, (count, LENGTH))
    marker, place = rng.integers(0, MARKERS, count), rng.integers(0, LENGTH - DISTANCE - 1, count)
    asked = np.array([rng.choice(np.arange(p + 1, LENGTH), QUESTIONS, replace=False) for p in place])
    asked[:, 0] = place + DISTANCE
    tokens[np.arange(count)[:, None], asked] = ASK
    tokens[np.arange(count), place] = marker
    return tokens, marker, asked


def train(attention: tuple[str, ...], steps: int, batch: int) -> tuple[float, float]:
    """The accuracy at DISTANCE and of all questions, on 256 rows; stops early once both are perfect."""
    config = model.Config(
        ASK + 1, 2, 64, 2, 2, 32, 128, LENGTH, norm="rmsnorm", position="rope", use_bias=False, attention=attention
    )
    optimizer = optax.adam(optax.warmup_cosine_decay_schedule(0, 3e-3, 20, steps))
    params = model.init(config, jax.random.key(0))
    moments = optimizer.init(params)

    def logits(params, tokens_bt, asked_bq):
        x_btd, _ = model.features(config, params, tokens_bt)
        x_bqd = jnp.take_along_axis(x_btd, asked_bq[..., None], axis=1)
        return model.unembed(config, params, x_bqd)[..., :MARKERS]

    def loss(params, tokens_bt, marker_b, asked_bq):
        labels_bq = jnp.broadcast_to(marker_b[:, None], asked_bq.shape)
        return optax.losses.softmax_cross_entropy_with_integer_labels(
            logits(params, tokens_bt, asked_bq), labels_bq
        ).mean()

    @jax.jit
    def step(params, moments, *data):
        value, grads = jax.value_and_grad(loss)(params, *data)
        updates, moments = optimizer.update(grads, moments, params)
        return optax.apply_updates(params, updates), moments, value

    right = jax.jit(
        lambda params, tokens, marker, asked: jnp.argmax(logits(params, tokens, asked), -1) == marker[:, None]
    )
    began = time.perf_counter()
    for i in range(steps):
        params, moments, value = step(params, moments, *rows(1 + i, batch))
        if i % 50 == 49:
            print(f"  step {i + 1}: loss {float(value):.4f}, {time.perf_counter() - began:.0f} s", flush=True)
            if value < 1e-3:
                break
    tests = [rows(10**6 + i, 8) for i in range(32)]
    correct = np.concatenate([np.asarray(right(params, *data)) for data in tests])
    return float(correct[:, 0].mean()), float(correct.mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patterns", nargs="*", default=list(PATTERNS))
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch", type=int, default=4)
    flags = parser.parse_args()
    for name in flags.patterns:
        far, every = train(PATTERNS[name], flags.steps, flags.batch)
        chance = 1 / MARKERS
        print(f"{name}: {far:.3f} of 256 answers 3,000 tokens back right, {every:.3f} of all; chance {chance:.3f}")


if __name__ == "__main__":
    main()
