"""The shape of a decoder: one frozen dataclass, checked when it is made."""

import dataclasses
import numbers
from typing import Any, ClassVar

import jax.numpy as jnp

from gpt4jax.model import patterns
from gpt4jax.model.attention import LOWERINGS
from gpt4jax.model.context import METHODS
from gpt4jax.model.vision_config import VisionConfig

CHOICES = {
    "norm": ("layernorm", "rmsnorm"),
    "position": ("learned", "rope", "transformer_xl"),
    "rope_scaling": ("none", "linear", "llama3", "yarn"),
    "activation": ("gelu", "swiglu", "quick_gelu"),
    "attention_lowering": ("auto", *LOWERINGS),
    "context_method": METHODS,
    "layers": ("scan", "unroll"),
    "remat": ("none", "dots", "full"),
    "dtype": ("float32", "bfloat16", "float64"),
    "param_dtype": ("float32", "bfloat16", "float64"),
    "parametrization": ("standard", "mup"),
}

_FROM_0 = ("loss_chunk_len", "rope_original_max_len", "memory_len", "xl_clamp_len")  # sizes that may be 0


@dataclasses.dataclass(frozen=True)
class Config:
    """A decoder by its sizes and choices. What each field means stands in `gpt4jax/config.py`.

    GPT-2 and GPT-3 are the defaults below; Llama is norm="rmsnorm", position="rope",
    activation="swiglu", use_bias=False and num_kv_heads < num_heads. Transformer-XL's recurrence and relative
    positions are position="transformer_xl" with memory_len, in either.

    Raises:
        ValueError: a choice that does not exist or sizes that do not fit together.
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    mlp_dim: int
    max_seq_len: int
    norm: str = "layernorm"
    norm_eps: float = 1e-5
    position: str = "learned"
    rope_theta: float = 10_000.0
    rope_scaling: str = "none"
    rope_factor: float = 1.0
    rope_original_max_len: int = 0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_attention_factor: float = 0.0
    memory_len: int = 0
    xl_clamp_len: int = 0
    xl_untie_biases: bool = False
    activation: str = "gelu"
    use_bias: bool = True
    tie_embeddings: bool = True
    qk_norm: bool = False
    attention: tuple[str, ...] = ("dense",)
    attention_lowering: str = "auto"
    context_method: str = "gather"
    attention_soft_cap: float = 0.0
    logit_soft_cap: float = 0.0
    dropout: float = 0.0
    init_std: float = 0.02
    parametrization: str = "standard"
    base_embed_dim: int = 256
    base_num_layers: int = 4
    base_head_dim: int = 64
    layers: str = "scan"
    remat: str = "none"
    loss_chunk_len: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"
    vision: VisionConfig | None = None

    causal: ClassVar[bool] = True
    length_axis: ClassVar[str] = "act_len"  # the logical axis of its tokens
    stream_axis: ClassVar[str] = "act_stream"  # ... in the residual stream

    def __post_init__(self) -> None:
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"model.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            _check_type(field.name, value, field.type)
            if field.type is int and field.name not in _FROM_0 and value < 1:
                raise ValueError(f"model.{field.name} is {value}; it must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"model.num_heads {self.num_heads} is not a multiple of num_kv_heads {self.num_kv_heads}")
        if self.position == "rope" and self.head_dim % 2:
            raise ValueError(f"model.head_dim {self.head_dim} is odd; rotary positions turn pairs of dimensions")
        if self.rope_theta <= 0:
            raise ValueError(f"model.rope_theta is {self.rope_theta}; it must be above 0")
        self._check_rope_scaling()
        self._check_transformer_xl()
        self._check_vision()
        if not self.attention or self.num_layers % len(self.attention):
            raise ValueError(
                f"model.attention has a cycle of {len(self.attention)} patterns, "
                f"which does not divide num_layers {self.num_layers}"
            )
        for pattern in map(str, self.attention):
            patterns.from_pattern(pattern, self.num_kv_heads)
            if (longest := patterns.longest(pattern)) > self.max_seq_len:
                raise ValueError(
                    f"model.attention has {pattern!r}, but rows have at most max_seq_len {self.max_seq_len} tokens: "
                    f"a window or stride of {longest} does not fit into them"
                )
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout is {self.dropout}; it must lie in [0, 1)")
        if self.loss_chunk_len < 0:
            raise ValueError(f"model.loss_chunk_len is {self.loss_chunk_len}; it must be 0 (whole rows) or more")

    def _check_rope_scaling(self) -> None:
        if self.rope_scaling == "none":
            return
        if self.position != "rope":
            raise ValueError(f"model.rope_scaling {self.rope_scaling!r} needs position='rope', not {self.position!r}")
        if not self.rope_factor >= 1:
            raise ValueError(f"model.rope_factor is {self.rope_factor}; it must be at least 1")
        if self.rope_scaling != "linear" and self.rope_original_max_len < 1:
            raise ValueError(
                f"model.rope_scaling {self.rope_scaling!r} needs model.rope_original_max_len, the length that the "
                f"model was trained for before scaling; it is {self.rope_original_max_len}"
            )
        if self.rope_scaling == "llama3" and not 0 < self.rope_low_freq_factor < self.rope_high_freq_factor:
            raise ValueError(
                f"model.rope_low_freq_factor {self.rope_low_freq_factor} must be positive and below "
                f"rope_high_freq_factor {self.rope_high_freq_factor}"
            )
        if self.rope_scaling == "yarn" and not 0 < self.rope_beta_slow < self.rope_beta_fast:
            raise ValueError(
                f"model.rope_beta_slow {self.rope_beta_slow} must be positive and below "
                f"rope_beta_fast {self.rope_beta_fast}"
            )
        if self.rope_attention_factor < 0:
            raise ValueError(
                f"model.rope_attention_factor is {self.rope_attention_factor}; it must be 0 (the paper's) or more"
            )

    def _check_vision(self) -> None:
        if self.vision is None:
            return
        if self.vision.image_token >= self.vocab_size:
            raise ValueError(
                f"vision.image_token is {self.vision.image_token}, and model.vocab_size {self.vocab_size}: the token "
                "whose place an image takes must be one of the vocabulary"
            )
        if self.vision.longest >= self.max_seq_len:
            raise ValueError(
                f"an image is up to {self.vision.longest} tokens (vision.max_patches, or vision.resampler_len), which "
                f"rows of model.max_seq_len {self.max_seq_len} cannot hold"
            )
        if self.position == "transformer_xl" or self.parametrization == "mup":
            what = "position='transformer_xl'" if self.position == "transformer_xl" else "parametrization='mup'"
            raise ValueError(f"a decoder with an image frontend can't have {what}: that is not built")

    def _check_transformer_xl(self) -> None:
        fields = ("memory_len", "xl_clamp_len", "xl_untie_biases")
        if self.position != "transformer_xl":
            for name in fields:
                if getattr(self, name):
                    raise ValueError(
                        f"model.{name} {getattr(self, name)} needs position='transformer_xl', not {self.position!r}"
                    )
            return
        for name in fields[:2]:
            if getattr(self, name) < 0:
                raise ValueError(f"model.{name} is {getattr(self, name)}; it must be 0 (none) or more")
        if self.embed_dim % 2:
            raise ValueError(
                f"model.embed_dim {self.embed_dim} is odd; distances are encoded as pairs of sine and cosine"
            )
        if self.qk_norm:
            raise ValueError("model.qk_norm with position='transformer_xl': its scores are of queries as they are")
        if patterns.INDUCTION in self.attention:
            raise ValueError("model.attention 'induction' with position='transformer_xl': a memory keeps no tokens")
        if self.attention_lowering not in ("auto", "reference"):
            raise ValueError(
                f"model.attention_lowering {self.attention_lowering!r} with position='transformer_xl': its scores "
                "are computed all at once, which is 'reference' (or 'auto')"
            )
        for pattern in self.attention:
            if not all(mask.relative for mask in patterns.from_pattern(pattern, self.num_kv_heads)):
                raise ValueError(
                    f"model.attention {pattern!r} with position='transformer_xl': a memory knows distances and no "
                    "positions, so it takes dense, banded, strided and column"
                )

    @property
    def compute_dtype(self) -> jnp.dtype:
        """The type of activations and of the weights inside a matrix product."""
        return jnp.dtype(self.dtype)

    @property
    def stable_dtype(self) -> jnp.dtype:
        """The type of norms, softmax, rotations and losses: float32, or float64 where all is float64."""
        return jnp.promote_types(self.compute_dtype, jnp.float32)


class EncoderConfig(Config):
    """Layers without a vocabulary in which every token sees every other of its segment."""

    causal = False
    length_axis = stream_axis = "act_patches"


def encoder(config: Config) -> EncoderConfig:
    """The layers of a decoder's ViT.

    Raises:
        ValueError: it has none.
    """
    vision = config.vision
    if vision is None or not vision.encoder:
        raise ValueError("this decoder has no ViT (config.vision)")
    return EncoderConfig(
        vocab_size=1, num_layers=vision.num_layers, embed_dim=vision.embed_dim, num_heads=vision.num_heads,
        num_kv_heads=vision.num_heads, head_dim=vision.embed_dim // vision.num_heads, mlp_dim=vision.mlp_dim,
        max_seq_len=1, activation=vision.activation, attention_lowering=config.attention_lowering,
        layers=config.layers, remat=config.remat, dtype=config.dtype, param_dtype=config.param_dtype,
        init_std=config.init_std,
    )  # fmt: skip


def _check_type(name: str, value: Any, kind: Any) -> None:
    if kind in (int, float):
        number = isinstance(value, numbers.Integral if kind is int else numbers.Real) and not isinstance(value, bool)
        fits, words = number and -1e38 < value < 1e38, "a whole number" if kind is int else "a finite number"
    elif kind == VisionConfig | None:
        fits, words = value is None or isinstance(value, VisionConfig), "a VisionConfig, or None"
    elif kind in (bool, str):
        fits, words = isinstance(value, kind), "true or false" if kind is bool else "a text"
    else:
        fits, words = isinstance(value, tuple), "a tuple"
    if not fits:
        raise ValueError(f"model.{name} is {value!r}; it must be {words}")
