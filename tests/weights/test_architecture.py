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
    "attention ('induction',)": LLAMA | dict(attention=("induction",)),
    "attention ('induction', 'dense')": LLAMA | dict(qk_norm=True, attention=("induction", "dense")),
    "position 'transformer_xl'": LLAMA | dict(position="transformer_xl", memory_len=4, xl_untie_biases=True),
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
        ("llama", dict(hidden_size="many"), "hidden_size is 'many', not a whole number above 0"),
        ("llama", dict(rms_norm_eps="1e-5"), "rms_norm_eps is '1e-5', not a finite number"),
        ("llama", dict(rms_norm_eps=None), "has no rms_norm_eps"),
        ("llama", dict(num_attention_heads=0), "num_attention_heads is 0, not a whole"),
        ("mistral", dict(num_hidden_layers=10**30), "num_hidden_layers is 10+, not a whole"),
        ("llama", dict(rms_norm_eps=10**400), "rms_norm_eps is 10+, not a finite number"),
        ("llama", dict(num_attention_heads=True), "num_attention_heads is True, not a whole"),
        ("llama", dict(tie_word_embeddings="no"), "tie_word_embeddings is 'no', not true or false"),
        ("llama", dict(attention_bias="false"), "attention_bias is 'false', not true or false"),
        ("llama", dict(initializer_range=float("inf")), "initializer_range is inf"),
        ("llama", dict(head_dim="6"), "head_dim is '6', not a whole"),
        ("llama", dict(architectures=None, model_type=None), "names no architecture"),
        ("llama", dict(architectures=-1), "architectures is -1, not a list"),
        ("llama", dict(architectures={"a": 1}), "architectures is {'a': 1}, not a list"),
        ("llama", dict(architectures="Llama"), "architectures is 'Llama', not a list"),
        ("llama", dict(architectures=[["a"]]), "is not supported"),
        ("llama", dict(rope_scaling="linear"), "rope_scaling is 'linear', not an object"),
        ("llama", dict(rope_scaling=-1), "rope_scaling is -1, not an object"),
        ("llama", dict(rope_parameters=[1]), r"rope_parameters is \[1\], not an object"),
        ("llama", dict(rope_theta="x"), "rope_theta is 'x', not a finite number"),
        ("llama", dict(rope_scaling={"type": "linear", "factor": "x"}), "rope_scaling.factor is 'x', not a"),
        ("llama", dict(rope_scaling={"type": "linear", "factor": None}), "'linear' has no factor"),
        ("llama", dict(rope_scaling={"rope_type": ["a"]}), r"rotary scaling \['a'\] is not implemented"),
        ("llama", dict(rope_scaling={"type": "llama3", "factor": 8, "low_freq_factor": 1, "high_freq_factor": "a"}),
         "high_freq_factor is 'a'"),
        ("llama", dict(rope_scaling={"type": "yarn", "original_max_position_embeddings": "a"}), "embeddings is 'a'"),
        ("llama", dict(rope_scaling={"type": "yarn"}, original_max_position_embeddings="a"), "embeddings is 'a'"),
        ("llama", dict(rope_scaling={"type": "yarn", "factor": 2, "mscale": "a", "mscale_all_dim": 1}), "mscale is"),
        ("gpt2", dict(n_head=0), "n_head is 0, not a whole number above 0"),
        ("gpt2", dict(n_head="abc"), "n_head is 'abc', not a whole"),
        ("gpt2", dict(n_embd="abc"), "n_embd is 'abc', not a whole"),
        ("gpt2", dict(layer_norm_epsilon=float("nan")), "layer_norm_epsilon is nan"),
        ("mistral", dict(sliding_window="a"), "sliding_window is 'a', not a whole"),
        ("qwen3", dict(layer_types=5), "layer_types 5 are not full or sliding"),
        ("qwen3", dict(layer_types=[["a"], {}]), "are not full or sliding"),
        ("qwen3", dict(max_window_layers="a"), "max_window_layers is 'a'"),
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
    with pytest.raises(UserError, match="gpt4jax_config is 5, not an object"):
        architecture.from_hf(dict(architectures=["GPT4JaxDecoder"], gpt4jax_config=5))
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
        (dict(norm_eps="1e-5"), "norm_eps is '1e-5'; it must be a finite number"),
        (dict(norm_eps=None), "norm_eps is None; it must be a finite number"),
        (dict(num_heads=4.0), "num_heads is 4.0; it must be a whole number"),
        (dict(use_bias=1), "use_bias is 1; it must be true or false"),
        (dict(attention="dense"), "attention is 'dense'; it must be a tuple"),
        (dict(rope_theta=0.0), "rope_theta is 0.0; it must be above 0"),
        (YARN | dict(position="learned"), "rope_scaling 'yarn' needs position='rope'"),
    ],
)
def test_values_that_no_decoder_has(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(model.Config(**LLAMA), **changes)
