"""Attention over queries, keys and values: the seam where patterns and kernels plug in.

`attend` serves whole rows. A lowering takes the same arguments and gives the same result; which one runs is chosen by
backend, or by name:

    reference   every score at once: what the others are tested against
    blockwise   plain XLA, whose time and memory follow the blocks that a mask shows
    tpu         kernels for TPU, over the same parts of a mask
    gpu         kernels for GPU, over the same parts
    cudnn       cuDNN's attention on a GPU, for plain causal and banded masks

`cached.py` serves new tokens behind a KV cache.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from gpt4jax.model import blockwise as blocks
from gpt4jax.model import context, parts
from gpt4jax.model.arrangement import Where, follows
from gpt4jax.model.axes import shards
from gpt4jax.model.kernels import cudnn, gpu, tiling, tpu
from gpt4jax.model.masks import Mask, shown

LOWERINGS = ("reference", "blockwise", "tpu", "gpu", "cudnn")
_AUTO = {"tpu": ("tpu", "blockwise"), "gpu": ("cudnn", "gpu", "blockwise")}  # the first that can, by backend


def attend(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    mask: Mask | Sequence[Mask],
    where: Where = Where(),  # noqa: B008 # immutable
    *,
    offset: int = 0,
    soft_cap: float = 0.0,
    lowering: str = "auto",
    over: str = "",
) -> jax.Array:
    """softmax(q k / sqrt(H)) v over the keys that the mask shows in the query's own segment: (B, T, N, H).

    Query heads n = k * G + g share key/value head k (grouped-query attention). Scores and softmax are
    float32 (float64 for float64 inputs); `soft_cap` > 0 bounds the scores to soft_cap * tanh(score /
    soft_cap) before masking. A query that sees no key gives zeros, and no gradient.

    Query i is the token of key i + offset. `mask` is one for all heads, or one for each key/value head. But for
    `reference`, no lowering computes blocks that are hidden as a whole.

    "auto" is the first lowering of the default backend that can do what is asked: on TPUs "tpu" or "blockwise", on
    GPUs "cudnn", "gpu" or "blockwise", elsewhere "blockwise". A program that is compiled for another backend than the
    default one names its lowering.

    `over`: the method of `gpt4jax.model.context` by which tokens lie over the mesh axis `context`, in its order, while
    `where` has them in the row's; "": they lie on one device.

    Raises:
        ValueError: sizes that do not fit together, or a lowering that does not exist or cannot do what is asked.
    """
    t, s, kv_heads = q_btnh.shape[1], *k_bskh.shape[1:3]
    if not 0 <= offset <= s - t:
        raise ValueError(f"{t} queries from place {offset} on are not among {s} keys")
    if lowering not in ("auto", *LOWERINGS):
        raise ValueError(f"attention has no lowering {lowering!r}; there are {', '.join(LOWERINGS)}")
    of_heads = [mask] * kv_heads if isinstance(mask, Mask) else list(mask)
    if len(of_heads) != kv_heads:
        raise ValueError(f"there are {len(of_heads)} masks for {kv_heads} key/value heads: one for all, or one each")
    if over and (offset or t != s):
        raise ValueError(
            f"{t} queries of {s} keys: where rows lie over the mesh axis context there are as many of both"
        )
    name = _chosen(lowering, q_btnh, k_bskh, of_heads, where, offset, soft_cap, over)
    if name == "reference":
        return reference(q_btnh, k_bskh, v_bskh, of_heads, where, offset, soft_cap)
    if name == "cudnn":
        return cudnn.attention(q_btnh, k_bskh, v_bskh, of_heads[0])
    passes = {"blockwise": blocks.TILES, "tpu": tpu.PASSES, "gpu": gpu.PASSES}[name]
    return by_parts(passes, q_btnh, k_bskh, v_bskh, of_heads, where, offset, soft_cap, over)


def _chosen(lowering, q_btnh, k_bskh, of_heads, where, offset, soft_cap, over) -> str:
    """The lowering that is asked for, or for "auto" the backend's first that can."""

    def refusal(name: str) -> str | None:
        if name in ("tpu", "gpu"):
            return tiling.refusal(q_btnh.dtype, of_heads)
        if over and name in ("reference", "cudnn"):
            return "rows over the mesh axis context"
        if name == "cudnn":
            return cudnn.refusal(q_btnh, k_bskh, of_heads, where, offset, soft_cap)
        return None

    names = _AUTO.get(jax.default_backend(), ("blockwise",)) if lowering == "auto" else (lowering,)
    able = [name for name in names if refusal(name) is None]
    if able:
        return able[0]
    others = [name for name in LOWERINGS if name not in ("reference", *names) and refusal(name) is None]
    raise ValueError(f"lowering {lowering!r} cannot do {refusal(lowering)}; {' and '.join(others)} can")


def reference(
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    of_heads: Sequence[Mask],
    where: Where,
    offset: int,
    soft_cap: float,
) -> jax.Array:
    """Every score at once, O(T S) memory."""
    t, s = q_btnh.shape[1], k_bskh.shape[1]
    q_bkgth, k_bksh, v_bksh = by_head(q_btnh, k_bskh.shape[2]), k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2)
    scores_bkgts = score(q_bkgth, k_bksh, soft_cap)
    positions_bs = jnp.arange(s)[None] if where.position_bs is None else where.position_bs
    q = slice(offset, offset + t)
    q_pos_bt1, k_pos_b1s = positions_bs[:, q, None], positions_bs[:, None]
    image = None if where.image_bs is None else (where.image_bs[0][:, q, None], where.image_bs[1][:, q, None])
    visible_bkts = jnp.stack([shown(mask, q_pos_bt1, k_pos_b1s, image) for mask in of_heads], axis=1)
    if where.segment_bs is not None:
        visible_bkts &= (where.segment_bs[:, q, None] == where.segment_bs[:, None])[:, None]
    if where.token_bs is not None and where.before_bs is not None:
        token_bt1 = where.token_bs[:, q, None]
        visible_bkts &= follows(q_pos_bt1, k_pos_b1s, token_bt1, where.before_bs[:, None])[:, None]
    visible_bkgts = visible_bkts[:, :, None]
    # A finite minimum, not -inf: exp still gives exactly 0, and no gradient is inf * 0.
    lowest = jnp.finfo(scores_bkgts.dtype).min
    weights_bkgts = jax.nn.softmax(jnp.where(visible_bkgts, scores_bkgts, lowest), axis=-1)
    weights_bkgts = jnp.where(visible_bkgts, weights_bkgts, 0).astype(v_bksh.dtype)
    return by_token(jnp.einsum("bkgts,bksh->bkgth", weights_bkgts, v_bksh))


def by_parts(
    passes: blocks.Passes,
    q_btnh: jax.Array,
    k_bskh: jax.Array,
    v_bskh: jax.Array,
    of_heads: Sequence[Mask],
    where: Where,
    offset: int,
    soft_cap: float,
    over: str,
) -> jax.Array:
    """By parts of the mask and tiles of each (`gpt4jax.model.blockwise`); heads of one pattern together."""
    t, s = q_btnh.shape[1], k_bskh.shape[1]
    q_bkgth, k_bksh, v_bksh = by_head(q_btnh, k_bskh.shape[2]), k_bskh.swapaxes(1, 2), v_bskh.swapaxes(1, 2)
    done: list[jax.Array] = []
    order: list[int] = []
    for heads, mask, indices in parts.head_groups(of_heads):
        some = len(heads) < len(of_heads)
        q, k, v = (a[:, jnp.asarray(heads)] if some else a for a in (q_bkgth, k_bksh, v_bksh))
        order += heads
        if over:
            plan = context.Plan(over, passes, mask, indices, where.plain, soft_cap, shards("act_len"))
            done.append(context.attention(plan, q, k, v, where))
            continue
        own = parts.split(mask, indices, where.plain, offset, t, s)
        own = own if passes is blocks.TILES else parts.without_windows(own)
        done.append(blocks.attention(passes, own, offset, soft_cap, q, k, v, where))
    y_bkgth = done[0] if len(done) == 1 else jnp.concatenate(done, axis=1)[:, jnp.argsort(jnp.asarray(order))]
    return by_token(y_bkgth)


def by_head(q_btnh: jax.Array, kv_heads: int) -> jax.Array:
    """Scaled queries (B, K, G, T, H)."""
    b, t, n, h = q_btnh.shape
    return (q_btnh * h**-0.5).reshape(b, t, kv_heads, n // kv_heads, h).transpose(0, 2, 3, 1, 4)


def by_token(y_bkgth: jax.Array) -> jax.Array:
    """(B, T, N, H) again."""
    b, k, g, t, h = y_bkgth.shape
    return y_bkgth.transpose(0, 3, 1, 2, 4).reshape(b, t, k * g, h)


def score(q_bkgth: jax.Array, k_bksh: jax.Array, soft_cap: float) -> jax.Array:
    """Scores (B, K, G, T, S) in the stable type, bounded by the soft cap if there is one."""
    stable = jnp.promote_types(q_bkgth.dtype, jnp.float32)
    scores = jnp.einsum("bkgth,bksh->bkgts", q_bkgth, k_bksh, preferred_element_type=stable)
    return soft_cap * jnp.tanh(scores / soft_cap) if soft_cap else scores
