"""Hugging Face folders in and out: logits as transformers computes them, tensors bit for bit, on a mesh too."""

import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models

from gpt4jax import model, weights
from gpt4jax.data import tokenizer as tokenizers
from gpt4jax.errors import UserError
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from tests.conftest import SHAPES, apply, perturbed
from tests.weights import recorded


def load(folder, **options):
    return weights.load(str(folder), cache_dir=folder, **options)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", recorded.NAMES)
def test_logits_equal_those_of_transformers_and_the_export_its_tensors(name, tmp_path):
    folder = recorded.write(tmp_path / "in", name)
    heard = []
    loaded = load(folder, say=heard.append)
    expected = recorded.RECORDED[f"{name}/logits"]
    logits = apply(loaded.config, loaded.params, recorded.RECORDED[f"{name}/tokens"])
    scale = np.abs(expected).max()
    assert scale > 1 and loaded.tokenizer is None and loaded.chat_template is None and heard
    np.testing.assert_allclose(logits, expected, atol=1e-5 * scale)

    saved = weights.save(tmp_path / "out", loaded.config, loaded.params, None)
    written = load_file(tmp_path / "out" / "model.safetensors")
    theirs = recorded.tensors(name)
    assert written.keys() == theirs.keys() and all(np.array_equal(written[key], theirs[key]) for key in theirs)
    assert (saved.tensors, saved.parameters) == (len(theirs), sum(t.size for t in theirs.values()))
    assert len({path.stat().st_mode for path in (tmp_path / "out").iterdir()}) == 1
    assert saved.reason is None and saved.bytes == 4 * saved.parameters
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    original = recorded.config(name)
    stated = {key: original[key] for key in config.keys() & original.keys() if "_pdrop" not in key}
    stated = {key: value for key, value in stated.items() if not key.startswith(("bos", "eos", "max_window"))}
    rope = stated.pop("rope_parameters", {})
    assert config.get("rope_parameters", {}).items() >= rope.items()
    assert {key: config[key] for key in stated} == stated  # what both say, they say alike
    again = load(tmp_path / "out")
    assert again.config == loaded.config and same(again.params, loaded.params)


def test_what_hub_checkpoints_look_like(tmp_path):
    plain = load(recorded.write(tmp_path / "plain", "gpt2")).params
    # The hub's GPT-2: no prefix, the causal masks as buffers; others hold the tied matrix twice.
    arrays = {key.removeprefix("transformer."): value for key, value in recorded.tensors("gpt2").items()}
    arrays["h.0.attn.bias"] = np.ones((1, 1, 24, 24), np.float32)
    arrays["lm_head.weight"] = arrays["wte.weight"].copy()
    assert same(load(recorded.write(tmp_path / "hub", "gpt2", arrays)).params, plain)
    arrays = recorded.tensors("llama") | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(3, np.float32)}
    old = dict(rope_parameters=..., rope_theta=1e4, rope_scaling=None, architectures=..., torch_dtype="float32")
    assert load(recorded.write(tmp_path / "old", "llama", arrays, **old)).config.rope_theta == 1e4


def test_types(tmp_path):
    arrays = recorded.tensors("llama")
    for stored, kind in ((ml_dtypes.bfloat16, "bfloat16"), (np.float16, "float32")):
        folder = recorded.write(tmp_path / kind, "llama", {key: a.astype(stored) for key, a in arrays.items()})
        for asked, got in (("float32", "float32"), ("bfloat16", "bfloat16"), ("", kind)):
            loaded = load(folder, dtype=asked)
            assert loaded.config.param_dtype == loaded.config.dtype == got
            embedding = loaded.params["embed"]["token_vd"]
            assert embedding.dtype == got
            expected = arrays["model.embed_tokens.weight"].astype(stored).astype(got)
            assert np.array_equal(embedding, expected)
        weights.save(tmp_path / f"{kind}-out", loaded.config, loaded.params, None)
        if kind == "bfloat16":
            written = load_file(tmp_path / "bfloat16-out" / "model.safetensors")
            assert {array.dtype.name for array in written.values()} == {"bfloat16"}
            assert json.loads((tmp_path / "bfloat16-out" / "config.json").read_text())["dtype"] == "bfloat16"


def test_many_files(tmp_path):
    config = model.Config(**SHAPES["llama"])
    params = perturbed(config)
    weights.save(tmp_path / "one", config, params, None)
    weights.save(tmp_path / "many", config, params, None, shard_bytes=20_000)
    files = sorted(path.name for path in (tmp_path / "many").iterdir())
    assert files[0] == "config.json" and files[1].startswith("model-00001-of-0000") and len(files) > 5
    index = json.loads((tmp_path / "many" / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == sum(4 * leaf.size for leaf in jax.tree.leaves(params))
    assert same(load(tmp_path / "many").params, params) and same(load(tmp_path / "one").params, params)
    (tmp_path / "many" / files[2]).unlink()
    with pytest.raises(UserError, match=f"lacks {files[2]}, which its model.safetensors.index.json names"):
        load(tmp_path / "many")


@pytest.mark.parametrize(("name", "dtype"), [("llama", "float32"), ("qwen3", "bfloat16"), ("gpt", "float32")])
def test_on_a_mesh_the_same_bits_read_once(name, dtype, tmp_path, monkeypatch):
    if name == "gpt":
        config = model.Config(**SHAPES["gpt"])
        weights.save(tmp_path / "in", config, perturbed(config), None)
        folder = tmp_path / "in"
    else:
        arrays = recorded.tensors(name)
        for key in ("model.embed_tokens.weight", "lm_head.weight"):  # 61 does not divide over tensor 2
            if key in arrays:
                arrays[key] = arrays[key][:60]
        folder = recorded.write(tmp_path / "in", name, arrays, vocab_size=60)
    mesh = meshes.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    one = load(folder, dtype=dtype)
    shards = []
    original = weights.layout._shard
    monkeypatch.setattr(weights.layout, "_shard", lambda *args: shards.append(args[2]) or original(*args))
    placed = load(folder, dtype=dtype, mesh=mesh)
    assert same(placed.params, one.params)
    shardings = partition.param_shardings(placed.config, mesh)
    assert jax.tree.all(jax.tree.map(lambda leaf, s: leaf.sharding == s, placed.params, shardings))
    leaves = jax.tree.leaves(placed.params)
    distinct = [math.prod(leaf.shape) // math.prod(leaf.sharding.shard_shape(leaf.shape)) for leaf in leaves]
    assert len(shards) == sum(distinct) and max(distinct) == 4  # of 8 devices: copies are not read again
    weights.save(tmp_path / "out", placed.config, placed.params, None)
    assert same(load(tmp_path / "out", dtype="").params, one.params)


def test_parameters_may_be_donated_without_touching_the_file(tmp_path):
    loaded = load(recorded.write(tmp_path / "in", "llama"))
    before = (tmp_path / "in" / "model.safetensors").read_bytes()
    jax.jit(lambda params: jax.tree.map(lambda leaf: leaf * 0, params), donate_argnums=0)(loaded.params)
    assert (tmp_path / "in" / "model.safetensors").read_bytes() == before


def test_a_decoder_that_transformers_lacks(tmp_path):
    config = model.Config(**SHAPES["gpt"] | dict(position="rope", logit_soft_cap=30.0, attention=("dense", "banded:4")))
    params = perturbed(config)
    saved = weights.save(tmp_path / "out", config, params, None)
    assert saved.architecture == "GPT4JaxDecoder" and "model.norm 'layernorm'" in saved.reason
    stated = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (stated["model_type"], stated["architectures"]) == ("gpt4jax", ["GPT4JaxDecoder"])
    again = load(tmp_path / "out")
    assert again.config == config and same(again.params, params)


def test_a_folder_is_whole_or_not_there(tmp_path, monkeypatch):
    config = model.Config(**SHAPES["gpt"])
    params = perturbed(config)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    for target in ("full", "full/x"):
        with pytest.raises(UserError, match="exists and is not empty"):
            weights.save(tmp_path / target, config, params, None)
    (tmp_path / "empty").mkdir()
    weights.save(tmp_path / "empty", config, params, None)
    with pytest.raises(UserError, match="tokenizer does not fit the vocabulary: it has 257 ids.*vocab_size is 96"):
        weights.save(tmp_path / "new", config, params, tokenizers.from_bytes())

    def full_disk(*args, **options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gpt4jax.weights.writing.save_file", full_disk)
    with pytest.raises(OSError, match="No space"):
        weights.save(tmp_path / "new", config, params, None)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]


def damaged(folder, harm):
    path = recorded.write(folder, "llama") / "model.safetensors"
    path.write_bytes(harm(path.read_bytes()))
    return folder


@pytest.mark.parametrize(
    "harm",
    [lambda data: data[:-100], lambda data: data[:5], lambda data: b"", lambda data: data + b"x",
     lambda data: b"\xff" * 8 + data[8:], lambda data: data[:8] + b"!" + data[9:]],
)  # fmt: skip
def test_a_damaged_file(harm, tmp_path):
    with pytest.raises(UserError, match="is no whole safetensors file .*fetch it again"):
        load(damaged(tmp_path, harm))


def change(name, array):
    return recorded.tensors("llama") | {name: array}


@pytest.mark.parametrize(
    ("arrays", "changes", "words"),
    [
        (change("model.extra.weight", np.ones(3, np.float32)), {}, "holds model.extra.weight, which its config knows"),
        (change("model.norm.weight", np.ones(23, np.float32)), {}, "model.norm.weight is 23, and by its.*should be 24"),
        (change("model.norm.weight", np.ones(24, np.int8)), {}, "model.norm.weight is of type I8; only F32, F16, BF16"),
        (None, dict(num_hidden_layers=3), "lacks model.layers.2.* and 6 more of the 30 tensors"),
        (None, dict(num_hidden_layers=2**30), "holds 21 tensors, too few for the 1073741824 layers it states"),
        (None, dict(num_hidden_layers=1), "holds model.layers.1.*which its config knows nothing of"),
        (None, dict(vocab_size=62), "embed_tokens.weight is 61 x 24, and by its config should be 62 x 24"),
        (None, dict(tie_word_embeddings=True), "lm_head.weight differs from the token embedding"),
        ({}, {}, "holds 0 tensors, too few for the 2 layers it states"),
    ],
)  # fmt: skip
def test_tensors_that_do_not_fit(arrays, changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        load(recorded.write(tmp_path, "llama", arrays, **changes))


def test_a_pickle_is_never_opened(tmp_path):
    folder = recorded.write(tmp_path, "llama")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"as a pickle only \(pytorch_model.bin\).*never opened"):
        load(folder)
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="holds no .*safetensors file"):
        load(folder)
    save_file({"a": np.ones(1, np.float32)}, folder / "a.safetensors")
    save_file({"b": np.ones(1, np.float32)}, folder / "b.safetensors")
    with pytest.raises(UserError, match="2 safetensors files, but no model.safetensors.index.json"):
        load(folder)


def test_a_mesh_that_does_not_divide(tmp_path):
    folder = recorded.write(tmp_path, "llama")
    with pytest.raises(UserError, match="does not divide over the mesh"):
        load(folder, mesh=meshes.make_mesh({"data": 1, "fsdp": 4, "tensor": 2}))


def test_a_tokenizer_of_few_tokens_is_said(tmp_path):
    fast = Tokenizer(models.BPE({"a": 0, "b": 1, "<eos>": 40}, []))
    fast.decoder = decoders.ByteLevel()
    fast.save(str(recorded.write(tmp_path, "llama", eos_token_id=40) / "tokenizer.json"))
    heard: list[str] = []
    load(tmp_path, say=heard.append)
    assert "its tokenizer has 3 tokens for a model of 61 ids" in heard[0]


def test_a_damaged_index_or_config(tmp_path):
    folder = recorded.write(tmp_path, "llama")
    for index in ([1], {"weight_map": {"a": 1}}, {"weight_map": 1}):
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
        with pytest.raises(UserError, match="is no index of safetensors files"):
            load(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "../model.safetensors"}}))
    with pytest.raises(UserError, match="lacks x, which model.safetensors.index.json says"):
        load(folder)
    (folder / "model.safetensors.index.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="is no index of safetensors files"):
        load(folder)
    for text in ("{", "[" * 200_000):
        (folder / "config.json").write_text(text)
        with pytest.raises(UserError, match="config.json can't be read"):
            load(folder)
