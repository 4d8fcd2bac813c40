"""Contrastive language-image pre-training (Radford et al. 2021, CLIP): two towers and one loss over a whole batch.

The image's tower is a decoder's ViT with class tokens, the text's the decoder itself, causal and read at the end of the
text: what is learnt here can be put into a decoder that then reads images.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp

from gpt4jax.model import vision
from gpt4jax.model.config import Config
from gpt4jax.model.decoder import features
from gpt4jax.model.vision import Images

LARGEST_SCALE = 100.0  # of similarities: section 2.5


def image_features(config: Config, params: Any, images: Images) -> jax.Array:
    """Unit vectors (B, I, E) of the images of some rows."""
    return _unit(config, vision.pooled(config, params, images), params["clip"]["image_de"])


def text_features(config: Config, params: Any, tokens_bt: jax.Array, length_b: jax.Array) -> jax.Array:
    """Unit vectors (B, E) of texts, read at the last of their `length_b` tokens, which is the end of text."""
    x_btd, _ = features(config, params, tokens_bt)
    x_bd = jnp.take_along_axis(x_btd, (length_b - 1)[:, None, None], axis=1)[:, 0]
    return _unit(config, x_bd, params["clip"]["text_de"])


def _unit(config: Config, x: jax.Array, kernel: jax.Array) -> jax.Array:
    y = (x @ kernel.astype(x.dtype)).astype(config.stable_dtype)
    return y / jnp.linalg.norm(y, axis=-1, keepdims=True)


def contrastive_loss(image_be: jax.Array, text_be: jax.Array, log_scale: jax.Array) -> jax.Array:
    """The mean of both cross-entropies in nats: of each image among the texts and of each text among the images.

    Image i belongs to text i; similarities are cosines times exp(log_scale) (CLIP, figure 3).
    """
    logits_bb = jnp.exp(log_scale) * image_be @ text_be.T
    right_b = jnp.diagonal(logits_bb)
    both = jax.nn.logsumexp(logits_bb, axis=1) + jax.nn.logsumexp(logits_bb, axis=0) - 2 * right_b
    return jnp.mean(both) / 2


def clipped(params: Any) -> Any:
    """The parameters with the scale at no more than 100, as CLIP has it after each step."""
    own = params["clip"]
    return {**params, "clip": {**own, "log_scale": jnp.minimum(own["log_scale"], math.log(LARGEST_SCALE))}}


def ranks(image_be: jax.Array, class_ce: jax.Array, label_b: jax.Array) -> jax.Array:
    """How many classes lie nearer to each image than its own one, (B,): 0 is right at once (zero-shot, section 3.1).

    Of equal similarities half count as nearer.
    """
    similar_bc = image_be @ class_ce.T
    own_b1 = jnp.take_along_axis(similar_bc, label_b[:, None], axis=1)
    ties_b = jnp.sum(similar_bc == own_b1, axis=1) - 1
    return jnp.sum(similar_bc > own_b1, axis=1) + ties_b // 2
