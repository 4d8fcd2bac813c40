"""GGUF files in: a Llama and a GPT-2 written here as llama.cpp's converter does, quantized ones, damaged ones."""

import gguf
import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from gpt4jax import weights
from gpt4jax.errors import UserError
from gpt4jax.weights import source
from tests.conftest import apply
from tests.weights import recorded

LLAMA_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip
GPT2_NAMES = {
    "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
    "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output",
    "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
}  # fmt: skip
BYTES = [chr(c) for c in range(33, 33 + 57)] + ["AB"]  # a vocabulary of single characters, and one merge


def gguf_name(name: str, names: dict[str, str]) -> str:
    body, _, kind = name.rpartition(".")
    for prefix in ("model.layers.", "transformer.h."):
        if body.startswith(prefix):
            layer, _, rest = body.removeprefix(prefix).partition(".")
            return f"blk.{layer}.{names[rest]}.{kind}"
    return f"{names[body]}.{kind}"


def permuted(array: np.ndarray, heads: int) -> np.ndarray:
    """As llama.cpp's converter permutes the rows of queries and keys."""
    return array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def write(path, name, *, kind=None, arrays=None, fields=None, tokenizer=None, architecture=None):
    """A recorded model as a GGUF file; `fields` of the metadata are added, those that are None left out."""
    hf = recorded.config(name)
    gpt2 = hf["model_type"] == "gpt2"
    architecture = architecture or ("gpt2" if gpt2 else "llama")
    writer = gguf.GGUFWriter(path, architecture)
    stated = {
        "block_count": hf["n_layer" if gpt2 else "num_hidden_layers"],
        "context_length": hf["n_positions" if gpt2 else "max_position_embeddings"],
        "embedding_length": hf["n_embd" if gpt2 else "hidden_size"],
        "feed_forward_length": hf["n_inner" if gpt2 else "intermediate_size"],
        "attention.head_count": hf["n_head" if gpt2 else "num_attention_heads"],
    }
    if gpt2:
        stated["attention.layer_norm_epsilon"] = hf["layer_norm_epsilon"]
    else:
        stated |= {
            "attention.head_count_kv": hf["num_key_value_heads"], "attention.key_length": hf["head_dim"],
            "attention.value_length": hf["head_dim"], "rope.dimension_count": hf["head_dim"],
            "rope.freq_base": 1e4, "attention.layer_norm_rms_epsilon": hf["rms_norm_eps"],
        }  # fmt: skip
    for key, value in (stated | (fields or {})).items():
        add = {int: writer.add_uint32, float: writer.add_float32, str: writer.add_string, list: writer.add_array}
        if value is not None:
            add[type(value)](f"{architecture}.{key}", value)
    for key, value in (dict(model="gpt2", pre="gpt-2", **VOCABULARY) | (tokenizer or {})).items():
        add = {int: writer.add_uint32, str: writer.add_string, list: writer.add_array, bool: writer.add_bool}
        if value is not None:
            add[type(value)](f"tokenizer.ggml.{key}", value)
    for key, array in (arrays or recorded.tensors(name)).items():
        if ".q_proj" in key or ".k_proj" in key:
            array = permuted(array, hf["num_attention_heads"] if ".q_" in key else hf["num_key_value_heads"])
        if gpt2 and key.endswith("weight") and "transformer.h" in key and array.ndim == 2:
            array = array.T
        quantized = kind is not None and array.ndim == 2 and array.shape[1] % 32 == 0
        data = gguf.quants.quantize(np.ascontiguousarray(array), kind) if quantized else np.ascontiguousarray(array)
        their_name = key if key == "rope_freqs.weight" else gguf_name(key, GPT2_NAMES if gpt2 else LLAMA_NAMES)
        writer.add_tensor(their_name, data, raw_dtype=kind if quantized else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


VOCABULARY = dict(
    tokens=["<s>", "</s>", *BYTES], token_type=[3, 3] + [1] * len(BYTES), merges=["A B"], bos_token_id=0, eos_token_id=1
)


def load(path, **options):
    return weights.load(str(path), cache_dir=path.parent, **options)


def same(a, b):
    return all(np.array_equal(x, y) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


@pytest.mark.parametrize("name", ["llama", "llama_linear", "gpt2"])
def test_the_same_parameters_and_logits_as_from_safetensors(name, tmp_path):
    scaling = {"rope.scaling.type": "linear", "rope.scaling.factor": 3.0} if name == "llama_linear" else {}
    loaded = load(write(tmp_path / "model.gguf", name, fields=scaling))
    folder = load(recorded.write(tmp_path / "folder", name))
    assert loaded.config == folder.config and same(loaded.params, folder.params)
    expected = recorded.RECORDED[f"{name}/logits"]
    logits = apply(loaded.config, loaded.params, recorded.RECORDED[f"{name}/tokens"])
    np.testing.assert_allclose(logits, expected, atol=1e-5 * np.abs(expected).max())
    assert load(tmp_path).config == loaded.config  # a folder that holds exactly one such file


def test_quantized_tensors_are_dequantized_by_the_block(tmp_path):
    rng = np.random.default_rng(0)
    sizes = dict(hidden_size=32, intermediate_size=64, head_dim=8)
    shapes = {key: array.shape for key, array in recorded.tensors("llama").items()}
    scale = {24: 32, 56: 64, 12: 16}  # 2 heads of 6 become 2 of 8
    arrays = {
        key: rng.normal(0, 0.2, [32 if "q_proj" in key and i == 0 else scale.get(s, s) for i, s in enumerate(shape)])
        for key, shape in shapes.items()
    }
    arrays = {key: array.astype(np.float32) for key, array in arrays.items()}
    fields = {"embedding_length": 32, "feed_forward_length": 64}
    fields |= dict.fromkeys(("attention.key_length", "attention.value_length", "rope.dimension_count"), 8)
    path = write(tmp_path / "q8.gguf", "llama", kind=gguf.GGMLQuantizationType.Q8_0, arrays=arrays, fields=fields)
    exact = load(recorded.write(tmp_path / "folder", "llama", arrays, **sizes)).params["layers"]
    found = load(path, dtype="").params["layers"]
    # Q8_0: blocks of 32 along a row, whole numbers to 127 times a float16 scale of the block's largest / 127.
    weight = arrays["model.layers.1.mlp.down_proj.weight"].reshape(32, 2, 32)
    step = (np.abs(weight).max(-1, keepdims=True) / 127).astype(np.float32)
    rounded = np.round(weight / step) * step.astype(np.float16).astype(np.float32)
    np.testing.assert_allclose(found["down_fd"][1], rounded.reshape(32, 64).T, atol=1e-6)
    for name, values in exact.items():
        difference = np.abs(found[name] - values).max()
        assert difference < 0.01 and ("norm" in name or difference > 1e-4)


def test_llama3_scaling_by_its_divisors(tmp_path):
    hf = recorded.config("llama_llama3")["rope_parameters"]
    frequency = 1e4 ** (-np.arange(0, 16, 2) / 16)
    turns = 8192 * frequency / (2 * np.pi)
    kept = np.clip((turns - 1) / 3, 0, 1)
    divisors = (1 / ((1 - kept) / hf["factor"] + kept)).astype(np.float32)
    arrays = recorded.tensors("llama_llama3")
    path = write(tmp_path / "a.gguf", "llama_llama3", arrays=arrays | {"rope_freqs.weight": divisors})
    config = load(path).config
    assert (config.rope_scaling, config.rope_factor, config.rope_original_max_len) == ("llama3", 8.0, 8192)
    path = write(tmp_path / "b.gguf", "llama_llama3", arrays=arrays | {"rope_freqs.weight": divisors[::-1].copy()})
    with pytest.raises(UserError, match="rope_freqs.weight are not those of Llama 3"):
        load(path)


def test_yarn(tmp_path):
    scaling = {"type": "yarn", "factor": 4.0, "original_context_length": 160, "yarn_beta_fast": 16.0}
    fields = {f"rope.scaling.{key}": value for key, value in scaling.items()}
    loaded = load(write(tmp_path / "a.gguf", "llama_yarn", fields=fields))
    assert loaded.config == load(recorded.write(tmp_path / "folder", "llama_yarn")).config


def test_a_factor_alone_is_linear_scaling(tmp_path):
    config = load(write(tmp_path / "a.gguf", "llama", fields={"rope.scaling.factor": 3.0})).config
    assert (config.rope_scaling, config.rope_factor) == ("linear", 3.0)
    for fields in ({"rope.scaling.factor": 0.0}, {"rope.scaling.factor": 3.0, "rope.scaling.type": "none"}):
        assert load(write(tmp_path / "b.gguf", "llama", fields=fields)).config.rope_scaling == "none"


@pytest.mark.parametrize("keep", [0, 3, 20, 0.01, 0.2, 0.9, 0.999])
def test_a_truncated_file(keep, tmp_path):
    data = write(tmp_path / "whole.gguf", "llama").read_bytes()
    path = tmp_path / "part" / "cut.gguf"
    path.parent.mkdir()
    path.write_bytes(data[: keep if isinstance(keep, int) else int(keep * len(data))])
    with pytest.raises(UserError, match="is no whole GGUF file .*fetch it again"):
        load(path)
    path.write_bytes(b"GGML" + data[4:])
    with pytest.raises(UserError, match="is no whole GGUF file .GGUF magic invalid"):
        load(path)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(architecture="mamba"), "GGUF architecture 'mamba' is not supported; supported are llama, gpt2"),
        (dict(fields={"expert_count": 8}), "llama.expert_count is 8, which we do not implement"),
        (dict(fields={"attention.sliding_window": 4}), "llama.attention.sliding_window is 4"),
        (dict(fields={"block_count": None}), "has no llama.block_count"),
        (dict(fields={"block_count": 3}), "lacks model.layers.2.input_layernorm.weight"),
        (dict(fields={"feed_forward_length": [56, 57]}), "feed_forward_length differs from layer to layer"),
        (dict(fields={"rope.dimension_count": 4}), "llama.rope.dimension_count is 4, not the head dimension 6"),
        (dict(fields={"rope.scaling.type": "longrope"}), "rotary scaling 'longrope' is not implemented"),
        (dict(fields={"attention.head_count_kv": 3}), "describes no decoder of ours: model.num_heads 4"),
        (dict(tokenizer={"pre": "deepseek-llm"}), "pre-tokenizer 'deepseek-llm' is not supported; supported are gpt-2"),
        (dict(tokenizer={"pre": None}), "pre-tokenizer None is not supported"),
        (dict(tokenizer={"model": "bert"}), r"of the kind 'bert'; supported are 'gpt2' .* and 'llama'"),
        (dict(tokenizer={"model": "llama"}), "lacks the scores of tokens"),
        (dict(fields={"attention.head_count": 0}), "llama.attention.head_count is 0, not a whole number above 0"),
        (dict(fields={"attention.head_count": "4"}), "llama.attention.head_count is '4', not a whole"),
        (dict(fields={"embedding_length": "24"}), "llama.embedding_length is '24', not a whole"),
        (dict(fields={"attention.layer_norm_rms_epsilon": "1e-5"}), "rms_epsilon is '1e-5', not a finite number"),
        (dict(fields={"rope.freq_base": "a"}), "llama.rope.freq_base is 'a', not a finite number"),
        (dict(fields={"rope.scaling.factor": "a"}), "llama.rope.scaling.factor is 'a', not a finite number"),
        (dict(tokenizer={"merges": ["A B", "A C"]}), "merges and tokens do not belong together: 'A C'"),
        (dict(tokenizer={"merges": ["AB"]}), "merges and tokens do not belong together: 'AB'"),
        (dict(tokenizer={"eos_token_id": "1"}), "says the id '1', which is no whole number"),
        (dict(tokenizer={"eot_token_id": "1"}), "says the id '1', which is no whole number"),
        (dict(tokenizer={"tokens": "abc"}), "lacks tokens or the types of tokens"),
        (dict(tokenizer={"merges": 5}), "its tokenizer lacks merges"),
        (dict(tokenizer={"merges": ["A zz"]}), "merges and tokens do not belong together"),
        (dict(tokenizer={"tokens": ["<s>", "</s>", *BYTES[:-1], "&"]}), "has the token '&' twice, 7 and 59"),
        (dict(tokenizer={"token_type": [3]}), "lacks tokens or the types of tokens"),
        (dict(tokenizer={"eos_token_id": 99}), "has 60 tokens, but says eos_token 99"),
        (dict(tokenizer={"tokens": [*VOCABULARY["tokens"], "{", "}"], "token_type": [3, 3] + [1] * 60}),
         "does not fit the vocabulary: it has ids up to 61, and the model's vocab_size is 61"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_named(options, words, tmp_path):
    with pytest.raises(UserError, match=words):
        load(write(tmp_path / "model.gguf", "llama", **options))


def test_a_type_that_gguf_cannot_dequantize(tmp_path):
    arrays = recorded.tensors("llama") | {"model.norm.weight": np.ones(24, np.int32)}
    with pytest.raises(UserError, match="output_norm.weight is of type I32, which gguf can't dequantize"):
        load(write(tmp_path / "model.gguf", "llama", arrays=arrays))


def test_names(tmp_path, monkeypatch):
    path = write(tmp_path / "a.gguf", "llama")
    monkeypatch.setattr(source, "fetch", lambda pinned, cache_dir: path)
    assert source.find("smollm2-135m-instruct", tmp_path) == path
    (tmp_path / "config.json").touch()  # as some lay it beside
    assert source.find(str(tmp_path), tmp_path) == path
    (tmp_path / "b.gguf").touch()
    with pytest.raises(UserError, match=r"holds 2 .gguf files; name one"):
        source.find(str(tmp_path), tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"holds no weights: neither a config.json nor a .gguf file"):
        source.find(str(tmp_path / "empty"), tmp_path)
    save_file({"a": np.ones(1, np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="is no .gguf file; of safetensors, give the folder"):
        source.find(str(tmp_path / "model.safetensors"), tmp_path)
    assert source.find(str(tmp_path), tmp_path) == tmp_path  # safetensors come first
    for name in ("~no-such-user/x", "~no-such-user/x.gguf"):
        with pytest.raises(UserError, match=r"~no-such-user/x.*: Could not determine home"):
            source.find(name, tmp_path)
    for name in ("smollm", "no/such/folder", str(tmp_path / "none"), "none.gguf", "x/none.gguf"):
        with pytest.raises(UserError, match="there are no weights '.*nor one of smollm2-135m-instruct"):
            source.find(name, tmp_path)
    tmp_path.joinpath("empty", "model.bin").touch()
    with pytest.raises(UserError, match="holds no weights"):
        source.find(str(tmp_path / "empty"), tmp_path)
