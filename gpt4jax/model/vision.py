"""Images in the decoder: patches, and the frontends that make token embeddings of them.

An image is cut into square patches, row by row. A row of a batch has the patches of all its images one after another,
in the order in which the images stand in its text; in the text each image is `image_len` copies of the token
`image_token`, whose embeddings the frontend gives:

    linear      each patch, projected into the decoder (Fuyu-8B)
    vit         each patch, through a ViT (Dosovitskiy et al. 2021) in which an image's patches see each other, packed
                as NaViT packs them (Dehghani et al. 2023)
    resampler   a fixed number of latents that look at the ViT's patches (Flamingo, section 3.1; KOSMOS-1)

Inside an image tokens see each other in both directions, everything else is causal (`masks.together`).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax.model import context, layers, masks
from gpt4jax.model.arrangement import Where
from gpt4jax.model.attention import attend
from gpt4jax.model.axes import constrain
from gpt4jax.model.config import Config, encoder
from gpt4jax.model.layers import Rows
from gpt4jax.model.vision_config import VisionConfig

_CONTRAST = 0.05  # of pixels from -1 to 1: what differs less is not made as large as what differs more


class Images(NamedTuple):
    """The images of a batch's rows.

    Attributes:
        patches_bpc: values of each patch, (B, P, 3 patch_size^2), as `patchify` orders them: uint8, or floats that are
            normalised already.
        image_bp: the number of the image that a patch belongs to, 1, 2, ... in its row; 0: no patch.
        row_bp, column_bp: where in its image's grid.
        image_bi: the numbers of the row's images: 1, 2, ..., and 0 where there are no more. Only I matters to a
            frontend without class tokens and resampler: nothing.
    """

    patches_bpc: Any
    image_bp: Any
    row_bp: Any
    column_bp: Any
    image_bi: Any

    @classmethod
    def of(cls, arrays: Mapping[str, Any]) -> "Images":
        """From the loader's names, which carry no axes."""
        return cls(arrays["patches"], arrays["image"], arrays["row"], arrays["column"], arrays["image_ids"])


class Embeddings(NamedTuple):
    """What a frontend made of images, (B, E, D): the embeddings of a row's image tokens in their order."""

    x_bed: Any


def patchify(image_hwc: np.ndarray, patch: int) -> np.ndarray:
    """The patches of an image, (rows * columns, patch * patch * C), row by row; values by y, x, channel.

    Raises:
        ValueError: no image of whole patches.
    """
    if image_hwc.ndim != 3 or 0 in image_hwc.shape or image_hwc.shape[0] % patch or image_hwc.shape[1] % patch:
        raise ValueError(f"an image of shape {image_hwc.shape} is not made of whole patches of {patch} x {patch}")
    h, w, c = image_hwc.shape
    cut = image_hwc.reshape(h // patch, patch, w // patch, patch, c).swapaxes(1, 2)
    return cut.reshape(-1, patch * patch * c)


def unpatchify(patches_pc: np.ndarray, rows: int, columns: int, patch: int) -> np.ndarray:
    """The image that `patchify` cut, (rows * patch, columns * patch, C).

    Raises:
        ValueError: patches that do not fill the grid.
    """
    if len(patches_pc) != rows * columns or patches_pc.shape[1] % patch**2:
        raise ValueError(
            f"patches of shape {patches_pc.shape} do not fill a grid of {rows} x {columns}, each {patch}^2"
        )
    cut = patches_pc.reshape(rows, columns, patch, patch, -1).swapaxes(1, 2)
    return cut.reshape(rows * patch, columns * patch, -1)


def embed(config: Config, params: Any, images: Images) -> Embeddings:
    """The embeddings of the image tokens of some rows, in the decoder's width and compute dtype.

    Raises:
        ValueError: a decoder without an image frontend, or patches of another size.
    """
    vision = config.vision
    if vision is None:
        raise ValueError("this decoder has no image frontend (config.vision): images must be None")
    if images.patches_bpc.shape[-1] != vision.channels:
        raise ValueError(f"patches have {images.patches_bpc.shape[-1]} values, not 3 x {vision.patch_size}^2")
    p, tower = params["vision"], params.get("vision_layers")
    if vision.frozen:
        p, tower = jax.tree.map(jax.lax.stop_gradient, (p, tower))
    x_bpd = _patches(config, vision, p, images)
    if not vision.encoder:
        return Embeddings(x_bpd)
    x_bpd, _ = encode(config, {"vision": p, "vision_layers": tower}, x_bpd, images)
    x_bed = layers.norm(encoder(config), x_bpd, p["norm_d"], p["norm_bias_d"])
    if vision.frontend == "resampler":
        x_bed = resample(config, params, x_bed, images)
    return Embeddings(layers.linear(x_bed, params["projector"]["kernel_de"], params["projector"]["bias_e"]))


def _patches(config: Config, vision: VisionConfig, p: Any, images: Images) -> jax.Array:
    """Patches projected, with the embeddings of their row and of their column (NaViT's factorised ones) added.

    With `patch_norm` a patch is normalised before and after (Kumar et al. 2023, "Dual PatchNorm"): most of its values
    are the same ground, in whose direction gradients would move the kernel and hardly in another's. What the first norm
    takes away, the mean and the contrast, has a small kernel of its own, so an even grey is not lost.
    """
    x_bpc = jnp.asarray(images.patches_bpc)
    if x_bpc.dtype == jnp.uint8:  # to -1 .. 1
        x_bpc = x_bpc.astype(config.stable_dtype) / 127.5 - 1
    if vision.patch_norm:
        x_bpc = x_bpc.astype(config.stable_dtype)
        mean_bp1 = jnp.mean(x_bpc, axis=-1, keepdims=True)
        x_bpc = x_bpc - mean_bp1
        contrast_bp1 = jnp.sqrt(jnp.mean(jnp.square(x_bpc), axis=-1, keepdims=True) + _CONTRAST**2)
        level_bp2 = jnp.concatenate([mean_bp1, contrast_bp1], axis=-1).astype(config.compute_dtype)
        x_bpd = layers.linear((x_bpc / contrast_bp1).astype(config.compute_dtype), p["patch_cd"], p["patch_bias_d"])
        x_bpd = layers.norm(config, x_bpd + layers.linear(level_bp2, p["level_cd"], None), p["patch_norm_d"], None)
    else:
        x_bpd = layers.linear(x_bpc.astype(config.compute_dtype), p["patch_cd"], p["patch_bias_d"])
    place = p["row_td"][images.row_bp] + p["column_td"][images.column_bp]
    return constrain(x_bpd + place.astype(x_bpd.dtype), "act_batch", "act_patches", "act_embed")


def encode(config: Config, params: Any, x_bpd: jax.Array, images: Images) -> tuple[jax.Array, jax.Array | None]:
    """Patches through the ViT's layers, before its last norm: (B, P, D), and if it has them its class tokens (B, I, D).

    As CLIP has it, a class token stands for a whole image, and a norm comes before the first layer.
    """
    vision, tower, p = config.vision, encoder(config), params["vision"]
    assert vision is not None
    ids_bs = jnp.asarray(images.image_bp)
    if vision.class_token:
        class_bid = jnp.broadcast_to(p["class_d"].astype(x_bpd.dtype), (*images.image_bi.shape, vision.embed_dim))
        x_bpd = jnp.concatenate([x_bpd, class_bid], axis=1)
        ids_bs = jnp.concatenate([ids_bs, images.image_bi], axis=1)
    x_bsd = layers.norm(tower, x_bpd, p["pre_norm_d"], p["pre_norm_bias_d"])
    # A token's position plays no part in layers that are not causal; its segment is its image.
    rows = Rows(jnp.zeros((1, x_bsd.shape[1]), jnp.int32), ids_bs, None)

    def run(x_bsd, layer):
        return layers.block(tower, "dense", layer, x_bsd, rows, None, None)[0], None

    if tower.remat != "none":
        run = jax.checkpoint(run)
    x_bsd, _ = jax.lax.scan(run, x_bsd, params["vision_layers"])
    patches = images.image_bp.shape[1]
    return x_bsd[:, :patches], x_bsd[:, patches:] if vision.class_token else None


def pooled(config: Config, params: Any, images: Images) -> jax.Array:
    """One vector for each image of a ViT with class tokens, (B, I, D): what CLIP compares with texts.

    Raises:
        ValueError: a frontend without class tokens.
    """
    vision = config.vision
    if vision is None or not vision.class_token:
        raise ValueError("one vector for an image needs a ViT with a class token (vision.class_token)")
    p = params["vision"]
    _, class_bid = encode(config, params, _patches(config, vision, p, images), images)
    assert class_bid is not None
    return layers.norm(encoder(config), class_bid, p["norm_d"], p["norm_bias_d"])


def resample(config: Config, params: Any, x_bpd: jax.Array, images: Images) -> jax.Array:
    """Flamingo's perceiver resampler: `resampler_len` latents an image look at its patches and at each other.

    (B, I * resampler_len, D). In every layer the latents ask, and patches and latents together answer (Alayrac et al.
    2022, appendix A.1.1); details where the paper is silent as in `transformers`' Idefics: no biases in products, ReLU.
    """
    vision, tower, p = config.vision, encoder(config), params["resampler"]
    assert vision is not None
    b, i = images.image_bi.shape
    patches = x_bpd.shape[1]
    x_bld = jnp.tile(p["latent_td"].astype(x_bpd.dtype), (b, i, 1))
    id_bl = jnp.repeat(jnp.asarray(images.image_bi), vision.resampler_len, axis=1)
    # Latents of images that are not there see no patch, and each other for themselves.
    where = Where(None, jnp.concatenate([jnp.asarray(images.image_bp), jnp.where(id_bl > 0, id_bl, -1)], axis=1))

    def run(x_bld, layer):
        context_bpd = layers.norm(tower, x_bpd, layer["context_norm_d"], layer["context_norm_bias_d"])
        latent_bld = layers.norm(tower, x_bld, layer["attention_norm_d"], layer["attention_norm_bias_d"])
        both_bsd = jnp.concatenate([context_bpd, latent_bld], axis=1)
        q_blnh = layers.linear(latent_bld, layer["query_dnh"], None)
        k_bsnh, v_bsnh = (layers.linear(both_bsd, layer[name], None) for name in ("key_dnh", "value_dnh"))
        y_blnh = attend(q_blnh, k_bsnh, v_bsnh, masks.full(), where, offset=patches, lowering=config.attention_lowering)
        x_bld = x_bld + layers.linear(y_blnh, layer["out_nhd"], None, inputs=2)
        hidden_blf = layers.norm(tower, x_bld, layer["mlp_norm_d"], layer["mlp_norm_bias_d"])
        hidden_blf = jax.nn.relu(layers.linear(hidden_blf, layer["up_df"], None))
        return x_bld + layers.linear(hidden_blf, layer["down_fd"], None), None

    x_bld, _ = jax.lax.scan(run, x_bld, params["resampler_layers"])
    return layers.norm(tower, x_bld, p["norm_d"], p["norm_bias_d"])


def put(vision: VisionConfig, x_btd: jax.Array, tokens_bt: jax.Array, embeddings: Embeddings) -> jax.Array:
    """Token embeddings with those of images in their places: the i-th image token of a row takes the row's i-th.

    Tokens come in the row's order, their embeddings as `context.spread` has them.
    """
    here_bt = tokens_bt == vision.image_token
    index_bt = jnp.clip(jnp.cumsum(here_bt, axis=1) - 1, 0, embeddings.x_bed.shape[1] - 1)
    here_bt, index_bt = context.spread(here_bt), context.spread(index_bt)
    image_btd = jnp.take_along_axis(embeddings.x_bed.astype(x_btd.dtype), index_bt[..., None], axis=1)
    return jnp.where(here_bt[..., None], image_btd, x_btd)


def spans(vision: VisionConfig, tokens_bt: jax.Array, positions_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The first and last position of the image that each token belongs to, (B, T) each; of none the last is -1.

    Images are runs of the image token; between two there is always another token, which begins the second.
    """
    here_bt = tokens_bt == vision.image_token
    t = jnp.arange(tokens_bt.shape[1])
    before_bt = jax.lax.cummax(jnp.where(here_bt, -1, t), axis=1)  # the last place before that is no image's
    after_bt = jax.lax.cummin(jnp.where(here_bt, tokens_bt.shape[1], t), axis=1, reverse=True)
    first_bt, last_bt = positions_bt + before_bt + 1 - t, positions_bt + after_bt - 1 - t
    return jnp.where(here_bt, first_bt, 0), jnp.where(here_bt, last_bt, -1)
