"""Hugging Face's `config.json` and our `model.Config`: one shape in two vocabularies.

A transformers model computes what the fields of its own config class say. For each architecture here every
such field is read, or must have the one value that our decoder implements; fields that the class doesn't know
change nothing there and nothing here.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.weights import rope
from gpt4jax.weights.fields import checked

OURS = "GPT4JaxDecoder"  # a decoder that no architecture of transformers expresses: `weights` alone reads it
OURS_KEY = "gpt4jax_config"

_SILU = ("silu", "swish")
_NOT = (None, False)
# What these must be, where they stand; the first value is what a file without the field means.
_GENERAL: dict[str, tuple[Any, ...]] = {
    "quantization_config": (None,), "is_encoder_decoder": _NOT, "add_cross_attention": _NOT,
    "num_experts": (None, 0, 1), "num_local_experts": (None, 0, 1), "moe_intermediate_size": (None, 0),
    "logit_scale": (None, 1.0), "final_logit_softcapping": (None, 0.0), "attn_logit_softcapping": (None, 0.0),
    "partial_rotary_factor": (None, 1.0), "rope_interleaved": _NOT,
}  # fmt: skip
_MUST_BE: dict[str, dict[str, tuple[Any, ...]]] = {
    "GPT2LMHeadModel": {
        "activation_function": ("gelu_new", "gelu_pytorch_tanh"), "scale_attn_weights": (True,),
        "scale_attn_by_inverse_layer_idx": (False, None),
    },
    "LlamaForCausalLM": {"hidden_act": _SILU},
    "MistralForCausalLM": {"hidden_act": _SILU, "attention_bias": _NOT, "mlp_bias": _NOT},
    "Qwen3ForCausalLM": {"hidden_act": _SILU, "attention_bias": _NOT, "mlp_bias": _NOT},
}  # fmt: skip
SUPPORTED = (*_MUST_BE, OURS)
_MODEL_TYPES = dict(zip(("gpt2", "llama", "mistral", "qwen3"), _MUST_BE, strict=True))
_LLAMA_EPS = 1e-6  # of a config.json without rms_norm_eps


def from_hf(hf: Mapping[str, Any]) -> model.Config:
    """The decoder that a config.json describes, in float32 and without dropout.

    Raises:
        UserError: an architecture or a field that we do not implement, named; or a field that is missing.
    """
    name = _architecture(hf)
    if name == OURS:
        return _from_ours(hf)
    for field, allowed in (_GENERAL | _MUST_BE[name]).items():
        if hf.get(field, allowed[0]) not in allowed:
            shown = " or ".join(repr(value) for value in allowed if value is not None)
            raise UserError(
                f"config.json: {field} is {hf[field]!r}, which {name} here does not implement"
                + (f"; only {shown}" if shown else "")
            )
    fields = _from_gpt2(hf) if name == "GPT2LMHeadModel" else _from_llama(hf, name)
    try:
        return model.Config(**fields)
    except (ValueError, TypeError) as error:
        raise UserError(f"config.json describes no decoder of ours: {error}") from error


def _architecture(hf: Mapping[str, Any]) -> str:
    names = hf.get("architectures") or [_MODEL_TYPES.get(str(hf.get("model_type")), hf.get("model_type"))]
    if not isinstance(names, list):
        raise UserError(f"config.json: architectures is {names!r}, not a list of names")
    if names == [None]:
        raise UserError("config.json names no architecture")
    if len(names) != 1 or names[0] not in SUPPORTED:
        raise UserError(
            f"the architecture {', '.join(map(str, names))} is not supported; supported are {', '.join(SUPPORTED)}"
        )
    return names[0]


def _from_ours(hf: Mapping[str, Any]) -> model.Config:
    known = {field.name for field in dataclasses.fields(model.Config)}
    stated = hf.get(OURS_KEY, {})
    if not isinstance(stated, dict):
        raise UserError(f"config.json: {OURS_KEY} is {stated!r}, not an object")
    values: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stated.items()}
    if strange := sorted(values.keys() - known):
        raise UserError(f"config.json: {OURS_KEY} has a field {strange[0]!r} that this version of gpt4jax lacks")
    try:
        return model.Config(**values)
    except (ValueError, TypeError) as error:
        raise UserError(f"config.json: {OURS_KEY} describes no decoder: {error}") from error


def _need(hf: Mapping[str, Any], field: str, kind: type = int, default: Any = None) -> Any:
    """A field's value; the default where it is absent, though not where it is null."""
    value = hf.get(field, default)
    if value is None:
        raise UserError(f"config.json has no {field}")
    return checked(value, kind, f"config.json: {field}")


def _or(hf: Mapping[str, Any], field: str, default: Any, kind: type = int) -> Any:
    """A field's value; the default where it is absent, null or 0."""
    return checked(hf.get(field) or default, kind, f"config.json: {field}")


def _from_gpt2(hf: Mapping[str, Any]) -> dict[str, Any]:
    embed, heads = _need(hf, "n_embd"), _need(hf, "n_head")
    if embed % heads:
        raise UserError(f"config.json: n_embd {embed} is not a multiple of n_head {heads}")
    return dict(
        vocab_size=_need(hf, "vocab_size"), num_layers=_need(hf, "n_layer"), embed_dim=embed, num_heads=heads,
        num_kv_heads=heads, head_dim=embed // heads, mlp_dim=_or(hf, "n_inner", 4 * embed),
        max_seq_len=_need(hf, "n_positions"), norm_eps=_need(hf, "layer_norm_epsilon", float, 1e-5),
        init_std=_need(hf, "initializer_range", float, 0.02),
        tie_embeddings=_need(hf, "tie_word_embeddings", bool, True),
    )  # fmt: skip


def _from_llama(hf: Mapping[str, Any], name: str) -> dict[str, Any]:
    embed, heads, layers = (_need(hf, key) for key in ("hidden_size", "num_attention_heads", "num_hidden_layers"))
    bias = _or(hf, "attention_bias", False, bool)
    if bias != _or(hf, "mlp_bias", False, bool):
        raise UserError(
            f"config.json: attention_bias is {bias} and mlp_bias {not bias}; our decoder has both biases or neither"
        )
    max_seq_len = _need(hf, "max_position_embeddings")
    return dict(
        vocab_size=_need(hf, "vocab_size"), num_layers=layers, embed_dim=embed, num_heads=heads,
        num_kv_heads=_or(hf, "num_key_value_heads", heads), head_dim=_head_dim(hf, name, embed, heads),
        mlp_dim=_need(hf, "intermediate_size"), max_seq_len=max_seq_len, norm="rmsnorm",
        norm_eps=_need(hf, "rms_norm_eps", float, _LLAMA_EPS), position="rope", activation="swiglu", use_bias=bias,
        tie_embeddings=_need(hf, "tie_word_embeddings", bool, False), qk_norm=name == "Qwen3ForCausalLM",
        attention=_attention(hf, name, layers), init_std=_need(hf, "initializer_range", float, 0.02),
        **rope.from_hf(hf, max_seq_len),
    )  # fmt: skip


def _head_dim(hf: Mapping[str, Any], name: str, embed: int, heads: int) -> int:
    if hf.get("head_dim"):
        return _need(hf, "head_dim")
    if name == "Qwen3ForCausalLM":
        return 128  # its class's default, whatever the width
    if embed % heads:
        raise UserError(f"config.json: hidden_size {embed} is not a multiple of num_attention_heads {heads}")
    return embed // heads


def _attention(hf: Mapping[str, Any], name: str, layers: int) -> tuple[str, ...]:
    """The shortest cycle of patterns that gives every layer its own."""
    if name == "LlamaForCausalLM":
        return ("dense",)
    if name == "MistralForCausalLM":
        window = hf.get("sliding_window", 4096)  # its class's default
        default = "full_attention" if window is None else "sliding_attention"
        types = [default] * layers
    else:
        window = hf.get("sliding_window", 4096) if _or(hf, "use_sliding_window", False, bool) else None
        first = hf.get("max_window_layers", 28)
        if not isinstance(first, int):
            raise UserError(f"config.json: max_window_layers is {first!r}, not a whole number")
        first = layers if window is None else first
        types = ["full_attention"] * min(first, layers) + ["sliding_attention"] * max(layers - first, 0)
    if window is not None:
        checked(window, int, "config.json: sliding_window")
    stated = hf.get("layer_types") or types
    known = ("full_attention", "sliding_attention")
    if not isinstance(stated, list) or len(stated) != layers or any(kind not in known for kind in stated):
        raise UserError(f"config.json: layer_types {stated} are not full or sliding attention for {layers} layers")
    if (name == "MistralForCausalLM" and stated != types) or (window is None and "sliding_attention" in stated):
        raise UserError(f"config.json: layer_types {stated} contradict sliding_window {window}")
    longest = _need(hf, "max_position_embeddings")
    shorter = window is not None and window <= longest  # a window that holds every row is none
    patterns = [f"banded:{window}" if kind == "sliding_attention" and shorter else "dense" for kind in stated]
    cycle = next(n for n in range(1, layers + 1) if not layers % n and patterns == patterns[:n] * (layers // n))
    return tuple(patterns[:cycle])


def inexpressible(config: model.Config) -> str | None:
    """Which field keeps every architecture of transformers from expressing the decoder; None: none does."""
    name, reason = _closest(config)
    if reason is None and config.logit_soft_cap:
        reason = f"logit_soft_cap {config.logit_soft_cap}"
    if reason is None and config.attention_soft_cap:
        reason = f"attention_soft_cap {config.attention_soft_cap}"
    return reason and f"model.{reason} (the closest is {name})"


def _closest(config: model.Config) -> tuple[str, str | None]:
    """The architecture nearest to a decoder, and what it lacks."""
    patterns = set(map(str, config.attention))
    if config.position == "learned":
        wanted = dict(norm="layernorm", activation="gelu", use_bias=True, qk_norm=False)
        wanted |= dict(num_kv_heads=config.num_heads)
        if patterns != {"dense"}:
            return "GPT2LMHeadModel", f"attention {config.attention}"
        if config.head_dim * config.num_heads != config.embed_dim:
            return "GPT2LMHeadModel", f"head_dim {config.head_dim} x num_heads {config.num_heads} is not embed_dim"
        return "GPT2LMHeadModel", _unlike(config, wanted)
    if config.position == "transformer_xl":
        return "LlamaForCausalLM", f"position {config.position!r}"
    if not all(pattern == "dense" or re.fullmatch(r"banded:\d+", pattern) for pattern in patterns):
        return "LlamaForCausalLM", f"attention {config.attention}"
    wanted = dict(norm="rmsnorm", activation="swiglu")
    if config.qk_norm:
        windows = patterns - {"dense"}
        many = f"attention {config.attention} with several windows" if len(windows) > 1 else None
        return "Qwen3ForCausalLM", _unlike(config, wanted | dict(use_bias=False)) or many
    if patterns != {"dense"}:
        many = f"attention {config.attention}, not one window for every layer" if len(patterns) > 1 else None
        return "MistralForCausalLM", _unlike(config, wanted | dict(use_bias=False)) or many
    odd = f"num_heads {config.num_heads} does not divide embed_dim" if config.embed_dim % config.num_heads else None
    return "LlamaForCausalLM", _unlike(config, wanted) or odd


def _unlike(config: model.Config, wanted: Mapping[str, Any]) -> str | None:
    for field, value in wanted.items():
        if getattr(config, field) != value:
            return f"{field} {getattr(config, field)!r}"
    return None


def to_hf(config: model.Config, dtype: str) -> dict[str, Any]:
    """The config.json of a decoder whose weights are stored in `dtype`; of `OURS` if `inexpressible`.

    Raises:
        UserError: a decoder with an image frontend, whose weights this layout has no names for.
    """
    if config.vision is not None:
        raise UserError("a decoder with an image frontend can't be exported: the layout has no names for its weights")
    # Both spellings of the type and of the rotary fields: transformers 5 reads the first, 4 the second.
    common = dict(dtype=dtype, torch_dtype=dtype, vocab_size=config.vocab_size, use_cache=True)
    if inexpressible(config):
        stated = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(config).items()}
        del stated["vision"]
        return dict(architectures=[OURS], model_type="gpt4jax", **common) | {OURS_KEY: stated}
    name, _ = _closest(config)
    common |= dict(
        architectures=[name], model_type=next(key for key, value in _MODEL_TYPES.items() if value == name),
        initializer_range=config.init_std, tie_word_embeddings=config.tie_embeddings,
    )  # fmt: skip
    if name == "GPT2LMHeadModel":
        return common | dict(
            n_layer=config.num_layers, n_embd=config.embed_dim, n_head=config.num_heads, n_inner=config.mlp_dim,
            n_positions=config.max_seq_len, activation_function="gelu_new", layer_norm_epsilon=config.norm_eps,
            resid_pdrop=config.dropout, embd_pdrop=config.dropout, attn_pdrop=0.0,
        )  # fmt: skip
    common |= dict(
        num_hidden_layers=config.num_layers, hidden_size=config.embed_dim, num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim, intermediate_size=config.mlp_dim,
        max_position_embeddings=config.max_seq_len, rms_norm_eps=config.norm_eps, hidden_act="silu",
        attention_bias=config.use_bias, mlp_bias=config.use_bias, attention_dropout=0.0, **rope.to_hf(config),
    )  # fmt: skip
    windows = [int(pattern.partition(":")[2]) for pattern in config.attention if pattern != "dense"]
    if name == "MistralForCausalLM":
        common |= dict(sliding_window=windows[0])
    elif name == "Qwen3ForCausalLM":
        kinds = ["full_attention" if pattern == "dense" else "sliding_attention" for pattern in config.attention]
        common |= dict(
            use_sliding_window=bool(windows), sliding_window=windows[0] if windows else None,
            max_window_layers=config.num_layers, layer_types=kinds * (config.num_layers // len(kinds)),
        )  # fmt: skip
    return common
