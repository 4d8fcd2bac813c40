"""The parameter table: every parameter of a decoder, declared once.

Initialisation, sharding, weight decay, counting, and import and export of weights all read this
table; nothing else in the project knows a parameter's shape.
"""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from gpt4jax.model import mup
from gpt4jax.model.config import Config, encoder
from gpt4jax.model.vision_config import VisionConfig

Params = Mapping[str, Mapping[str, jax.Array]]
VISION_GROUPS = ("vision", "vision_layers", "resampler", "resampler_layers", "projector", "clip")


@dataclasses.dataclass(frozen=True)
class Parameter:
    """One parameter.

    Attributes:
        group, name: its place in the tree: `params[group][name]`.
        shape: with the layer axis first in the group "layers".
        axes: one logical axis per dimension (`gpt4jax.model.axes`).
        std: standard deviation of the normal initializer; 0 with `fill` for a constant.
        fill: the constant when `std` is 0.
        role: its muP role: "input", "hidden", "query", "output" or "vector" (`gpt4jax.model.mup`).
        decay: whether AdamW's weight decay applies.
        hf_name: its name in Hugging Face's layout, `{layer}` standing for the layer's number.
        hf_part: (i, parts in units) if `hf_name` fuses several of our parameters: this is slice i.
        hf_transposed: whether Hugging Face stores the matrix as (out, in).
        matmul: whether the forward pass multiplies each token by it.
        inputs: of a layer's matrix: how many axes, after the layers', are its inputs.
        learning_rate, eps: factors of the schedule's rate and of Adam's eps.
    """

    group: str
    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]
    std: float
    fill: float
    role: str
    decay: bool
    hf_name: str
    hf_part: tuple[int, tuple[int, ...]] | None = None
    hf_transposed: bool = False
    matmul: bool = False
    inputs: int = 0
    learning_rate: float = 1.0
    eps: float = 1.0

    @property
    def size(self) -> int:
        """The number of values, a Python integer of any size."""
        return math.prod(self.shape)


def table(config: Config) -> tuple[Parameter, ...]:
    """Every parameter of `config`'s decoder, in a fixed order."""
    rows = [*_embeddings(config), *_layers(config), *_norm(config, "final", "norm", 0, _hf(config, "final_norm"))]
    if config.position == "transformer_xl" and not config.xl_untie_biases:
        rows += _relative_biases(config, "shared")
    if not config.tie_embeddings:
        rows.append(
            Parameter(
                "final", "unembed_vd", (config.vocab_size, config.embed_dim), ("vocab", "embed"),
                std=config.init_std, fill=0.0, role="output", decay=True, hf_name="lm_head.weight", matmul=True,
            )
        )  # fmt: skip
    return (*(_scaled(config, row) for row in rows), *_vision(config))


def _scaled(config: Config, row: Parameter) -> Parameter:
    scale = mup.scale(config, row.role, row.group)
    return dataclasses.replace(row, std=row.std * scale.std, learning_rate=scale.learning_rate, eps=scale.eps)


def _embeddings(config: Config) -> list[Parameter]:
    # A tied token embedding is the output matrix too: that is where its multiplications are.
    rows = [
        Parameter(
            "embed", "token_vd", (config.vocab_size, config.embed_dim), ("vocab", "embed"),
            std=config.init_std, fill=0.0, role="input", decay=True,
            hf_name=_hf(config, "token"), matmul=config.tie_embeddings,
        )
    ]  # fmt: skip
    if config.position == "learned":
        rows.append(
            Parameter(
                "embed", "position_td", (config.max_seq_len, config.embed_dim), ("positions", "embed"),
                std=config.init_std, fill=0.0, role="input", decay=True, hf_name=_hf(config, "position"),
            )
        )  # fmt: skip
    return rows


def _layers(config: Config) -> list[Parameter]:
    d, f, h = config.embed_dim, config.mlp_dim, config.head_dim
    n, k = config.num_heads, config.num_kv_heads
    residual_std = mup.residual_std(config)
    fused = (n * h, k * h, k * h)
    rows = _norm(config, "layers", "attention_norm", config.num_layers, _hf(config, "attention_norm"))
    for i, (name, letter, heads) in enumerate((("query", "n", n), ("key", "k", k), ("value", "k", k))):
        axis = "heads" if name == "query" else "kv_heads"
        part = (i, fused) if _gpt2_names(config) else None
        rows += _linear(
            config, name, (d,), (heads, h), ("embed",), (axis, "head_dim"), f"d{letter}h", config.init_std, part
        )
        if config.qk_norm and name != "value":
            rows.append(_vector(config, "layers", f"{name}_norm_h", (h,), ("head_dim",), 1.0, f"{name}_norm"))
    if config.position == "transformer_xl":  # the paper's W_k,R (without a bias, as its authors' code) and u and v
        heads_axes = ("kv_heads", "head_dim")
        relative = _linear(config, "relative", (d,), (k, h), ("embed",), heads_axes, "dkh", config.init_std)[0]
        rows.append(dataclasses.replace(relative, matmul=False))  # it multiplies distances, not tokens
        rows += _relative_biases(config, "layers") if config.xl_untie_biases else []
    rows += _linear(config, "out", (n, h), (d,), ("heads", "head_dim"), ("embed",), "nhd", residual_std)
    rows += _norm(config, "layers", "mlp_norm", config.num_layers, _hf(config, "mlp_norm"))
    if config.activation == "swiglu":
        rows += _linear(config, "gate", (d,), (f,), ("embed",), ("mlp",), "df", config.init_std)
    rows += _linear(config, "up", (d,), (f,), ("embed",), ("mlp",), "df", config.init_std)
    rows += _linear(config, "down", (f,), (d,), ("mlp",), ("embed",), "fd", residual_std)
    return rows


def _relative_biases(config: Config, group: str) -> list[Parameter]:
    """Transformer-XL's u and v, drawn as its authors draw them; "shared" by all layers or of each of the "layers"."""
    shape: tuple[int, ...] = (config.num_heads, config.head_dim)
    axes: tuple[str, ...] = ("heads", "head_dim")
    prefix = "model."
    if group == "layers":
        shape, axes, prefix = (config.num_layers, *shape), ("layers", *axes), "model.layers.{layer}.self_attn."
    return [
        Parameter(
            group, f"{name}_bias_nh", shape, axes,
            std=config.init_std, fill=0.0, role="vector", decay=False, hf_name=prefix + theirs,
        )
        for name, theirs in (("content", "r_w_bias"), ("distance", "r_r_bias"))
    ]  # fmt: skip


def _linear(
    config: Config,
    name: str,
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
    input_axes: tuple[str, ...],
    output_axes: tuple[str, ...],
    letters: str,
    std: float,
    hf_part: tuple[int, tuple[int, ...]] | None = None,
) -> list[Parameter]:
    layers, hf = config.num_layers, _hf(config, name)
    rows = [
        Parameter(
            "layers", f"{name}_{letters}", (layers, *inputs, *outputs), ("layers", *input_axes, *output_axes),
            std=std, fill=0.0, role="query" if name == "query" else "hidden", decay=True,
            hf_name=hf + ".weight", hf_part=hf_part,
            hf_transposed=not _gpt2_names(config), matmul=True, inputs=len(inputs),
        )
    ]  # fmt: skip
    if config.use_bias:
        rows.append(
            dataclasses.replace(
                _vector(config, "layers", f"{name}_bias_{letters[len(inputs) :]}", outputs, output_axes, 0.0, name),
                hf_name=hf + ".bias", hf_part=hf_part,
            )
        )  # fmt: skip
    return rows


def _vector(
    config: Config, group: str, name: str, shape: tuple[int, ...], axes: tuple[str, ...], fill: float, hf: str
) -> Parameter:
    stacked = group == "layers"
    return Parameter(
        group, name, ((config.num_layers, *shape) if stacked else shape), (("layers", *axes) if stacked else axes),
        std=0.0, fill=fill, role="vector", decay=False, hf_name=_hf(config, hf) + ".weight",
    )  # fmt: skip


def _norm(config: Config, group: str, name: str, layers: int, hf: str) -> list[Parameter]:
    shape = (layers, config.embed_dim) if layers else (config.embed_dim,)
    axes = ("layers", "norm") if layers else ("norm",)
    fields: dict[str, Any] = dict(shape=shape, axes=axes, std=0.0, role="vector", decay=False)
    rows = [Parameter(group, f"{name}_d", fill=1.0, hf_name=hf + ".weight", **fields)]
    if config.norm == "layernorm":
        rows.append(Parameter(group, f"{name}_bias_d", fill=0.0, hf_name=hf + ".bias", **fields))
    return rows


def _vision(config: Config) -> list[Parameter]:
    """An image frontend (`gpt4jax.model.vision`): patches, ViT, resampler, and the projection into the decoder."""
    vision = config.vision
    if vision is None:
        return []
    width = vision.embed_dim if vision.encoder else config.embed_dim
    # Patches and their places come out equally large, and larger than tokens: small decoders then learn to see sooner.
    # Nearly all of a patch's many values may be the same (a white ground), and a step of Adam then moves what comes out
    # by as many times its learning rate: so that is smaller here.
    std, root = 5 * config.init_std, vision.channels**-0.5
    kernel = _of_images("vision", "patch_cd", (vision.channels, width), ("patch", "embed"), std * root)
    rows = [
        dataclasses.replace(kernel, learning_rate=root),
        _of_images("vision", "patch_bias_d", (width,), ("norm",)),
        _of_images("vision", "row_td", (vision.max_patches, width), ("positions", "embed"), std),
        _of_images("vision", "column_td", (vision.max_patches, width), ("positions", "embed"), std),
    ]
    if vision.patch_norm:
        rows += [
            _of_images("vision", "level_cd", (2, width), ("patch", "embed"), config.init_std),
            _of_images("vision", "patch_norm_d", (width,), ("norm",), fill=0.3),
        ]
    if not vision.encoder:
        return rows
    if vision.class_token:
        rows.append(_of_images("vision", "class_d", (width,), ("norm",), config.init_std))
    rows += [*_image_norm("vision", "pre_norm", width), *_image_norm("vision", "norm", width)]
    rows += [
        dataclasses.replace(row, group="vision_layers", hf_name="", matmul=False) for row in _layers(encoder(config))
    ]
    if vision.frozen:  # weights that no gradient moves must not decay either
        rows = [dataclasses.replace(row, decay=False) for row in rows]
    if vision.frontend == "resampler":
        rows += _resampler(config, vision)
    if vision.clip_dim:
        for name, inner in (("image_de", width), ("text_de", config.embed_dim)):
            rows.append(_of_images("clip", name, (inner, vision.clip_dim), ("embed", "mlp"), inner**-0.5))
        rows.append(_of_images("clip", "log_scale", (), (), fill=math.log(1 / 0.07)))
    rows.append(_of_images("projector", "kernel_de", (width, config.embed_dim), ("mlp", "embed"), config.init_std))
    return [*rows, _of_images("projector", "bias_e", (config.embed_dim,), ("norm",))]


def _of_images(
    group: str, name: str, shape: tuple[int, ...], axes: tuple[str, ...], std: float = 0.0, fill: float = 0.0
) -> Parameter:
    """A parameter of an image frontend: Hugging Face's layout has no name for it; vectors and tables don't decay."""
    matrix = bool(std) and name[-2:] != "td" and len(shape) > 1
    return Parameter(
        group, name, shape, axes, std=std, fill=fill, role="hidden" if std else "vector", decay=matrix, hf_name=""
    )


def _image_norm(group: str, name: str, width: int, layers: tuple[int, ...] = ()) -> list[Parameter]:
    axes = (*["layers"] * len(layers), "norm")
    shape = (*layers, width)
    return [_of_images(group, f"{name}_d", shape, axes, fill=1.0), _of_images(group, f"{name}_bias_d", shape, axes)]


def _resampler(config: Config, vision: VisionConfig) -> list[Parameter]:
    d, n, layers, std = vision.embed_dim, vision.num_heads, vision.resampler_layers, config.init_std
    out_std = std / math.sqrt(2 * max(layers, 1))
    heads, heads_axes = (n, d // n), ("heads", "head_dim")
    shapes: dict[str, tuple[tuple[int, ...], tuple[str, ...], float]] = {
        **{f"{name}_dnh": ((d, *heads), ("embed", *heads_axes), std) for name in ("query", "key", "value")},
        "out_nhd": ((*heads, d), (*heads_axes, "embed"), out_std),
        "up_df": ((d, 4 * d), ("embed", "mlp"), std),
        "down_fd": ((4 * d, d), ("mlp", "embed"), out_std),
    }
    # Flamingo's latents are drawn from the unit normal.
    rows = [_of_images("resampler", "latent_td", (vision.resampler_len, d), ("positions", "embed"), 1.0)]
    rows += _image_norm("resampler", "norm", d)
    for name in ("context_norm", "attention_norm", "mlp_norm"):
        rows += _image_norm("resampler_layers", name, d, (layers,))
    return rows + [
        _of_images("resampler_layers", name, (layers, *shape), ("layers", *axes), std)
        for name, (shape, axes, std) in shapes.items()
    ]


_GPT2_NAMES = {
    "token": "transformer.wte.weight",
    "position": "transformer.wpe.weight",
    "attention_norm": "transformer.h.{layer}.ln_1",
    "query": "transformer.h.{layer}.attn.c_attn",
    "key": "transformer.h.{layer}.attn.c_attn",
    "value": "transformer.h.{layer}.attn.c_attn",
    "out": "transformer.h.{layer}.attn.c_proj",
    "mlp_norm": "transformer.h.{layer}.ln_2",
    "up": "transformer.h.{layer}.mlp.c_fc",
    "down": "transformer.h.{layer}.mlp.c_proj",
    "final_norm": "transformer.ln_f",
}
_LLAMA_NAMES = {
    "token": "model.embed_tokens.weight",
    "position": "model.embed_positions.weight",
    "attention_norm": "model.layers.{layer}.input_layernorm",
    "query": "model.layers.{layer}.self_attn.q_proj",
    "key": "model.layers.{layer}.self_attn.k_proj",
    "value": "model.layers.{layer}.self_attn.v_proj",
    "query_norm": "model.layers.{layer}.self_attn.q_norm",
    "key_norm": "model.layers.{layer}.self_attn.k_norm",
    "relative": "model.layers.{layer}.self_attn.r_proj",
    "out": "model.layers.{layer}.self_attn.o_proj",
    "mlp_norm": "model.layers.{layer}.post_attention_layernorm",
    "gate": "model.layers.{layer}.mlp.gate_proj",
    "up": "model.layers.{layer}.mlp.up_proj",
    "down": "model.layers.{layer}.mlp.down_proj",
    "final_norm": "model.norm",
}


def _gpt2_names(config: Config) -> bool:
    """Whether the decoder has GPT-2's shape exactly; every other mixture takes Llama's names."""
    gpt2_choices = ("layernorm", "learned", "gelu", True)
    choices = (config.norm, config.position, config.activation, config.use_bias)
    return choices == gpt2_choices and not config.qk_norm and config.num_kv_heads == config.num_heads


def _hf(config: Config, name: str) -> str:
    return (_GPT2_NAMES if _gpt2_names(config) else _LLAMA_NAMES)[name]


def draw(row: Parameter, key: jax.Array, dtype: jnp.dtype) -> jax.Array:
    """The initial value of one parameter; its key depends on its own name alone, not on its neighbours."""
    if not row.std:
        return jnp.full(row.shape, row.fill, dtype)
    name_key = jax.random.fold_in(key, zlib.crc32(f"{row.group}/{row.name}".encode()))
    return row.std * jax.random.normal(name_key, row.shape, dtype)


def tree(config: Config, value) -> dict[str, dict[str, Any]]:
    """A tree of the parameters' structure with `value(row)` at each leaf."""
    out: dict[str, dict[str, Any]] = {}
    for row in table(config):
        out.setdefault(row.group, {})[row.name] = value(row)
    return out


def count(config: Config) -> dict[str, int]:
    """The number of parameters by group, and their "total": exact integers, nothing allocated."""
    groups = {"embed": 0, "attention": 0, "mlp": 0, "norm": 0, "unembed": 0}
    if config.vision is not None:
        groups["vision"] = 0
    for row in table(config):
        words = row.name.split("_")
        if row.group in VISION_GROUPS:
            groups["vision"] += row.size
        elif row.group == "embed":
            groups["embed"] += row.size
        elif "norm" in words:
            groups["norm"] += row.size
        elif words[0] == "unembed":
            groups["unembed"] += row.size
        else:
            groups["mlp" if words[0] in ("gate", "up", "down") else "attention"] += row.size
    return {**groups, "total": sum(groups.values())}
