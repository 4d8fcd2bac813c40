"""The rows of a step, a pure function of (seed, step), and batches of them on a mesh."""

from collections.abc import Iterator

import grain
import jax
import numpy as np
from jax.sharding import NamedSharding

from gpt4jax.data import RandomAccess
from gpt4jax.data.pairs import Pairs
from gpt4jax.data.stream import Documents, Streams

Row = dict[str, np.ndarray]


def shuffled(rows: RandomAccess[Row], seed: int) -> grain.MapDataset:
    """Endless epochs of the rows, each in its own order: element i depends on (seed, i) alone."""
    return grain.MapDataset.source(rows).shuffle(seed=seed).repeat()


def train_batches(
    rows: RandomAccess[Row] | Documents | Pairs,
    *,
    seed: int,
    batch_size: int,
    first_step: int,
    num_steps: int,
    sharding: NamedSharding,
    prefetch: int,
) -> Iterator[dict[str, jax.Array]]:
    """The batches of steps first_step to num_steps - 1, each (batch_size, T) over the mesh.

    Row i of step s is element s * batch_size + i of `shuffled`, or row i of documents' `Streams`, on whatever
    devices and processes; a process reads the rows that its own devices hold.
    """
    if isinstance(rows, Documents):
        row_of = Streams(rows, batch_size, seed).row
    elif isinstance(rows, Pairs):
        row_of = rows.row  # made for this seed and size of batches
    else:
        order = shuffled(rows, seed)

        def row_of(step: int, row: int) -> Row:
            return order[step * batch_size + row]

    yield from _batches(row_of, batch_size, first_step, num_steps, sharding, prefetch)


def eval_batches(
    rows: RandomAccess[Row] | Documents, *, batch_size: int, sharding: NamedSharding, prefetch: int, num_rows: int = 0
) -> Iterator[dict[str, jax.Array]]:
    """Every row exactly once, in order; the last batch is filled up with empty rows (segment 0).

    Of documents: their `Streams` in order, once through.

    `num_rows`: only so many (`evaluated`); 0: all. Of documents always all.
    """
    if isinstance(rows, Documents):
        streams = Streams(rows, batch_size, seed=None)
        yield from _batches(streams.row, batch_size, 0, streams.steps_per_epoch, sharding, prefetch)
        return
    chosen = evaluated(len(rows), num_rows)
    empty = {name: np.zeros_like(array) for name, array in rows[0].items()}

    def row_of(step: int, row: int) -> Row:
        index = step * batch_size + row
        return rows[chosen[index]] if index < len(chosen) else empty

    yield from _batches(row_of, batch_size, 0, -(-len(chosen) // batch_size), sharding, prefetch)


def evaluated(rows: int, num_rows: int = 0) -> list[int]:
    """Which of `rows` held-out rows an evaluation on `num_rows` reads, evenly spaced; 0: all.

    Not the first ones: rows lie by document, and whole rows of long documents before the rest.
    """
    count = min(rows, num_rows or rows)
    return [i * rows // count for i in range(count)]


def _batches(row_of, batch_size, first_step, num_steps, sharding, prefetch):
    local = local_rows(batch_size, sharding)

    def read(step: int) -> Row:
        """The process's own rows of a step, one (rows, T) array a field."""
        each = [row_of(step, row) for row in local]
        return {name: np.stack([row[name] for row in each]) for name in each[0]}

    place = {row: i for i, row in enumerate(local)}
    steps = grain.MapDataset.range(first_step, num_steps).map(read)
    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=prefetch)
    for batch in steps.to_iter_dataset(options):
        yield {name: _on_mesh(array, batch_size, sharding, place) for name, array in batch.items()}


def local_rows(batch_size: int, sharding: NamedSharding) -> list[int]:
    """Which rows of a batch this process's devices hold."""
    slices = sharding.addressable_devices_indices_map((batch_size,)).values()
    return sorted({row for index in slices if index for row in range(batch_size)[index[0]]})


def _on_mesh(local_bt: np.ndarray, batch_size: int, sharding: NamedSharding, place: dict[int, int]) -> jax.Array:
    def rows(index: tuple[slice, ...] | None) -> np.ndarray:
        if index is None:  # only of an array without data here, which none of ours is
            raise ValueError("asked for the rows of another process")
        chosen = range(batch_size)[index[0]]
        return local_bt[place[chosen[0]] : place[chosen[-1]] + 1]

    return jax.make_array_from_callback((batch_size, *local_bt.shape[1:]), sharding, rows)
