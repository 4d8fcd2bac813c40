"""Configs: complete, locked, and errors that name the nearest key."""

import json
import pathlib
import re

import pytest

from gpt4jax import config as configuration
from gpt4jax import model
from gpt4jax.align import config as align_config
from gpt4jax.errors import UserError
from gpt4jax.model.vision_config import VisionConfig
from gpt4jax.scaling import ladder, sweep

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*.py"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_is_complete_and_describes_a_decoder(path):
    starts = (configuration.default, ladder.default, sweep.default, align_config.default)
    config = configuration.load(str(path), start=starts[3] if path.stem.startswith("align_") else None)
    assert set(configuration._keys(config)) in [set(configuration._keys(start())) for start in starts]
    assert config.is_locked
    assert configuration.model_config(config).num_layers == config.model.num_layers
    assert f"--config configs/{path.name}" in path.read_text()


@pytest.mark.parametrize(("file", "least"), [("config.py", 50), ("scaling/ladder.py", 15), ("scaling/sweep.py", 6)])
def test_every_key_is_commented(file, least):
    source = (ROOT / "gpt4jax" / file).read_text()
    lines = re.findall(r"^    ([a-z])\.(\w+) = (.*)$", source.partition("return c.lock()")[0], re.M)
    bare = [name for _, name, rest in lines if "#" not in rest and "ConfigDict" not in rest]
    assert len(lines) > least and not bare


def test_every_key_of_alignment_is_commented_and_each_stage_has_them():
    source = (ROOT / "gpt4jax" / "align" / "config.py").read_text()
    lines = re.findall(r"^ +s\.(\w+) = (.*)$", source, re.M)
    assert len(lines) > 30 and not [name for name, rest in lines if "#" not in rest and "ConfigDict" not in rest]
    for name in align_config.STAGES:
        stage = align_config.stage(align_config.default(), name)
        assert stage.align.stage == name and stage.optimizer.learning_rate == 1e-4 and stage.num_steps == 500
        assert set(configuration._keys(stage)) > set(configuration._keys(configuration.default()))


def test_model_group_and_dataclass_agree():
    import dataclasses

    fields = {field.name for field in dataclasses.fields(model.Config)}
    assert fields - {"vision"} == set(configuration.default().model.keys())
    of_images = {field.name for field in dataclasses.fields(VisionConfig)}
    assert of_images == set(configuration.default().vision.keys())
    assert configuration.model_config(configuration.default()).vision is None


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("num_steps=7", "num_steps", 7),
        ("model.use_bias=false", "model.use_bias", False),
        ("model.attention=('dense','banded:8')", "model.attention", ("dense", "banded:8")),
        ("model.attention=dense", "model.attention", ("dense",)),
        ("optimizer.learning_rate=1", "optimizer.learning_rate", 1.0),
        ("data.tokenizer=bpe:300", "data.tokenizer", "bpe:300"),
        ("eval.sample_prompt=", "eval.sample_prompt", ""),
    ],
)
def test_overrides(override, key, value):
    config = configuration.load(str(ROOT / "configs" / "quickstart.py"), [override])
    found = configuration.flat(config)[key]
    assert (list(found) if isinstance(found, tuple | list) else found) == (
        list(value) if isinstance(value, tuple) else value
    )


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("model.num_layer=2", "no key 'model.num_layer'; did you mean --config.model.num_layers?"),
        ("learning_rate=2", "did you mean --config.optimizer.learning_rate?"),
        ("zzz=1", "the config has no key 'zzz'$"),
        ("num_steps=1.5", "must be of type int, such as 1600"),
        ("num_steps=True", "must be of type int"),
        ("model.use_bias=1", "must be of type bool"),
        ("optimizer.learning_rate=fast", "must be of type float"),
        ("num_steps", "needs a value"),
        ("model=3", "no key 'model'"),
    ],
)
def test_bad_overrides(override, words):
    with pytest.raises(UserError, match=words):
        configuration.load(str(ROOT / "configs" / "quickstart.py"), [override])


def test_bad_files(tmp_path):
    with pytest.raises(UserError, match=r"no config file .*; did you mean .*quickstart.py"):
        configuration.load(str(ROOT / "configs" / "quickstrat.py"))
    for body, words in (
        ("c.modle.num_layers = 2", "modle"),
        ("c.model.num_layer = 2", 'Did you mean "num_layers"'),
        ("c.num_steps = 'many'", "num_steps|str|int"),
    ):
        path = tmp_path / "bad.py"
        path.write_text(
            f"from gpt4jax.config import default\ndef get_config():\n    c = default()\n    {body}\n    return c\n"
        )
        with pytest.raises(UserError, match=words):
            configuration.load(str(path))


def test_json_round_trip_and_differences(tmp_path):
    config = configuration.load(str(ROOT / "configs" / "quickstart.py"), ["model.attention=('dense','banded:8')"])
    path = tmp_path / "config.json"
    path.write_text(configuration.to_json(config))
    again = configuration.from_json(path)
    assert configuration.differences(config, again, ()) == []
    assert configuration.model_config(again) == configuration.model_config(config)
    with again.unlocked():
        again.num_steps, again.model.mlp_dim = 5, 7
    assert configuration.differences(config, again, ("num_steps",)) == [f"model.mlp_dim: {config.model.mlp_dim} -> 7"]
    path.write_text(json.dumps({"model": {"strange": 1}}))
    with pytest.raises(UserError, match="is not a config of this version"):
        configuration.from_json(path)
