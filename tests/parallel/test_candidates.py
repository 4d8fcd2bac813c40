"""Which variants a sweep looks at: only those that divide and hold the state, and the memory of one by hand."""

import dataclasses
import math

import pytest

from gpt4jax.model.config import Config
from gpt4jax.parallel import candidates, topology

CONFIG = Config(
    vocab_size=1000, num_layers=6, embed_dim=1024, num_heads=8, num_kv_heads=4, head_dim=128, mlp_dim=4096,
    max_seq_len=2048, remat="full", loss_chunk_len=512, attention=("dense", "banded:256"), activation="gelu",
)  # fmt: skip


def test_every_candidate_divides_and_the_fastest_comes_first():
    where = topology.parse("v5p:4x4x4*2")
    found = candidates.candidates(CONFIG, 256, 2048, where, 128)
    speeds = [one.tokens_per_second for one in found]
    assert found and speeds == sorted(speeds, reverse=True)
    for one in found:
        mesh = dict(one.mesh)
        assert math.prod(mesh.values()) == 128 and mesh["data"] % 2 == 0
        assert one.batch_size % (mesh["data"] * mesh["fsdp"]) == 0 and one.batch_size in (128, 256, 512, 1024)
        assert 4 % mesh["tensor"] == 0 and 1024 % mesh["fsdp"] == 0
    assert {one.remat for one in found} == {"full", "dots"}
    assert {dict(one.mesh)["tensor"] for one in found} == {1, 2, 4}
    for one in candidates.candidates(CONFIG, 256, 2048, where, 128, micro_batches=4):
        assert one.batch_size // 4 % (dict(one.mesh)["data"] * dict(one.mesh)["fsdp"]) == 0


def test_the_bytes_of_a_device_by_hand():
    """Four arrays of float32 a parameter over 8; 3 of 6 layers' inputs, one cycle's work, 512 places' logits."""
    mesh = {"data": 2, "fsdp": 4, "tensor": 2}
    tokens = 32 // 8 * 2048
    inner = (4096 + (8 + 2 * 4) * 128) / 2
    by_hand = (
        4 * candidates.config_bytes(CONFIG) / 8
        + tokens * 2 * (3 * 1024 / 2 + 2 * (2 * 1024 + 6 * 1024 / 2 + 3 * inner))
        + 2 * 4 * 4 * 512 * 1000 / 2
    )
    assert candidates.device_bytes(CONFIG, mesh, 32, 2048) == pytest.approx(by_hand)
    more = candidates.device_bytes(dataclasses.replace(CONFIG, remat="dots"), mesh, 32, 2048)
    assert more > by_hand
    state = candidates.config_bytes(CONFIG) / 8  # a fifth array for four micro-batches, of a quarter of the rows each
    parts = candidates.device_bytes(CONFIG, mesh, 128, 2048, micro_batches=4)
    assert parts == pytest.approx(by_hand + state)


def test_sums_over_tensor_and_pieces_that_are_padded_cost_time():
    where = topology.parse("v5p:4x4x4")
    mesh = {"data": 8, "fsdp": 8, "tensor": 1}
    plain = candidates.seconds(CONFIG, mesh, 256, 2048, where)
    assert candidates.seconds(CONFIG, mesh | {"data": 4, "tensor": 2}, 256, 2048, where) > plain
    padded = candidates.seconds(CONFIG, mesh | {"data": 4, "fsdp": 16}, 256, 2048, where)  # 64 columns each
    assert padded > candidates.seconds(CONFIG, mesh, 256, 2048, where)
    remade = dataclasses.replace(CONFIG, remat="dots")
    assert candidates.seconds(remade, mesh, 2560, 2048, where) < candidates.seconds(CONFIG, mesh, 2560, 2048, where)
