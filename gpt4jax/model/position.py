"""Rotary positions (Su et al. 2021, RoFormer)."""

import jax
import jax.numpy as jnp


def rope_angles(positions_bt: jax.Array, head_dim: int, theta: float, dtype: jnp.dtype) -> tuple[jax.Array, jax.Array]:
    """Cosine and sine of each position's angles, (B, T, 1, head_dim / 2), in `dtype`.

    Pair i turns by position * theta^(-2 i / head_dim) radians (RoFormer, equation 15).
    """
    frequency_i = theta ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
    angle_bt1i = positions_bt[:, :, None, None].astype(dtype) * frequency_i
    return jnp.cos(angle_bt1i), jnp.sin(angle_bt1i)


def rotate(x_btnh: jax.Array, cos_bt1i: jax.Array, sin_bt1i: jax.Array) -> jax.Array:
    """Turns dimension i together with i + head_dim / 2, as the Llama and Hugging Face weights have them."""
    first, second = jnp.split(x_btnh.astype(cos_bt1i.dtype), 2, axis=-1)
    turned = (first * cos_bt1i - second * sin_bt1i, second * cos_bt1i + first * sin_bt1i)
    return jnp.concatenate(turned, axis=-1).astype(x_btnh.dtype)
