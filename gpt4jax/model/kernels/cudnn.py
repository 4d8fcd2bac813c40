"""cuDNN's fused attention, through `jax.nn.dot_product_attention`, for the masks that it gets right.

It takes segment ids and ignores them (packed documents would see each other), and with a window that is not also
causal it attends to the future: so it is never given the one, and never without the other.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gpt4jax.model.arrangement import Where
from gpt4jax.model.masks import And, Banded, Causal, Full, Mask

MAX_HEAD_DIM = 128


def window(mask: Mask) -> int | None:
    """Of a mask that is causal, and banded by so many keys or (0) by none; None: it is another."""
    if isinstance(mask, Causal):
        return 0
    if not isinstance(mask, And):
        return None
    flat: list[Mask] = []
    for part in mask.parts:
        inner = part.parts if isinstance(part, And) else (part,)
        flat += [one for one in inner if not isinstance(one, Full)]
    if Causal() not in flat or not all(isinstance(one, Causal | Banded) for one in flat):
        return None
    return min((one.window for one in flat if isinstance(one, Banded)), default=0)


def refusal(
    q_btnh: jax.Array, k_bskh: jax.Array, of_heads: Sequence[Mask], where: Where, offset: int, soft_cap: float
) -> str | None:
    """What cuDNN cannot do, or does wrong, of what is asked, in words; None: it can do it."""
    if where.segment_bs is not None:
        return "rows of several segments"
    if where.token_bs is not None:
        return "an induction layer"
    if soft_cap:
        return "a soft cap"
    if offset or q_btnh.shape[1] != k_bskh.shape[1]:
        return "fewer queries than keys"
    if len(set(of_heads)) > 1 or window(of_heads[0]) is None:
        return "a mask other than causal, or causal and banded, for all heads"
    if q_btnh.dtype not in (jnp.bfloat16, jnp.float16):
        return f"{q_btnh.dtype.name}, only bfloat16 and float16"
    if q_btnh.shape[-1] > MAX_HEAD_DIM or q_btnh.shape[-1] % 8:
        return f"heads of {q_btnh.shape[-1]}, only of multiples of 8 up to {MAX_HEAD_DIM}"
    return None


def attention(q_btnh: jax.Array, k_bskh: jax.Array, v_bskh: jax.Array, mask: Mask) -> jax.Array:
    """As `attention.attend`, where there is no `refusal`: (B, T, N, H)."""
    size = window(mask)
    return jax.nn.dot_product_attention(
        q_btnh,
        k_bskh,
        v_bskh,
        is_causal=True,
        local_window_size=(size - 1, 0) if size else None,
        implementation="cudnn",
    )
