"""FLOPs and MFU against numbers worked out by hand."""

import pytest

from gpt4jax import model
from gpt4jax.model import flops


def test_flops_of_a_tiny_decoder_by_hand():
    config = model.Config(10, 2, 4, 2, 1, 2, 5, 8, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False)
    # values multiplied by each token: tied output 40; a layer q 16, k 8, v 8, out 16, gate, up, down 20 each
    matmul = 40 + 2 * (16 + 8 + 8 + 16 + 60)
    # a layer of a row of 8: q k and weights v, 2 operations * 4 values * 8 keys each, halved
    attention = 2 * (2 * 2 * 4 * 8) / 2
    assert flops.flops_per_token(config, 8) == {
        "forward": 2 * matmul + attention,
        "train": 3 * (2 * matmul + attention),
    }


def test_flops_of_a_transformer_xl_by_hand():
    fields = dict(norm="rmsnorm", position="transformer_xl", activation="swiglu", use_bias=False)
    config = model.Config(10, 2, 4, 2, 1, 2, 5, 8, **fields, memory_len=16)
    matmul = 40 + 2 * (16 + 8 + 8 + 16 + 60)  # as above: the matrix of distances multiplies no token
    # a layer of a row of 8: q k, q r and weights v, 2 operations * 4 values, over 4 keys of the row and 16 before it
    attention = 2 * (3 * 2 * 4 * (4 + 16))
    memory = 2 * (2 * (8 + 8)) * 16 / 8  # keys and values of two tokens of memory for each token
    assert flops.flops_per_token(config, 8) == {
        "forward": 2 * matmul + attention + memory,
        "train": 3 * (2 * matmul + attention) + 2 * memory,
    }


def test_untied_output_costs_the_same_as_tied():
    tied = model.Config(10, 2, 4, 2, 1, 2, 5, 8)
    untied = model.Config(10, 2, 4, 2, 1, 2, 5, 8, tie_embeddings=False)
    assert flops.flops_per_token(tied, 8) == flops.flops_per_token(untied, 8)


def test_gpt3_matches_the_published_training_compute():
    config = model.Config(50257, 96, 12288, 96, 96, 128, 49152, 2048)
    # Brown et al. 2020, table D.1: 3.14e23 for 300B tokens by 6 N alone; ours adds attention (halved) and the output.
    total = 300e9 * flops.flops_per_token(config, 2048)["train"]
    assert 3.14e23 < total < 1.03 * 3.14e23


def test_sparse_layers_count_the_keys_that_they_show():
    assert flops.keys_per_query("dense", 2, 8) == 4
    assert flops.keys_per_query("banded:2", 2, 8) == (1 + 7 * 2) / 8
    # A block of 4, and the last of the block before: 1, 2, 3, 4, then 2, 3, 4, 5.
    assert flops.keys_per_query("block:4", 1, 8) == 20 / 8
    assert flops.keys_per_query("fixed:4:1", 1, 8) == 24 / 8
    assert [flops.keys_per_query(name, 1, 8, before=5) for name in ("banded:2", "dense")] == [2, 9]
    assert flops.keys_per_query("banded:2/dense", 2, 8) == (15 / 8 + 4) / 2
    half = model.Config(10, 2, 4, 2, 1, 2, 5, 8, attention=("dense", "banded:2"))
    whole = model.Config(10, 2, 4, 2, 1, 2, 5, 8)
    saved = flops.flops_per_token(whole, 8)["forward"] - flops.flops_per_token(half, 8)["forward"]
    assert saved == 2 * 2 * 2 * 2 * (4 - 15 / 8)


def test_mfu_and_peaks():
    assert flops.mfu(1000, 5e9, 4, 2.5e12) == pytest.approx(0.5)
    assert flops.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert flops.peak_flops("TPU v5 lite") == 197e12
    assert flops.peak_flops("TPU v5") == 459e12
    assert flops.peak_flops("cpu") is None
