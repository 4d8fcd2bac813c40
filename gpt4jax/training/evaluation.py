"""What a run measures on what is held out: the loss of text, answers about images, and the names of images."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np

from gpt4jax.data import loader
from gpt4jax.parallel import partition
from gpt4jax.training.step import Batch, bits_per_byte

Found = dict[str, float] | None  # None: asked to stop in the middle


def of_text(config, mesh, data, eval_step, right_step, no_memory) -> Callable[[Any, Any], Found]:
    """The loss of the held-out rows (`eval.num_rows`) and, where there are any, the answers to their questions.

    `no_memory` gives what the first batch has before it.
    """

    def run(params, stop) -> Found:
        totals, memory = [], no_memory()
        for batch in _batches(config, mesh, data.of("eval")):
            if stop.poll():
                return None
            sums, memory = eval_step(params, Batch.of(batch), memory)
            totals.append(sums)
            if len(totals) > 1:  # keeps the devices one batch ahead, and a stop close
                jax.block_until_ready(totals[-2])
        nll, targets, num_bytes, _ = (sum(map(float, sums)) for sums in zip(*totals, strict=True))
        found = {"eval/heldout/loss": nll / targets, "eval/heldout/bits_per_byte": bits_per_byte(nll, num_bytes)}
        for suffix, rows in data.asked.items():
            shares = answered(params, rows, _batches(config, mesh, rows), right_step, stop)
            if shares is None:
                return None
            found |= {f"eval/{task}/accuracy{suffix}": share for task, share in shares.items()}
        return found

    return run


def answered(params, rows, batches: Iterator[Mapping[str, jax.Array]], right_step, stop) -> Found:
    """The share of each task's answers that greedy decoding would give, of those in the batches.

    An answer that rests on a rationale is right only if greedy decoding gives that too, and counts only where the
    batches have it.
    """
    wrong, seen = np.zeros((2, len(rows.tasks) + 1), bool)
    for batch in batches:
        if stop.poll():
            return None
        right_bt, answers_bt = jax.device_get(right_step(params, Batch.of(batch), batch["answers"]))
        wrong[answers_bt[~right_bt]] = True
        seen[answers_bt] = True
    rests = rows.rests_on > 0
    wrong[1:] |= wrong[rows.rests_on] & rests
    seen[1:] &= seen[rows.rests_on] | ~rests
    tasks = np.array(["", *rows.tasks])
    return {task: 1 - float(np.mean(wrong[(tasks == task) & seen])) for task in sorted({*tasks[seen]} - {""})}


def _batches(config, mesh, rows) -> Iterator[dict[str, jax.Array]]:
    return loader.eval_batches(
        rows, batch_size=config.eval.batch_size or config.batch_size, sharding=partition.batch_sharding(mesh),
        prefetch=config.data.prefetch, num_rows=config.eval.num_rows,
    )  # fmt: skip


def words(found: Mapping[str, float]) -> str:
    """An evaluation in a few words for the person at the terminal."""
    told = []
    for name, value in found.items():
        if name == "eval/heldout/loss":
            told.append(f"held-out {value:.4f} nats/token")
        elif name == "eval/heldout/bits_per_byte":
            told.append(f"{value:.4f} bits/byte")
        elif name.endswith("/accuracy") or "/top_" in name or name.startswith("eval/align/"):
            blind = found.get(f"{name}_blind")
            told.append(f"{word(name)} {value:.3f}" + (f" (blind {blind:.3f})" if blind is not None else ""))
    return ", ".join(told)


def word(name: str) -> str:
    """A measure's name as a person reads it."""
    if name == "eval/heldout/loss":
        return "held-out loss"
    return name.removeprefix("eval/").removeprefix("align/").removesuffix("/accuracy").replace("_", " ")
