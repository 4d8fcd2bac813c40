"""Silent corruption: a device that computes wrong, or forgets a bit, and says nothing.

Two things that must be the same to the last bit are compared by checksums, which every device makes of what it holds:

- copies: the shards of the state that several devices hold;
- the step, computed twice from the same state and batch. If it differs, it is suspicious, and computed again until two
  more agree or not, and each device is given the same products to work out: one that gives others is found so.

A device that goes on computing wrong is found so, and what has changed in memory that has a copy. A fault of one moment
is found only if it falls into a step that is computed twice: the step whose outcome is kept is another run of it, by
another program, whose bits need not be the same; its own copies are compared at the next check.

What is found ends the run; it goes on from the newest checkpoint, which was checked before it was written.
"""

import os
from collections import Counter, defaultdict
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from gpt4jax.errors import MishapError, UserError

_WIDTH, _PRODUCTS = 512, 32  # of the self-test
_REPLAYS = 4  # of a suspicious step, at most
_DETERMINISTIC = "--xla_gpu_deterministic_ops=true"


def checksums(tree: Any, shardings: Any, mesh: Mesh) -> jax.Array:
    """A checksum of each leaf's shard on each device, uint32 (leaves, devices in the order of the mesh).

    A sum of the bits by 32, each times an odd number of its own: any one of them that flips changes it, and so does a
    shard whose values have changed places.
    """
    everywhere = PartitionSpec(mesh.axis_names)
    rows = []
    for leaf, sharding in zip(jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True):
        one = jax.shard_map(_checksum, mesh=mesh, in_specs=sharding.spec, out_specs=everywhere, check_vma=False)
        rows.append(one(leaf))
    return jnp.stack(rows)


def _checksum(shard: jax.Array) -> jax.Array:
    if shard.dtype == bool:
        shard = shard.astype(jnp.uint8)
    if shard.dtype.itemsize < 4:
        narrow = jnp.uint16 if shard.dtype.itemsize == 2 else jnp.uint8
        words = jax.lax.bitcast_convert_type(shard, narrow).astype(jnp.uint32).ravel()
    else:
        words = jax.lax.bitcast_convert_type(shard, jnp.uint32).ravel()  # of 8 bytes: two words
    odd = jax.lax.iota(jnp.uint32, words.size) * jnp.uint32(2) + jnp.uint32(1)
    return jnp.sum(words * odd, dtype=jnp.uint32)[None]


def differing_copies(sums: np.ndarray, tree: Any, shardings: Any, mesh: Mesh) -> list[str]:
    """In words, which devices hold another copy of a shard than most of those that hold it (of two: both)."""
    found = []
    devices = list(mesh.devices.flat)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    for row, (path, leaf), sharding in zip(sums, leaves, jax.tree.leaves(shardings), strict=True):
        holders: dict[str, list[int]] = defaultdict(list)
        for place, index in enumerate(map(sharding.devices_indices_map(leaf.shape).__getitem__, devices)):
            holders[str(index)].append(place)
        for places in holders.values():
            counts = Counter(int(row[place]) for place in places)
            if len(counts) > 1:
                usual, times = counts.most_common(1)[0]
                clear = times > len(places) / 2
                odd = [devices[place] for place in places if not clear or row[place] != usual]
                name = jax.tree_util.keystr(path, simple=True, separator="/")
                found.append(f"{_named(odd)} {'holds' if len(odd) == 1 else 'hold'} another copy of {name}")
    return found


def self_test(mesh: Mesh) -> np.ndarray:
    """A checksum of the same products on every device: all must be the same."""

    def products():
        x = jnp.sin(jax.lax.iota(jnp.float32, _WIDTH * _WIDTH)).reshape(_WIDTH, _WIDTH)
        y = jax.lax.fori_loop(0, _PRODUCTS, lambda _, y: jnp.tanh(x @ y), x)
        return _checksum(y)

    run = jax.shard_map(products, mesh=mesh, in_specs=(), out_specs=PartitionSpec(mesh.axis_names), check_vma=False)
    return np.asarray(jax.jit(run, out_shardings=NamedSharding(mesh, PartitionSpec()))())


class Check:
    """Compares the copies of a state, and a step with itself; all processes must ask for the same checks.

    `step(state, batch)` gives the next state first; `shardings` are those of the state and of a batch.

    Raises:
        UserError: a GPU that may compute the same step in two ways: it would be taken for a broken one.
    """

    def __init__(self, step: Callable[..., Any], shardings: tuple[Any, Any], mesh: Mesh):
        if jax.default_backend() == "gpu" and _DETERMINISTIC not in os.environ.get("XLA_FLAGS", ""):
            raise UserError(
                f"on GPUs mesh.verify_every_steps needs the environment variable XLA_FLAGS={_DETERMINISTIC}"
            )
        self._mesh, self._shardings = mesh, shardings[0]
        alike = NamedSharding(mesh, PartitionSpec())
        self._copies = jax.jit(
            lambda state: checksums(state, shardings[0], mesh), in_shardings=(shardings[0],), out_shardings=alike
        )
        self._next = jax.jit(  # of the next state only its checksums leave the program: it is never held as a whole
            lambda state, batch: checksums(step(state, batch)[0], shardings[0], mesh),
            in_shardings=shardings, out_shardings=alike,
        )  # fmt: skip

    def copies(self, state: Any) -> None:
        """Compares the copies of all that devices hold of a state.

        Raises:
            MishapError: which devices hold another.
        """
        found = differing_copies(np.asarray(self._copies(state)), state, self._shardings, self._mesh)
        if found:
            raise MishapError(f"silent corruption before step {int(state.step) + 1}: {_some(found)}; {_ADVICE}")

    def step(self, state: Any, batch: Any) -> None:
        """Computes the next step twice.

        Raises:
            MishapError: it comes out different; how often it did, and which devices fail the self-test.
        """
        outcomes = [np.asarray(self._next(state, batch)) for _ in range(2)]
        if np.array_equal(outcomes[0], outcomes[1]):
            return
        while len(outcomes) < 2 + _REPLAYS and Counter(map(bytes, outcomes)).most_common(1)[0][1] < 3:
            outcomes.append(np.asarray(self._next(state, batch)))
        often = Counter(map(bytes, outcomes)).most_common(1)[0][1]
        differ = (outcomes[0] != outcomes[1]).any(axis=0)
        devices = list(self._mesh.devices.flat)
        where = [device for device, here in zip(devices, differ, strict=True) if here]
        tested = self_test(self._mesh)
        usual = Counter(map(int, tested)).most_common(1)[0][0]
        failed = [device for device, one in zip(devices, tested, strict=True) if one != usual]
        raise MishapError(
            f"silent corruption: step {int(state.step) + 1}, computed {len(outcomes)} times, came out the same "
            f"{often} times; the first two differ in what {_named(where)} hold; "
            + (f"{_named(failed)} fail the self-test" if failed else "no device fails the self-test")
            + f"; {_ADVICE}"
        )


_ADVICE = "the same command goes on from the newest checkpoint: better without that machine"


def _named(devices: list[Any]) -> str:
    names = [f"device {device.id} of process {device.process_index}" for device in devices]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _some(found: list[str]) -> str:
    return "; ".join(found[:5]) + (f"; and {len(found) - 5} more" if len(found) > 5 else "")
