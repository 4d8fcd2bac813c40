"""Parameters out of a run and into another through the command line, and samples from them."""

import json
import shutil

import jax
import numpy as np
import pytest

from gpt4jax import config as configuration
from gpt4jax import export, sample, weights
from gpt4jax import train as training
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.training import checkpoint
from tests.conftest import apply
from tests.runs import TINY, final_state, run, write_corpus


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    home = tmp_path_factory.mktemp("home")
    write_corpus(home / "corpus")
    return home


def flags(home, workdir, *overrides, steps=2):
    data = f"data.dataset=folder:{home / 'corpus'}"
    own = (data, f"num_steps={steps}", "optimizer.warmup_steps=0", "eval.num_rows=4", *overrides)
    return ["--config", str(TINY), "--workdir", str(workdir), *(f"--config.{key}" for key in own)]


def train(home, workdir, *overrides, steps=2):
    """On two devices that share the parameters; the programs are compiled once."""
    given = flags(home, workdir, *overrides, "mesh.data=1", "mesh.fsdp=2", steps=steps)
    return run("train", *given, cache=home / "cache", devices=2)


@pytest.fixture(scope="module")
def trained(home):
    done = train(home, home / "run")
    assert done.returncode == 0, done.stderr
    return home / "run"


@pytest.fixture(scope="module")
def exported(home, trained):
    assert export.main(["--workdir", str(trained), "--out", str(home / "export")]) == 0
    return home / "export"


def params_of(state):
    return [value for key, value in state.items() if key.startswith("params")]


def test_an_export_holds_the_parameters_and_the_tokenizer(home, trained, exported):
    loaded = weights.load(str(exported), cache_dir=home)
    for ours, saved in zip(jax.tree.leaves(loaded.params), params_of(final_state(trained, 2)), strict=True):
        assert np.array_equal(ours, saved)
    own = tokenizer.of_run("bpe:512", trained, home)
    text = "def main():\n    return '日本'  "
    assert loaded.tokenizer.encode(text) == own.encode(text) and loaded.tokenizer.start == own.start
    names = {path.name for path in exported.iterdir()}
    tokens = {"tokenizer.json", "tokenizer_config.json", "generation_config.json"}
    assert names == tokens | {"model.safetensors", "config.json"}
    assert json.loads((exported / "config.json").read_text())["eos_token_id"] == own.end


def test_a_run_under_mup_is_exported_as_plain_weights(home):
    """Away from the base shape, where every multiplier counts, and after a step."""
    mup = ["model.parametrization=mup", "model.base_embed_dim=16", "model.base_num_layers=1", "model.base_head_dim=4"]
    workdir, out = home / "mup", home / "mup-export"
    assert train(home, workdir, *mup, steps=1).returncode == 0
    assert export.main(["--workdir", str(workdir), "--out", str(out)]) == 0
    config = configuration.model_config(configuration.from_json(workdir / "config.json"))
    _, params = checkpoint.load_params(workdir, config, print)
    plain = weights.load(str(out), cache_dir=home)
    assert config.parametrization == "mup" and plain.config.parametrization == "standard"
    tokens = np.arange(20)[None] % 96
    theirs = apply(config, params, tokens)
    np.testing.assert_allclose(apply(plain.config, plain.params, tokens), theirs, atol=1e-5 * np.abs(theirs).max())


def test_what_the_job_says(home, trained, exported, capsys):
    with pytest.raises(UserError, match="exists and is not empty"):
        export.main(["--workdir", str(trained), "--out", str(exported)])
    half = home / "half"
    done = run("export", "--weights", exported, "--out", half, "--dtype", "bfloat16", cache=home / "nothing")
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    assert "20 tensors of 34,976 parameters, 69,952 bytes: LlamaForCausalLM" in done.stdout
    assert f"transformers.AutoModelForCausalLM.from_pretrained('{half}')" in done.stdout
    assert f"transformers.AutoTokenizer.from_pretrained('{half}')" in done.stdout
    assert weights.load(str(half), cache_dir=home, dtype="").config.param_dtype == "bfloat16"


def test_a_sample_is_the_same_from_the_run_and_from_its_export(trained, exported, capsys):
    texts = []
    for source in (("--workdir", str(trained)), ("--weights", str(exported))):
        assert sample.main([*source, "--prompt", "import ", "--seed", "3", "--max_tokens", "20"]) == 0
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1] and len(texts[0]) > 10
    with pytest.raises(SystemExit):
        sample.main(["--workdir", str(trained), "--weights", str(exported), "--prompt", "x"])
    assert "not allowed with" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["export", "run"])
def test_a_run_starts_from_weights_and_then_needs_them_no_more(source, home, trained, exported):
    own = home / f"source-{source}"
    shutil.copytree(exported if source == "export" else trained, own)
    options = [f"init_from={own}", "data.tokenizer=weights", "optimizer.learning_rate=0.0"]
    workdir = home / f"from-{source}"
    done = train(home, workdir, *options, steps=1)
    assert done.returncode == 0 and f"parameters from {own}" in done.stderr, done.stderr
    for ours, theirs in zip(params_of(final_state(workdir, 1)), params_of(final_state(trained, 2)), strict=True):
        assert np.array_equal(ours, theirs)
    shutil.rmtree(own)
    if source == "export":
        more = train(home, workdir, *options, steps=2)
        assert more.returncode == 0 and "resumed at step 1" in more.stderr, more.stderr
    assert sample.main(["--workdir", str(workdir), "--prompt", "import ", "--max_tokens", "5"]) == 0
    out = home / f"{source}-again"
    assert export.main(["--workdir", str(workdir), "--out", str(out)]) == 0
    first, second = (weights.load(str(folder), cache_dir=home) for folder in (exported, out))
    assert all(map(np.array_equal, jax.tree.leaves(first.params), jax.tree.leaves(second.params)))
    assert second.tokenizer.encode("a b") == first.tokenizer.encode("a b") and second.config == first.config


def test_what_does_not_fit_is_refused_before_anything_is_written(home, exported):
    workdir = home / "refused"
    bare = home / "bare"
    shutil.copytree(exported, bare)
    (bare / "tokenizer.json").unlink()
    for overrides, words in (
        ([f"init_from={exported}", "model.mlp_dim=96", "model.tie_embeddings=False"],
         "model.mlp_dim is 96 and theirs 64 .--config.model.mlp_dim=64.; model.tie_embeddings is False and"),
        ([f"init_from={exported}", "model.max_seq_len=128"], "128 tokens are longer than the 64 of"),
        ([f"init_from={home / 'none'}"], "there are no weights"),
        (["data.tokenizer=weights"], "data.tokenizer=weights needs --config.init_from"),
        ([f"init_from={bare}", "data.tokenizer=weights"], "has no tokenizer.json"),
    ):  # fmt: skip
        with pytest.raises(UserError, match=words):
            training.main(flags(home, workdir, "batch_size=16", *overrides))
        assert not workdir.exists() or not list(workdir.iterdir())
    with pytest.raises(UserError, match="without it there are no texts"):
        sample.main(["--weights", str(bare), "--prompt", "x"])


def test_what_transformers_lacks_is_said(home, trained, capsys):
    odd = home / "odd"
    shutil.copytree(trained, odd)
    config = json.loads((odd / "config.json").read_text())
    config["model"]["logit_soft_cap"] = 30.0
    (odd / "config.json").write_text(json.dumps(config))
    assert export.main(["--workdir", str(odd), "--out", str(home / "odd-out")]) == 0
    told = capsys.readouterr().out
    assert "no architecture of transformers expresses this decoder: model.logit_soft_cap 30.0" in told
    assert "gpt4jax alone loads it" in told and "from_pretrained" not in told
    loaded = weights.load(str(home / "odd-out"), cache_dir=home)
    expected = configuration.model_config(configuration.from_json(odd / "config.json"))
    assert loaded.config == expected
