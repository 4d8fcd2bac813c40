"""config.json and model.Config say the same, and what we don't implement is named."""

import dataclasses

import pytest

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.weights import architecture
from tests.conftest import GPT, LLAMA
from tests.weights import recorded

LINEAR = dict(rope_scaling="linear", rope_factor=2.0)
LLAMA3 = dict(rope_scaling="llama3", rope_factor=8.0, rope_original_max_len=16, rope_high_freq_factor=3.0)
YARN = dict(rope_scaling="yarn", rope_factor=4.0, rope_original_max_len=16, rope_beta_fast=20.0)
EXPRESSED = {
    "GPT2LMHeadModel": [GPT, GPT | dict(tie_embeddings=False, norm_eps=1e-6)],
    "LlamaForCausalLM": [
        LLAMA, LLAMA | dict(tie_embeddings=True, use_bias=True, head_dim=6), LLAMA | LINEAR | dict(rope_theta=5e5),
        LLAMA | LLAMA3, LLAMA | YARN, LLAMA | dict(rope_theta=5e5), LLAMA | YARN | dict(rope_attention_factor=1.5),
    ],
    "MistralForCausalLM": [LLAMA | dict(attention=("banded:5",))],
    "Qwen3ForCausalLM": [
        LLAMA | dict(qk_norm=True), LLAMA | dict(qk_norm=True, attention=("banded:9",)),
        LLAMA | dict(qk_norm=True, num_layers=4, attention=("dense", "banded:9")),
    ],
}  # fmt: skip
NOT_EXPRESSED = {
    "norm 'layernorm'": LLAMA | dict(norm="layernorm"),
    "activation 'gelu'": LLAMA | dict(activation="gelu"),
    "num_kv_heads 2": GPT | dict(num_kv_heads=2),
    "qk_norm True": GPT | dict(qk_norm=True),
    "use_bias False": GPT | dict(use_bias=False),
    "use_bias True": LLAMA | dict(qk_norm=True, use_bias=True),
    "attention ('banded:3',)": GPT | dict(attention=("banded:3",)),
    "attention ('dense', 'banded:3')": LLAMA | dict(attention=("dense", "banded:3")),
    "head_dim 16": GPT | dict(head_dim=16),
    "num_heads 6": LLAMA | dict(num_heads=6),
    "logit_soft_cap 30.0": LLAMA | dict(logit_soft_cap=30.0),
    "attention_soft_cap 50.0": GPT | dict(attention_soft_cap=50.0),
}


@pytest.mark.parametrize("name", EXPRESSED)
def test_there_and_back(name):
    for shape in EXPRESSED[name]:
        config = model.Config(**shape)
        hf = architecture.to_hf(config, "float32")
        assert hf["architectures"] == [name] and architecture.inexpressible(config) is None
        assert architecture.from_hf(hf) == config
        # Either spelling alone is enough.
        for keys in (("rope_parameters",), ("rope_theta", "rope_scaling"), ("architectures",), ("model_type",)):
            assert architecture.from_hf({key: value for key, value in hf.items() if key not in keys}) == config


@pytest.mark.parametrize("reason", NOT_EXPRESSED)
def test_what_transformers_lacks_is_named(reason):
    config = model.Config(**NOT_EXPRESSED[reason])
    assert architecture.inexpressible(config).startswith(f"model.{reason}")
    hf = architecture.to_hf(config, "bfloat16")
    assert hf["architectures"] == ["GPT4JaxDecoder"] and architecture.from_hf(hf) == config
    assert hf["gpt4jax_config"]["attention"] == list(config.attention)


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("llama", dict(architectures=["MixtralForCausalLM"]), "MixtralForCausalLM is not supported; .* GPT2LM"),
        ("llama", dict(architectures=None, model_type="bert"), "architecture bert is not supported"),
        ("llama", dict(hidden_act="gelu"), "hidden_act is 'gelu', which Llama.*'silu' or 'swish'"),
        ("llama", dict(attention_bias=True), "attention_bias is True and mlp_bias False"),
        ("llama", dict(quantization_config={"bits": 4}), "quantization_config is {'bits': 4}"),
        ("llama", dict(num_local_experts=8), "num_local_experts is 8"),
        ("llama", dict(partial_rotary_factor=0.5), "partial_rotary_factor is 0.5"),
        ("llama", dict(rope_parameters={"rope_type": "dynamic", "factor": 2.0}), "'dynamic' is not implemented"),
        ("llama", dict(rope_scaling={"type": "longrope"}), "'longrope' is not implemented; .* default, linear"),
        ("llama", dict(rope_scaling={"type": "linear"}), "'linear' has no factor"),
        ("llama", dict(rope_scaling={"type": "llama3", "factor": 8.0, "low_freq_factor": 1.0}), "no high_freq_fac"),
        ("llama", dict(rope_scaling={"rope_type": "yarn", "factor": 4, "truncate": False}), "truncate false"),
        ("llama", dict(rope_scaling={"type": "linear", "factor": 2, "short_factor": [1]}), "has short_factor"),
        ("llama", dict(rope_parameters={"partial_rotary_factor": 0.5}), "has partial_rotary_factor 0.5"),
        ("llama", dict(hidden_size=None), "config.json has no hidden_size"),
        ("llama", dict(num_key_value_heads=3), "describes no decoder of ours: model.num_heads 4 is not a multiple"),
        ("llama", dict(hidden_size="many"), "describes no decoder of ours"),
        ("gpt2", dict(activation_function="relu"), "activation_function is 'relu'"),
        ("gpt2", dict(scale_attn_by_inverse_layer_idx=True), "scale_attn_by_inverse_layer_idx is True"),
        ("gpt2", dict(add_cross_attention=True), "add_cross_attention is True"),
        ("gpt2", dict(n_head=5), "n_embd 24 is not a multiple of n_head 5"),
        ("mistral", dict(layer_types=["full_attention", "sliding_attention"]), "contradict sliding_window 5"),
        ("qwen3", dict(attention_bias=True), "attention_bias is True"),
        ("qwen3", dict(layer_types=["full_attention"]), "are not full or sliding attention for 2 layers"),
        ("qwen3", dict(use_sliding_window=False), "contradict sliding_window None"),
    ],
)  # fmt: skip
def test_what_is_not_implemented_is_named(name, changes, words):
    with pytest.raises(UserError, match=words):
        architecture.from_hf(recorded.config(name) | changes)


def test_defaults_of_the_classes():
    qwen = {k: v for k, v in recorded.config("qwen3").items() if k not in ("layer_types", "head_dim")}
    config = architecture.from_hf(qwen | dict(num_hidden_layers=4, max_window_layers=2))
    assert config.head_dim == 128 and config.attention == ("dense", "dense", "banded:7", "banded:7")
    assert architecture.from_hf(qwen | dict(use_sliding_window=False)).attention == ("dense",)
    mistral = recorded.config("mistral")
    assert architecture.from_hf(mistral | dict(sliding_window=None)).attention == ("dense",)
    yarn = dict(rope_type="yarn", mscale=1.0, mscale_all_dim=0.5, original_max_position_embeddings=6, rope_theta=1e4)
    scaled = architecture.from_hf(recorded.config("llama") | dict(rope_parameters=yarn))
    assert scaled.rope_factor == 4.0 and scaled.rope_attention_factor == pytest.approx(1.1386294 / 1.0693147)
    with pytest.raises(UserError, match="gpt4jax_config has a field 'new'"):
        architecture.from_hf(dict(architectures=["GPT4JaxDecoder"], gpt4jax_config=dict(new=1)))
    with pytest.raises(UserError, match="gpt4jax_config describes no decoder"):
        architecture.from_hf(dict(architectures=["GPT4JaxDecoder"], gpt4jax_config=dict(vocab_size=1)))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(rope_scaling="ntk"), "model.rope_scaling is 'ntk'; it must be one of none, linear"),
        (dict(rope_scaling="linear", rope_factor=0.5), "rope_factor is 0.5; it must be at least 1"),
        (dict(rope_scaling="yarn", rope_factor=2.0), "needs model.rope_original_max_len.*; it is 0"),
        (LLAMA3 | dict(rope_low_freq_factor=4.0), "rope_low_freq_factor 4.0 must be positive and below.* 3.0"),
        (YARN | dict(rope_beta_slow=0.0), "rope_beta_slow 0.0 must be positive and below"),
        (YARN | dict(rope_attention_factor=-1.0), "rope_attention_factor is -1.0"),
        (YARN | dict(position="learned"), "rope_scaling 'yarn' needs position='rope'"),
    ],
)
def test_contradictory_rotary_scaling(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(model.Config(**LLAMA), **changes)
