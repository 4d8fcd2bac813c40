"""Streams of documents: every pair once an epoch, rows that go on, and the same rows whoever reads them."""

import collections

import jax
import numpy as np
import pytest

from gpt4jax.data import cache, loader, stream
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from tests.data.test_rows import DOCUMENTS, TOK, build, expected_pairs, same

T, ROWS = 32, 8


@pytest.fixture(scope="module")
def documents(tmp_path_factory):
    return cache.documents(build(tmp_path_factory.mktemp("documents")), TOK, T)


def epochs(documents, number, seed=0, rows=ROWS):
    """All rows of some epochs, [epoch][step][row]."""
    streams = stream.Streams(documents, rows, seed)
    steps = streams.steps_per_epoch
    return [[[streams.row(e * steps + s, r) for r in range(rows)] for s in range(steps)] for e in range(number)]


def test_every_pair_is_in_an_epoch_once_and_rows_go_on(documents):
    for rows in (1, 3, ROWS):
        orders = []
        for epoch in epochs(documents, 3, rows=rows):
            counts, order = collections.Counter(), []
            for r in range(rows):
                pieces = [step[r] for step in epoch]
                used = np.concatenate([piece["segment_ids"] for piece in pieces]) > 0
                joined = {name: np.concatenate([piece[name] for piece in pieces])[used] for name in pieces[0]}
                assert (np.diff(used.astype(int)) <= 0).all()  # padding is at the end alone
                # Inside a stream each token is the target of the one before, over the ends of rows too.
                assert (joined["tokens"][1:] == joined["targets"][:-1]).all()
                counts.update(zip(joined["tokens"].tolist(), joined["targets"].tolist(), strict=True))
                assert (joined["bytes"] == (joined["targets"] != TOK.end)).all()
                # A segment ends where an end of text is the target, and nowhere else but at the end of the stream.
                changes = np.diff(joined["segment_ids"]) != 0
                assert (changes == (joined["targets"][:-1] == TOK.end)).all()
                order += [int(s) for s in dict.fromkeys(joined["segment_ids"].tolist())]
            assert counts == expected_pairs(DOCUMENTS)
            orders.append(list(dict.fromkeys(order)))  # a document may be cut by the end of a part
        assert [len(set(order)) for order in orders] == [len(DOCUMENTS)] * 3
        numbers = [[(s - 1) % len(DOCUMENTS) for s in order] for order in orders]
        assert numbers[0] != numbers[1] != numbers[2] and sorted(numbers[0]) == sorted(numbers[1])
        assert not set(orders[0]) & set(orders[1])  # a document is not its own past


def test_positions_count_from_the_first_pair_in_the_row(documents):
    for step in epochs(documents, 1)[0]:
        for row in step:
            for segment in set(row["segment_ids"].tolist()) - {0}:
                inside = row["positions"][row["segment_ids"] == segment]
                assert (inside == np.arange(len(inside))).all()


def test_documents_are_what_their_numbers_say(documents):
    """In order, from several shards: document 7 is the eighth text, behind an end of text."""
    rows = [step[0] for step in epochs(documents, 1, seed=None, rows=1)[0]]
    segments = np.concatenate([row["segment_ids"] for row in rows])
    tokens = np.concatenate([row["tokens"] for row in rows])
    assert tokens[segments == 8].tolist() == [TOK.end, *DOCUMENTS[7]]
    assert (np.diff(segments[segments > 0]) >= 0).all()


def test_rows_are_a_function_of_seed_and_step(documents):
    streams = stream.Streams(documents, ROWS, 0)
    assert streams.steps_per_epoch > 4

    def batches(mesh=(8, 1, 1), first_step=0, seed=0):
        sharding = partition.batch_sharding(meshes.make_mesh(dict(zip(meshes.MESH_AXES, mesh, strict=False))))
        steps = 2 * streams.steps_per_epoch + 3
        it = loader.train_batches(
            documents, seed=seed, batch_size=ROWS, first_step=first_step, num_steps=steps, sharding=sharding, prefetch=2
        )
        return [{name: np.asarray(array) for name, array in batch.items()} for batch in it]

    base = batches()
    assert same(base[5:], batches(first_step=5)) and same(base, batches((2, 2, 2)))
    assert not same(base, batches(seed=1))
    assert all(np.array_equal(base[7][name][3], array) for name, array in streams.row(7, 3).items())


def test_evaluation_reads_everything_once_in_order(documents):
    sharding = partition.batch_sharding(meshes.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    batches = list(loader.eval_batches(documents, batch_size=3, sharding=sharding, prefetch=2))
    expected = epochs(documents, 1, seed=None, rows=3)[0]
    assert len(batches) == len(expected)
    for batch, rows in zip(batches, expected, strict=True):
        assert all(np.array_equal(batch[name][r], rows[r][name]) for name in batch for r in range(3))


def test_more_rows_than_pairs(tmp_path):
    few = cache.documents(build(tmp_path, [b"ab", b"c"]), TOK, 4)
    rows = epochs(few, 1)[0][0]
    assert sum(int((row["segment_ids"] > 0).sum()) for row in rows) == 5
