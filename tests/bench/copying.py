"""Does a run copy from its context? The held-out loss by position, and of pairs of tokens that came before in the row.

pip install '.[test]'
python -m tests.bench.copying RUN [RUN ...]

RUN is a workdir of gpt4jax.train, such as the folders below runs/ and target/ of a forecast. A decoder that has learnt
to copy (Olsson et al. 2022: induction heads) predicts the second token of a pair much better the second time; before,
the two losses fall side by side.
"""

import argparse
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import config as configuration
from gpt4jax import files, model
from gpt4jax.data import text
from gpt4jax.data.loader import evaluated
from gpt4jax.training import checkpoint

SPANS = ((0, 16), (16, 48), (48, 10**9))  # positions in a document's piece


def seen_before(tokens_bt: np.ndarray, targets_bt: np.ndarray, segments_bt: np.ndarray) -> np.ndarray:
    """Whether the pair (token, its successor) came before in the same segment of the row."""
    out_bt = np.zeros(tokens_bt.shape, bool)
    for row, pairs in enumerate(zip(segments_bt.tolist(), tokens_bt.tolist(), targets_bt.tolist(), strict=True)):
        earlier: set[tuple[int, int, int]] = set()
        for at, pair in enumerate(zip(*pairs, strict=True)):
            out_bt[row, at] = pair in earlier
            earlier.add(pair)
    return out_bt


def losses(workdir: pathlib.Path, num_rows: int, batch_size: int = 64) -> tuple[int, dict[str, np.ndarray], np.ndarray]:
    """The step of the newest checkpoint, held-out rows spread over all of them, and the loss of each token, (B, T)."""
    config = configuration.from_json(workdir / "config.json")
    shape = configuration.model_config(config)
    data = text.load(config.data, shape.vocab_size, files.shared_cache(config.data.cache_dir), lambda line: None)
    rows = [data.rows["eval"][i] for i in evaluated(len(data.rows["eval"]), num_rows)]
    batch = {name: np.stack([row[name] for row in rows]) for name in rows[0]}
    step, params = checkpoint.load_params(workdir, shape, lambda line: print(line, file=sys.stderr))

    @jax.jit
    def nll(tokens_bt, targets_bt, segment_ids_bt, positions_bt):
        logits_btv = model.apply(
            shape, params, tokens_bt, segment_ids_bt=segment_ids_bt, positions_bt=positions_bt
        ).astype(jnp.float32)
        return -jnp.take_along_axis(jax.nn.log_softmax(logits_btv), targets_bt[..., None], -1)[..., 0]

    names = ("tokens", "targets", "segment_ids", "positions")
    parts = [nll(*(batch[name][i : i + batch_size] for name in names)) for i in range(0, len(rows), batch_size)]
    return step, batch, np.concatenate(parts)


def main() -> None:
    """Prints a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--rows", type=int, default=512)
    flags = parser.parse_args()
    for workdir in flags.runs:
        step, batch, loss_bt = losses(workdir, flags.rows)
        real_bt = batch["segment_ids"] > 0
        again_bt = seen_before(batch["tokens"], batch["targets"], batch["segment_ids"]) & real_bt
        spans = [real_bt & (batch["positions"] >= low) & (batch["positions"] < high) for low, high in SPANS]
        by_span = ", ".join(f"{loss_bt[span].mean():.3f}" for span in spans)
        print(
            f"{workdir.name}, step {step}: {loss_bt[real_bt].mean():.3f} nats/token; by position {by_span}; pairs seen "
            f"before ({again_bt.sum() / real_bt.sum():.0%}) {loss_bt[again_bt].mean():.3f}, others "
            f"{loss_bt[real_bt & ~again_bt].mean():.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
