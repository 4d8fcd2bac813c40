"""The token cache and the rows of a step: nothing lost, the same on any number of devices, restarts and shards."""

import collections
import itertools

import jax
import numpy as np
import pytest

from gpt4jax.data import cache, loader, tokenizer
from gpt4jax.errors import UserError
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition

TOK = tokenizer.from_bytes()
RNG = np.random.default_rng(0)
DOCUMENTS = [("é" * int(n) + f" document {n}").encode() for n in RNG.integers(1, 90, 60)]


def build(folder, documents=DOCUMENTS, shard_bytes=500):
    return cache.build(documents, TOK, folder, shard_bytes)


def pairs(rows):
    """How often each (token, target) pair stands in the rows."""
    counts = collections.Counter()
    for i in range(len(rows)):
        row = rows[i]
        used = row["segment_ids"] > 0
        counts.update(zip(row["tokens"][used].tolist(), row["targets"][used].tolist(), strict=True))
        assert (row["bytes"][used] == (row["targets"][used] != TOK.end)).all() and not row["bytes"][~used].any()
    return counts


def expected_pairs(documents):
    counts = collections.Counter()
    for text in documents:
        ids = [TOK.end, *text, TOK.end]
        counts.update(itertools.pairwise(ids))
    return counts


def test_every_token_is_a_target_once(tmp_path):
    for shard_bytes in (500, 10**6):
        built = build(tmp_path / str(shard_bytes), shard_bytes=shard_bytes)
        assert built.totals["bytes"] == sum(map(len, DOCUMENTS)) and built.totals["documents"] == 60
        assert built.totals["pairs"] == sum(len(d) + 1 for d in DOCUMENTS)
        for seq_len in (16, 64):
            assert pairs(cache.PackedRows(built, TOK, seq_len)) == expected_pairs(DOCUMENTS)
    assert built.num_shards == 1


def test_documents_longer_than_a_shard_are_split_between_characters(tmp_path):
    long = [("ab日本" * 100).encode(), b"short"]
    built = build(tmp_path, long, shard_bytes=64)
    assert built.totals["parts"] > built.totals["documents"] == 2
    rows = cache.PackedRows(built, TOK, 32)
    found = sum((row["bytes"].sum() for row in (rows[i] for i in range(len(rows)))), 0)
    assert found == sum(map(len, long))
    starts = [piece.decode() for piece in (cache._part(long[0], a, a + 64) for a in range(0, len(long[0]), 64))]
    assert "".join(starts) == long[0].decode()


def test_shards_are_a_function_of_the_sizes():
    shards = cache.plan_shards([10, 0, 10, 25, 3], 20)
    assert shards == [[(0, 0, 10), (2, 0, 10)], [(3, 0, 20)], [(3, 20, 25), (4, 0, 3)]]


def test_an_interrupted_cache_is_completed(tmp_path):
    whole = build(tmp_path / "whole")
    build(tmp_path / "cut")
    (tmp_path / "cut" / "summary.json").unlink()
    (tmp_path / "cut" / "00001.tokens.npy").unlink()
    again = build(tmp_path / "cut")
    assert again.totals == whole.totals and again.num_shards == whole.num_shards > 2
    a, b = cache.PackedRows(whole, TOK, 32), cache.PackedRows(again, TOK, 32)
    assert all(np.array_equal(a[i][k], b[i][k]) for i in range(len(a)) for k in a[0])


def test_no_document(tmp_path):
    with pytest.raises(UserError, match="no usable document"):
        build(tmp_path, [])


def test_documents_that_are_empty_or_no_text_are_left_out_and_named(tmp_path):
    built = build(tmp_path, [b"", "caf\xe9".encode("latin-1"), *DOCUMENTS, b"\xff", b""])
    assert built.not_utf8 == [1, 62] and built.totals["empty"] == 2 and built.totals["documents"] == 60
    assert pairs(cache.PackedRows(built, TOK, 32)) == expected_pairs(DOCUMENTS)
    assert build(tmp_path).not_utf8 == [1, 62]  # as the summary on disk has it


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    return cache.PackedRows(build(tmp_path_factory.mktemp("rows")), TOK, 32)


def batches(rows, mesh=(8, 1, 1), first_step=0, num_steps=30, seed=3):
    sharding = partition.batch_sharding(meshes.make_mesh(dict(zip(meshes.MESH_AXES, mesh, strict=False))))
    it = loader.train_batches(
        rows, seed=seed, batch_size=8, first_step=first_step, num_steps=num_steps, sharding=sharding, prefetch=2
    )
    return [{name: np.asarray(array) for name, array in batch.items()} for batch in it]


def same(a, b):
    return len(a) == len(b) and all(np.array_equal(x[k], y[k]) for x, y in zip(a, b, strict=True) for k in x)


def test_rows_depend_on_seed_and_step_alone(rows):
    base = batches(rows)
    assert len(rows) < 30 * 8  # more than one epoch
    assert same(base[5:], batches(rows, first_step=5))
    for mesh in ((1, 8, 1), (2, 2, 2), (1, 1, 8)):
        assert same(base, batches(rows, mesh))
    assert not same(base, batches(rows, seed=4))


def test_an_epoch_holds_every_row_once_and_epochs_differ(rows):
    order = loader.shuffled(rows, 0)
    n = len(rows)
    key = lambda row: (row["tokens"].tobytes(), row["segment_ids"].tobytes())  # noqa: E731
    everything = sorted(key(rows[i]) for i in range(n))
    epochs = [[key(order[e * n + i]) for i in range(n)] for e in range(3)]
    assert all(sorted(epoch) == everything for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_evaluation_passes_once_over_everything(rows):
    sharding = partition.batch_sharding(meshes.make_mesh({"data": 8, "fsdp": 1, "tensor": 1}))
    found = collections.Counter()
    sizes = set()
    for batch in loader.eval_batches(rows, batch_size=16, sharding=sharding, prefetch=2):
        arrays = {name: np.asarray(array) for name, array in batch.items()}
        sizes.add(arrays["tokens"].shape)
        used = arrays["segment_ids"] > 0
        found.update(zip(arrays["tokens"][used].tolist(), arrays["targets"][used].tolist(), strict=True))
    assert sizes == {(16, 32)} and len(rows) % 16
    assert found == expected_pairs(DOCUMENTS)
    some = list(loader.eval_batches(rows, batch_size=16, sharding=sharding, prefetch=2, num_rows=17))
    tokens = np.concatenate([np.asarray(batch["tokens"]) for batch in some])
    used = np.concatenate([np.asarray(batch["segment_ids"]) for batch in some]).any(axis=1)
    assert used.tolist() == [True] * 17 + [False] * 15
    chosen = loader.evaluated(len(rows), 17)
    assert all(np.array_equal(tokens[i], rows[chosen[i]]["tokens"]) for i in range(17))


def test_some_held_out_rows_are_spread_over_all():
    assert loader.evaluated(10) == loader.evaluated(10, 10) == loader.evaluated(10, 99) == list(range(10))
    assert loader.evaluated(10, 4) == [0, 2, 5, 7]
    assert loader.evaluated(10, 1) == [0]


def test_a_process_reads_the_rows_of_its_own_devices():
    devices = jax.devices()
    for shape, count in (((8, 1, 1), 2), ((4, 1, 2), 4), ((1, 1, 8), 16)):
        mesh = meshes.make_mesh(dict(zip(meshes.MESH_AXES, shape, strict=False)), devices)
        sharding = partition.batch_sharding(mesh)
        held = sharding.devices_indices_map((16,))

        class OneProcess:
            """The sharding as a process with device 0 alone would see it."""

            def addressable_devices_indices_map(self, shape, held=held):
                return {devices[0]: held[devices[0]]}

        assert loader.local_rows(16, OneProcess()) == list(range(count))
        assert loader.local_rows(16, sharding) == list(range(16))
