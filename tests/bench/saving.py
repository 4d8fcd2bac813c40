"""What a save costs a run: an asynchronous one, as `gpt4jax.train` does it, beside one that is waited for.

    python -m tests.bench.saving [--layers 12 --width 960 --saves 5]

The state is parameters and Adam's moments in float32, 2 GB or more at the default size. Printed: seconds of a step
with nothing beside it, of the steps that run while a save is under way, seconds that a save blocks and that it takes
until it is on disk (with its checksums), each a median, for both kinds.
"""

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from functools import partial

import jax
import numpy as np

from gpt4jax import config as configuration
from gpt4jax import model
from gpt4jax.training import checkpoint, optimizer
from gpt4jax.training import state as states
from gpt4jax.training.step import Batch, train_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--width", type=int, default=960)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--seq_len", type=int, default=64)
    options = parser.parse_args()
    shape = model.Config(
        vocab_size=50_304, num_layers=options.layers, embed_dim=options.width, num_heads=options.width // 64,
        num_kv_heads=options.width // 64, head_dim=64, mlp_dim=4 * options.width, max_seq_len=options.seq_len,
    )  # fmt: skip
    defaults = configuration.default().optimizer
    tx = optimizer.adamw(defaults, shape, 1000)
    step = jax.jit(partial(train_step, shape, tx, optimizer.schedule(defaults, 1000), seed=0), donate_argnums=0)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50_000, (1, options.seq_len + 1)).astype(np.int32)
    ones = np.ones((1, options.seq_len), np.int32)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], ones, np.arange(options.seq_len, dtype=np.int32)[None], ones)
    state = jax.jit(partial(states.new_state, shape, tx, 0))()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    print(f"state {size / 1e9:.2f} GB", flush=True)

    def timed(state):
        began = time.monotonic()
        state, scalars = step(state, batch)
        jax.block_until_ready(scalars)
        return state, time.monotonic() - began

    state, _ = timed(state)
    alone = []
    for _ in range(8):
        state, seconds = timed(state)
        alone.append(seconds)
    out: dict[str, dict[str, list[float]]] = {
        kind: {"blocked": [], "until on disk": [], "step beside it": []} for kind in ("asynchronous", "synchronous")
    }
    for number in range(2 * options.saves):  # the two in turn
        kind = ("asynchronous", "synchronous")[number % 2]
        with tempfile.TemporaryDirectory() as folder:
            checkpoints = checkpoint.Checkpoints(pathlib.Path(folder), 2)
            began = time.monotonic()
            checkpoints.save(state)
            if kind == "synchronous":
                checkpoints.wait()
            out[kind]["blocked"].append(time.monotonic() - began)
            beside = []
            while checkpoints.saving():
                state, seconds = timed(state)
                beside.append(seconds)
            checkpoints.wait()
            out[kind]["until on disk"].append(time.monotonic() - began)
            out[kind]["step beside it"] += beside
            checkpoints.close()
    print(json.dumps({"step alone": round(statistics.median(alone), 3)}))
    for kind, found in out.items():
        shown = {name: round(statistics.median(each), 3) for name, each in found.items() if each}
        print(json.dumps({"save": kind, **shown, "steps beside": len(found["step beside it"])}), flush=True)


if __name__ == "__main__":
    main()
