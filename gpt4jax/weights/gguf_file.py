"""GGUF, llama.cpp's format of one file: the decoder's shape, its tensors and its tokenizer, by the `gguf` library.

Tensors are dequantized one at a time, when a shard that needs them is read.
"""

import contextlib
import gc
import pathlib
import re
from collections.abc import Iterator
from typing import Any

import gguf
import jax.numpy as jnp
import numpy as np
from gguf.quants import dequantize

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.model import position
from gpt4jax.weights.fields import checked

# Their names by Hugging Face's.
_NAMES = {
    "llama": {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    },
    "gpt2": {
        "transformer.wte": "token_embd", "transformer.wpe": "position_embd", "transformer.ln_f": "output_norm",
        "lm_head": "output", "ln_1": "attn_norm", "ln_2": "ffn_norm", "attn.c_attn": "attn_qkv",
        "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    },
}  # fmt: skip
_GPT2_TRANSPOSED = re.compile(r"blk\.\d+\.(attn_qkv|attn_output|ffn_up|ffn_down)\.weight$")
_PERMUTED = re.compile(r"\.attn_([qk])\.(weight|bias)$")
# What "llama.*" may say; another key would change the mathematics in a way that we don't know.
_LLAMA_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.head_count_kv", "attention.layer_norm_rms_epsilon", "attention.key_length", "attention.value_length",
    "rope.freq_base", "rope.dimension_count", "vocab_size", "rope.scaling.type", "rope.scaling.factor",
    "rope.scaling.original_context_length", "rope.scaling.finetuned", "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow", "tensor_data_layout",
}  # fmt: skip
_GPT2_KEYS = {
    "block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count",
    "attention.layer_norm_epsilon", "vocab_size",
}  # fmt: skip
# Llama 3.1 and 3.2: their frequencies' divisors stand in the file, the numbers that gave them don't.
_LLAMA3 = dict(rope_scaling="llama3", rope_low_freq_factor=1.0, rope_high_freq_factor=4.0, rope_original_max_len=8192)
_ROPE_FREQS = "rope_freqs.weight"


@contextlib.contextmanager
def _no_collections() -> Iterator[None]:
    """Without garbage collections: the library makes a million arrays, and JAX's callback swallows a Ctrl-C in one."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


class GgufFile:
    """A GGUF file's metadata, decoder and tensors (`layout.Tensors`).

    Raises:
        UserError: no GGUF file, a truncated one, an architecture or a field that is not supported.
    """

    stored = "float32"

    def __init__(self, path: pathlib.Path):
        self.path = path
        try:
            with _no_collections():
                reader = gguf.GGUFReader(path)
                self.metadata: dict[str, Any] = {key: _plain(field) for key, field in reader.fields.items()}
            self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        except (ValueError, KeyError, IndexError, OSError, OverflowError, TypeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no whole GGUF file ({error}); fetch it again") from error
        self.architecture = str(self.metadata.get("general.architecture"))
        if self.architecture not in _NAMES:
            raise UserError(
                f"{path}: the GGUF architecture {self.architecture!r} is not supported; supported are "
                + ", ".join(_NAMES)
            )
        for tensor in self._tensors.values():
            _check_type(path, tensor)
        self.config = self._config()
        self._theirs: dict[str, str] = {}
        for theirs in self._tensors.keys() - {_ROPE_FREQS}:
            self._theirs[_hf_name(self.architecture, theirs)] = theirs
        self.shapes = {ours: self._shape(theirs) for ours, theirs in self._theirs.items()}

    def read(self, name: str) -> np.ndarray:
        """One tensor, dequantized to float32, in Hugging Face's layout."""
        theirs = self._theirs[name]
        tensor = self._tensors[theirs]
        array = dequantize(tensor.data, tensor.tensor_type)
        if self._transposed(theirs):
            return array.T
        if self.architecture == "llama" and (match := _PERMUTED.search(theirs)):
            array = _unpermuted(array, self.config.num_heads if match[1] == "q" else self.config.num_kv_heads)
        return array

    def _transposed(self, theirs: str) -> bool:
        return self.architecture == "gpt2" and _GPT2_TRANSPOSED.match(theirs) is not None

    def _shape(self, theirs: str) -> tuple[int, ...]:
        shape = tuple(int(size) for size in self._tensors[theirs].shape)
        return shape if self._transposed(theirs) else shape[::-1]

    def _get(self, key: str, default: Any = None, kind: type | None = int) -> Any:
        """A field's value, which must be of a kind (`fields.checked`); None: of any."""
        value = self.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise UserError(f"{self.path} has no {self.architecture}.{key}")
        if isinstance(value, list):
            raise UserError(f"{self.path}: {self.architecture}.{key} differs from layer to layer, which we don't have")
        return value if kind is None else checked(value, kind, f"{self.path}: {self.architecture}.{key}")

    def _config(self) -> model.Config:
        known = _LLAMA_KEYS if self.architecture == "llama" else _GPT2_KEYS
        for key in self.metadata:
            head, _, rest = key.partition(".")
            if head == self.architecture and rest not in known and self.metadata[key]:
                raise UserError(f"{self.path}: {key} is {self.metadata[key]!r}, which we do not implement")
        try:
            return model.Config(**self._fields())
        except (ValueError, TypeError) as error:
            raise UserError(f"{self.path} describes no decoder of ours: {error}") from error

    def _fields(self) -> dict[str, Any]:
        heads, embed = self._get("attention.head_count"), self._get("embedding_length")
        head_dim = self._get("attention.key_length", embed // heads)
        embedding = self._tensors.get("token_embd.weight")
        if embedding is None:
            raise UserError(f"{self.path} has no token_embd.weight")
        fields: dict[str, Any] = dict(
            vocab_size=int(embedding.shape[1]), num_layers=self._get("block_count"), embed_dim=embed,
            num_heads=heads, num_kv_heads=heads, head_dim=head_dim, mlp_dim=self._get("feed_forward_length"),
            max_seq_len=self._get("context_length"), tie_embeddings="output.weight" not in self._tensors,
        )  # fmt: skip
        if self.architecture == "gpt2":
            return fields | {"norm_eps": self._get("attention.layer_norm_epsilon", kind=float)}
        return fields | self._llama(heads, head_dim)

    def _llama(self, heads: int, head_dim: int) -> dict[str, Any]:
        for key in ("attention.value_length", "rope.dimension_count"):
            if (value := self._get(key, head_dim)) != head_dim:
                raise UserError(f"{self.path}: llama.{key} is {value}, not the head dimension {head_dim}")
        theta = self._get("rope.freq_base", 10_000.0, float)
        bias = any(name.endswith("attn_q.bias") for name in self._tensors)
        return dict(
            num_kv_heads=self._get("attention.head_count_kv", heads), norm="rmsnorm", position="rope",
            norm_eps=self._get("attention.layer_norm_rms_epsilon", kind=float), rope_theta=theta, activation="swiglu",
            use_bias=bias, **self._rope_scaling(theta, head_dim),
        )  # fmt: skip

    def _rope_scaling(self, theta: float, head_dim: int) -> dict[str, Any]:
        kind = self._get("rope.scaling.type", "linear", None)  # llama.cpp's default: a factor alone is linear
        if _ROPE_FREQS in self._tensors:
            return self._llama3(theta, head_dim)
        if kind == "none":
            return {}
        if kind not in ("linear", "yarn"):
            raise UserError(f"{self.path}: the rotary scaling {kind!r} is not implemented; implemented: linear, yarn")
        stated = "llama.rope.scaling.type" in self.metadata
        factor = self._get("rope.scaling.factor", None if stated else 1.0, float)
        if not stated and factor in (0, 1):  # 0 is llama.cpp's for none
            return {}
        fields = dict(rope_scaling=kind, rope_factor=factor)
        if kind == "yarn":
            fields |= dict(
                rope_original_max_len=self._get("rope.scaling.original_context_length"),
                rope_beta_fast=self._get("rope.scaling.yarn_beta_fast", 32.0, float),
                rope_beta_slow=self._get("rope.scaling.yarn_beta_slow", 1.0, float),
            )
        return fields

    def _llama3(self, theta: float, head_dim: int) -> dict[str, Any]:
        """Llama 3's scaling, if its usual numbers give the divisors that the file holds."""
        divisors = np.asarray(self._tensors[_ROPE_FREQS].data, np.float64).reshape(-1)
        other = f"{self.path}: its {_ROPE_FREQS} are not those of Llama 3, and nothing else is implemented"
        if divisors.shape != (head_dim // 2,) or not np.all(np.isfinite(divisors)):
            raise UserError(other)
        fields = _LLAMA3 | dict(rope_factor=float(divisors.max()))
        sizes = dict(vocab_size=1, num_layers=1, embed_dim=1, num_heads=1, num_kv_heads=1, mlp_dim=1, max_seq_len=1)
        plain = theta ** (-np.arange(0, head_dim, 2) / head_dim)
        config = model.Config(**sizes, head_dim=head_dim, position="rope", rope_theta=theta, **fields)  # type: ignore[arg-type]
        expected = plain / np.asarray(position.llama3_frequencies(config, jnp.asarray(plain)), np.float64)
        if not np.allclose(divisors, expected, rtol=1e-4):
            raise UserError(other)
        return fields


def _plain(field: Any) -> Any:
    """A field's value; a float32 as the shortest decimal that is the same float32 (1e-05, not 9.99999974e-06)."""
    value = field.contents()
    if field.types == [gguf.GGUFValueType.FLOAT32]:
        return float(str(np.float32(value)))
    return value


def _hf_name(architecture: str, theirs: str) -> str:
    """Hugging Face's name of a tensor; the file's own if there is none."""
    body, _, kind = theirs.rpartition(".")
    match = re.fullmatch(r"blk\.(\d+)\.(\w+)", body)
    ours = {value: key for key, value in _NAMES[architecture].items()}.get(match[2] if match else body)
    if ours is None:
        return theirs
    layers = "model.layers" if architecture == "llama" else "transformer.h"
    return f"{layers}.{match[1]}.{ours}.{kind}" if match else f"{ours}.{kind}"


def _check_type(path: pathlib.Path, tensor: Any) -> None:
    kind = tensor.tensor_type
    block = gguf.GGML_QUANT_SIZES[kind][1] if tensor.data.dtype == np.uint8 else 1
    try:
        dequantize(tensor.data.reshape(-1)[:block], kind)
    except NotImplementedError as error:
        raise UserError(f"{path}: {tensor.name} is of type {kind.name}, which gguf can't dequantize") from error


def _unpermuted(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of queries or keys in Hugging Face's order.

    llama.cpp turns neighbouring dimensions together, Hugging Face and we dimension i and i + head_dim / 2.
    """
    half = array.shape[0] // heads // 2
    return array.reshape(heads, half, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)
