"""Next-token cross-entropy over a large vocabulary, without the logits of a whole batch at once."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from gpt4jax.model import unembed
from gpt4jax.model.axes import constrain, shards
from gpt4jax.model.config import Config
from gpt4jax.model.parameters import Params


class LossSums(NamedTuple):
    """Sums over target tokens: what is minimised, and the plain negative log-likelihood in nats."""

    objective: jax.Array
    nll: jax.Array


def summed_loss(
    config: Config, params: Params, x_btd: jax.Array, targets_bt: jax.Array, weights_bt: jax.Array, z_loss: float = 0.0
) -> LossSums:
    """Sum of weight * (nll + z_loss * log(Z)^2) over tokens; Z is the softmax's normaliser (PaLM, section 5).

    Logits exist for `config.loss_chunk_len` positions of each row at a time (0: all at once), of
    each of a row's shards an equal part. The gradient of a chunk is taken while its logits exist, in the forward pass,
    so that the backward pass neither keeps nor recomputes them. `nll` is a metric: no gradient flows through it.
    """
    chunk = config.loss_chunk_len or x_btd.shape[1]
    return LossSums(*_chunked(config, z_loss, chunk, _unembedding(config, params), x_btd, targets_bt, weights_bt))


def _unembedding(config: Config, params: Params) -> Params:
    """The part of the parameters that `unembed` reads, so that only it gets a gradient here."""
    group, name = ("embed", "token_vd") if config.tie_embeddings else ("final", "unembed_vd")
    return {group: {name: params[group][name]}}


def _chunk_sums(config, z_loss, params, x_bcd, targets_bc, weights_bc):
    logits_bcv = unembed(config, params, x_bcd)
    log_z_bc = jax.nn.logsumexp(logits_bcv, axis=-1)
    # A comparison instead of a gather: its gradient is no scatter, and XLA fuses it with the sum.
    hit_bcv = targets_bc[..., None] == jnp.arange(logits_bcv.shape[-1])
    nll_bc = log_z_bc - jnp.sum(jnp.where(hit_bcv, logits_bcv, 0), axis=-1)
    weights_bc = weights_bc.astype(nll_bc.dtype)
    nll = jnp.sum(nll_bc * weights_bc)
    return nll + z_loss * jnp.sum(jnp.square(log_z_bc) * weights_bc), nll


def chunks(chunk: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """(B, T, ...) -> (T / chunk, B, chunk, ...) of each array, T padded; of each of the row's shards an equal part."""
    parts = shards("act_len")
    each, own = -(-chunk // parts), arrays[0].shape[1] // parts

    def cut(a):
        a = a.reshape(a.shape[0], parts, own, *a.shape[2:])
        a = jnp.pad(a, [(0, -own % each if axis == 2 else 0) for axis in range(a.ndim)])
        a = jnp.moveaxis(a.reshape(*a.shape[:2], -1, each, *a.shape[3:]), 2, 0)
        return a.reshape(*a.shape[:2], parts * each, *a.shape[4:])

    return tuple(map(cut, arrays))


def joined(a: jax.Array, length: int) -> jax.Array:
    """What `chunks` took apart, without the padding."""
    n, b, _, *rest = a.shape
    parts = shards("act_len")
    a = jnp.moveaxis(a.reshape(n, b, parts, -1, *rest), 0, 2).reshape(b, parts, -1, *rest)
    return a[:, :, : length // parts].reshape(b, length, *rest)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _chunked(config, z_loss, chunk, params, x_btd, targets_bt, weights_bt):
    zero = jnp.zeros((), config.stable_dtype)

    def body(sums, xs):
        objective, nll = _chunk_sums(config, z_loss, params, *xs)
        return (sums[0] + objective, sums[1] + nll), None

    return jax.lax.scan(body, (zero, zero), chunks(chunk, x_btd, targets_bt, weights_bt))[0]


def _chunked_forward(config, z_loss, chunk, params, x_btd, targets_bt, weights_bt):
    zero = jnp.zeros((), config.stable_dtype)
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, config.stable_dtype), params)

    def body(carry, xs):
        (objective_sum, nll_sum), d_params = carry
        x_bcd, targets_bc, weights_bc = xs
        objective, pull, nll = jax.vjp(
            lambda p, x: _chunk_sums(config, z_loss, p, x, targets_bc, weights_bc), params, x_bcd, has_aux=True
        )
        d_chunk, dx_bcd = pull(jnp.ones_like(objective))
        d_params = jax.tree.map(lambda total, d: total + d.astype(total.dtype), d_params, d_chunk)
        return ((objective_sum + objective, nll_sum + nll), d_params), dx_bcd

    (sums, d_params), dx_nbcd = jax.lax.scan(body, ((zero, zero), zeros), chunks(chunk, x_btd, targets_bt, weights_bt))
    dx_btd = constrain(joined(dx_nbcd, x_btd.shape[1]), "act_batch", "act_len", "act_embed")
    return sums, (jax.tree.map(lambda d, p: d.astype(p.dtype), d_params, params), dx_btd)


def _chunked_backward(config, z_loss, chunk, residuals, cotangents):
    d_objective, _ = cotangents
    d_params, dx_btd = jax.tree.map(lambda d: d * d_objective.astype(d.dtype), residuals)
    return d_params, dx_btd, None, None


_chunked.defvjp(_chunked_forward, _chunked_backward)
