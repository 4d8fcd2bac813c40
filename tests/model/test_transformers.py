"""Logits of GPT-2 and Llama as `transformers` computes them, recorded by tests/bench/record_transformers.py."""

import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.model.parameters import tree
from tests.conftest import apply

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "transformers.npz")
CONFIGS = {
    "gpt2": model.Config(61, 2, 24, 3, 3, 8, 80, 24),
    "llama": model.Config(
        61, 2, 24, 4, 2, 6, 56, 24, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False,
        tie_embeddings=False,
    ),
}  # fmt: skip


def from_hugging_face(config, weights):
    """Parameters from tensors in Hugging Face's layout, by the table's names alone."""

    def read(row):
        if row.group != "layers":
            return jnp.asarray(weights[row.hf_name])
        layers = []
        for layer in range(config.num_layers):
            tensor = weights[row.hf_name.format(layer=layer)]
            if row.hf_transposed and tensor.ndim == 2:
                tensor = tensor.T
            if row.hf_part is not None:
                index, sizes = row.hf_part
                tensor = np.split(tensor, np.cumsum(sizes)[:-1], axis=-1)[index]
            layers.append(tensor.reshape(row.shape[1:]))
        return jnp.stack(layers)

    return tree(config, read)


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers(name):
    config = CONFIGS[name]
    weights = {key.partition("/")[2]: RECORDED[key] for key in RECORDED if key.startswith(name + "/")}
    params = from_hugging_face(config, weights)
    logits = apply(config, params, weights["tokens"])
    scale = np.abs(weights["logits"]).max()
    assert scale > 1
    np.testing.assert_allclose(logits, weights["logits"], atol=1e-5 * scale)
