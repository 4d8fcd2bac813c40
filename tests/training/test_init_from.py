"""Folders that a run can't start from are named in words."""

import dataclasses

import pytest

from gpt4jax import config as configuration
from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.training import init_from


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"checkpoints/1/x": ""}, "has checkpoints/ but no config.json"),
        ({"config.json": configuration.to_json(configuration.default())}, "is a run that holds no sound checkpoint"),
        ({"checkpoints/1/x": "", "config.json": '{"model": 5}'}, "is not a config of this version"),
        ({"checkpoints/1/x": "", "config.json": '{"model": {"num_heads": "a"}}'}, "describes no decoder"),
        ({"config.json": "{}"}, "config.json names no architecture"),
    ],
)  # fmt: skip
def test_no_run_and_no_weights(files, words, tmp_path):
    for name, text in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_text(text)
    config = configuration.default()
    config.init_from = str(tmp_path / "source")
    config.data.tokenizer = "bytes"
    shape = model.Config(9, 1, 8, 2, 2, 4, 8, 4)
    with pytest.raises(UserError, match=words):
        init_from.find(config, shape, tmp_path / "run", tmp_path, print)


def test_longer_rows_need_other_rotary_positions(tmp_path):
    """Training goes on with longer rows once it is said how; nothing else of the decoder may differ."""
    old = model.Config(9, 1, 8, 2, 2, 4, 8, 4, position="rope")
    longer = dataclasses.replace(old, max_seq_len=16)
    with pytest.raises(UserError, match=r"16 tokens are longer than the 4 .* --config\.model\.rope_factor=4 "):
        init_from.check("a run", longer, old)
    scaled = dataclasses.replace(longer, rope_scaling="yarn", rope_factor=4.0, rope_original_max_len=4)
    init_from.check("a run", scaled, old)
    init_from.check("a run", dataclasses.replace(longer, rope_theta=1e6), old)
    for no_slower in (dict(rope_beta_fast=31.0), dict(rope_theta=5000.0), dict(rope_scaling="linear", rope_factor=1.0)):
        with pytest.raises(UserError, match="turn no slower"):
            init_from.check("a run", dataclasses.replace(longer, **no_slower), old)
    with pytest.raises(UserError, match=r"model\.mlp_dim is 9"):
        init_from.check("a run", dataclasses.replace(scaled, mlp_dim=9), old)
    with pytest.raises(UserError, match=r"model\.rope_factor"):  # as long as before, and yet scaled
        init_from.check("a run", dataclasses.replace(scaled, max_seq_len=4), old)
