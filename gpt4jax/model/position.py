"""Rotary positions (Su et al. 2021, RoFormer), and their scaling to rows longer than a model was trained on."""

import math

import jax
import jax.numpy as jnp

from gpt4jax.model.config import Config


def rope_angles(config: Config, positions_bt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each position's angles, (B, T, 1, head_dim / 2), in the stable dtype.

    Pair i turns by position * theta^(-2 i / head_dim) radians (RoFormer, equation 15), the frequency being
    scaled as `config.rope_scaling` says. YaRN multiplies cosine and sine by its attention factor too.
    """
    dtype, head_dim = config.stable_dtype, config.head_dim
    frequency_i = config.rope_theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    attention_factor = 1.0
    if config.rope_scaling == "linear":
        frequency_i = frequency_i / config.rope_factor
    elif config.rope_scaling == "llama3":
        frequency_i = llama3_frequencies(config, frequency_i)
    elif config.rope_scaling == "yarn":
        frequency_i = yarn_frequencies(config, frequency_i)
        attention_factor = config.rope_attention_factor or 0.1 * math.log(config.rope_factor) + 1  # equation 22
    angle_bt1i = positions_bt[:, :, None, None].astype(dtype) * frequency_i
    if attention_factor == 1:
        return jnp.cos(angle_bt1i), jnp.sin(angle_bt1i)
    return attention_factor * jnp.cos(angle_bt1i), attention_factor * jnp.sin(angle_bt1i)


def llama3_frequencies(config: Config, frequency_i: jax.Array) -> jax.Array:
    """Llama 3.1's scaling (Meta's llama-models, `apply_scaling`), (head_dim / 2,).

    By its turns in `rope_original_max_len` tokens a frequency is kept (more than `rope_high_freq_factor`),
    divided by `rope_factor` (fewer than `rope_low_freq_factor`) or, between them, mixed linearly.
    """
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    turns_i = config.rope_original_max_len * frequency_i / (2 * math.pi)
    kept_i = jnp.clip((turns_i - low) / (high - low), 0, 1)
    return (1 - kept_i) * frequency_i / config.rope_factor + kept_i * frequency_i


def yarn_frequencies(config: Config, frequency_i: jax.Array) -> jax.Array:
    """YaRN's "NTK-by-parts" scaling (Peng et al. 2023, section 3.2), (head_dim / 2,).

    As llama3's, but the mixture is linear in i, between the whole numbers around the pairs that turn
    `rope_beta_fast` and `rope_beta_slow` times: so the authors' code has it, and `transformers`.
    """

    def pair(turns: float) -> float:
        wavelength = config.rope_original_max_len / (turns * 2 * math.pi)
        return config.head_dim * math.log(wavelength) / (2 * math.log(config.rope_theta))

    first = max(math.floor(pair(config.rope_beta_fast)), 0)
    last = min(math.ceil(pair(config.rope_beta_slow)), config.head_dim - 1)
    i = jnp.arange(len(frequency_i), dtype=frequency_i.dtype)
    divided_i = jnp.clip((i - first) / ((last - first) or 0.001), 0, 1)
    return divided_i * frequency_i / config.rope_factor + (1 - divided_i) * frequency_i


def rotate(x_btnh: jax.Array, cos_bt1i: jax.Array, sin_bt1i: jax.Array) -> jax.Array:
    """Turns dimension i together with i + head_dim / 2, as the Llama and Hugging Face weights have them."""
    first, second = jnp.split(x_btnh.astype(cos_bt1i.dtype), 2, axis=-1)
    turned = (first * cos_bt1i - second * sin_bt1i, second * cos_bt1i + first * sin_bt1i)
    return jnp.concatenate(turned, axis=-1).astype(x_btnh.dtype)
