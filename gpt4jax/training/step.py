"""One optimizer step and one evaluation step, as pure functions to be jitted."""

import dataclasses
import math
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from gpt4jax import model
from gpt4jax.model.axes import constrain
from gpt4jax.model.parameters import Params
from gpt4jax.model.vision import Images
from gpt4jax.training.loss import LossSums, chunks, joined, summed_loss
from gpt4jax.training.state import TrainState


class Batch(NamedTuple):
    """Packed rows, (B, T) integers, and their images, if any.

    Segment 0 is padding; `bytes_bt` is the length of each target in bytes.
    """

    tokens_bt: jax.Array
    targets_bt: jax.Array
    segment_ids_bt: jax.Array
    positions_bt: jax.Array
    bytes_bt: jax.Array
    images: Images | None = None

    @classmethod
    def of(cls, arrays: Mapping[str, jax.Array]) -> "Batch":
        """From the loader's names, which carry no axes."""
        names = ("tokens", "targets", "segment_ids", "positions", "bytes")
        images = None
        if "patches" in arrays:
            images = Images.of(arrays)
        tokens_bt, targets_bt, segment_ids_bt, positions_bt, bytes_bt = (arrays[name] for name in names)
        return cls(tokens_bt, targets_bt, segment_ids_bt, positions_bt, bytes_bt, images)


class Totals(NamedTuple):
    """Sums over some rows: nats, target tokens and bytes of text; and tokens of any kind, images' among them."""

    nll: jax.Array
    targets: jax.Array
    bytes: jax.Array
    tokens: jax.Array

    @classmethod
    def of(cls, config: model.Config, batch: Batch, nll: jax.Array) -> "Totals":
        """Of a batch with the loss `nll`."""
        targets = jnp.sum(is_target(config, batch))
        return cls(nll, targets, jnp.sum(batch.bytes_bt), jnp.sum(batch.segment_ids_bt > 0))


def is_target(config: model.Config, batch: Batch) -> jax.Array:
    """Which places have a target that counts, (B, T): text, and no padding; a target of -1 is not asked for.

    An image's patches are no text, nor are the tokens before and after them, whose ids lie beside the patches' id.
    """
    real_bt = (batch.segment_ids_bt > 0) & (batch.targets_bt >= 0)
    if config.vision is None:
        return real_bt
    return real_bt & (jnp.abs(batch.targets_bt - config.vision.image_token) > 1)


def bits_per_byte(nll: float, num_bytes: float) -> float:
    """Bits per byte of text from a sum of nats over all its tokens (each document's end among them)."""
    return nll / (math.log(2) * num_bytes)


def batch_loss(
    config: model.Config,
    params: Params,
    batch: Batch,
    memory: model.Memory | None = None,
    *,
    z_loss: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[LossSums, model.Memory | None]:
    """The summed loss of a batch: features, then the chunked cross-entropy; padding weighs nothing.

    With the memory behind the batch, which the next one has before it; None for None.
    """
    x_btd, state = model.features(
        config,
        params,
        batch.tokens_bt,
        segment_ids_bt=batch.segment_ids_bt,
        positions_bt=batch.positions_bt,
        images=batch.images,
        state=memory,
        dropout_key=dropout_key,
    )
    sums = summed_loss(config, params, x_btd, batch.targets_bt, is_target(config, batch), z_loss)
    return sums, memory and (state if isinstance(state, model.Memory) else None)


def gradients(
    config: model.Config,
    params: Params,
    batch: Batch,
    memory: model.Memory | None = None,
    *,
    micro_batches: int = 1,
    z_loss: float = 0.0,
    dropout_key: jax.Array | None = None,
) -> tuple[Params, Totals, model.Memory | None]:
    """The gradient of the mean loss per target token of the whole batch, the batch's totals, and the next memory.

    Every micro-batch is divided by the count of target tokens in the whole (global) batch, so that
    neither micro-batches nor shards with more padding change a token's weight.
    """
    scale = 1 / jnp.sum(is_target(config, batch)).astype(config.stable_dtype)

    def one(micro: Batch, key: jax.Array | None, memory: model.Memory | None):
        def mean(p):
            sums, new = batch_loss(config, p, micro, memory, z_loss=z_loss, dropout_key=key)
            return sums.objective * scale, (sums.nll, new)

        return jax.grad(mean, has_aux=True)(params)

    if micro_batches == 1:
        grads, (nll, memory) = one(batch, dropout_key, memory)
        return grads, Totals.of(config, batch, nll), memory

    keys = None if dropout_key is None else jax.random.split(dropout_key, micro_batches)
    micro = jax.tree.map(lambda a: split_rows(a, micro_batches), (batch, _swapped(memory)))
    zeros = jax.tree.map(lambda p: jnp.zeros(p.shape, config.stable_dtype), (params, jnp.zeros(())))

    def add(sums, xs):
        (rows, behind), key = xs
        grads, (nll, new) = one(rows, key, _swapped(behind))
        return jax.tree.map(lambda total, part: total + part.astype(total.dtype), sums, (grads, nll)), _swapped(new)

    (grads, nll), parts = jax.lax.scan(add, zeros, (micro, keys))
    memory = _swapped(jax.tree.map(_join_rows, parts))
    return jax.tree.map(lambda g, p: g.astype(p.dtype), grads, params), Totals.of(config, batch, nll), memory


def _swapped(memory: model.Memory | None) -> model.Memory | None:
    """With the rows of the hidden states before the layers instead of behind them, or the other way round."""
    return memory and memory._replace(h_lbmd=memory.h_lbmd.swapaxes(0, 1))


def split_rows(a: jax.Array, n: int) -> jax.Array:
    """(B, ...) -> (n, B / n, ...), each part with rows of every shard, so that no row changes its device."""
    parts = a.reshape(a.shape[0] // n, n, *a.shape[1:]).swapaxes(0, 1)
    return jax.vmap(lambda part: constrain(part, "act_batch"))(parts)


def _join_rows(parts: jax.Array) -> jax.Array:
    """What `split_rows` took apart."""
    return constrain(parts.swapaxes(0, 1).reshape(-1, *parts.shape[2:]), "act_batch")


def train_step(
    config: model.Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: TrainState,
    batch: Batch,
    *,
    seed: int,
    micro_batches: int = 1,
    z_loss: float = 0.0,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step: the next state, and scalars, the loss in nats per token among them."""
    dropout_key = jax.random.fold_in(jax.random.key(seed), state.step) if config.dropout else None
    grads, totals, memory = gradients(
        config, state.params, batch, state.memory, micro_batches=micro_batches, z_loss=z_loss, dropout_key=dropout_key
    )
    updates, moments = optimizer.update(grads, state.moments, state.params)
    params = optax.apply_updates(state.params, updates)
    scalars = {
        "loss": totals.nll / totals.targets,
        "targets": totals.targets,
        "tokens": totals.tokens,
        "bytes": totals.bytes,
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step + 1)),
    }
    return TrainState(state.step + 1, params, moments, memory), scalars


def check_lowering(config: model.Config, mesh: Mesh, rows: int, seq_len: int) -> None:
    """Traces a batch's loss, which allocates nothing, if attention's lowering is asked for by name.

    Raises:
        ValueError: that lowering cannot do what the config asks of it.
    """
    if config.attention_lowering == "auto":
        return
    params = jax.eval_shape(
        lambda: model.init(dataclasses.replace(config, attention_lowering="auto"), jax.random.key(0))
    )
    batch = Batch(*[jax.ShapeDtypeStruct((rows, seq_len), jnp.int32)] * 5)  # type: ignore[arg-type] # shapes
    with jax.set_mesh(mesh):
        jax.eval_shape(lambda params, batch: batch_loss(config, params, batch)[0], params, batch)


def eval_step(
    config: model.Config, params: Params, batch: Batch, memory: model.Memory | None = None
) -> tuple[Totals, model.Memory | None]:
    """The totals of a batch, padding left out, and the next memory (None for None); dropout off."""
    sums, memory = batch_loss(config, params, batch, memory)
    return Totals.of(config, batch, sums.nll), memory


def right_step(config: model.Config, params: Params, batch: Batch) -> jax.Array:
    """Where the most probable token is the target, (B, T): all along an answer, and greedy decoding would give it."""
    x_btd, _ = model.features(
        config, params, batch.tokens_bt, segment_ids_bt=batch.segment_ids_bt, positions_bt=batch.positions_bt,
        images=batch.images,
    )  # fmt: skip
    id_v = jnp.arange(config.vocab_size)
    never_v = id_v < 0 if config.vision is None else jnp.abs(id_v - config.vision.image_token) <= 1  # drawn by nobody

    def right(x_bcd: jax.Array, targets_bc: jax.Array) -> jax.Array:
        logits_bcv = model.unembed(config, params, x_bcd)
        return jnp.argmax(jnp.where(never_v, -jnp.inf, logits_bcv), axis=-1) == targets_bc

    chunk = config.loss_chunk_len or x_btd.shape[1]
    found_nbc = jax.lax.map(lambda xs: right(*xs), chunks(chunk, x_btd, batch.targets_bt))
    return joined(found_nbc, x_btd.shape[1])
