"""What a run trains for: the next token of text (with images or without), or which image belongs to which text."""

import dataclasses
import pathlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from gpt4jax import files, model
from gpt4jax.data import captioned, images, interleaved, multimodal, pairs, text, tokenizer
from gpt4jax.errors import UserError
from gpt4jax.parallel import partition, processes
from gpt4jax.training import contrastive, evaluation, step
from gpt4jax.training.state import TrainState

Say = Callable[[str], None]


class Objective(NamedTuple):
    """An objective with its data.

    Attributes:
        tokenizer, facts: of the data; facts are kept as `data.json` beside the run.
        rows: what the batches of training are made of, as `loader.train_batches` takes it.
        batch_of: from the loader's arrays to what a step takes.
        step: from (optimizer, schedule) to a function of (state, batch), to be jitted.
        evaluation: from (mesh, shardings of the state) to a function of (parameters, stop).
    """

    tokenizer: tokenizer.Tokenizer
    facts: dict[str, Any]
    rows: Any
    batch_of: Callable[[Any], Any]
    step: Callable[[optax.GradientTransformation, optax.Schedule], Callable]
    evaluation: Callable[[Mesh, TrainState], Callable]


def of(config, model_config: model.Config, cache_dir: files.Path, say: Say, foreign=None) -> Objective:
    """The objective of a config; `foreign` is the tokenizer of weights that the run starts from.

    Raises:
        UserError: what is wrong with the data.
    """
    if model_config.vision is not None and model_config.vision.clip_dim:
        return processes.first_then_others(lambda: _contrastive(config, model_config, files.on_disk(cache_dir), say))
    if model_config.vision is None:
        data = text.load(config.data, model_config.vocab_size, cache_dir, say, foreign)
    else:
        options = config.data, model_config.vision, model_config.vocab_size, files.on_disk(cache_dir), say
        data = processes.first_then_others(lambda: multimodal.load(*options))

    return Objective(
        data.tokenizer, data.facts, data.of("train"), step.Batch.of, partial(language_step, config, model_config),
        partial(_language_evaluation, config, model_config, data),
    )  # fmt: skip


def language_step(config, model_config: model.Config, tx: optax.GradientTransformation, schedule: optax.Schedule):
    """The step of a run that trains for the next token: a function of (state, batch), to be jitted."""
    options = config.optimizer
    return partial(
        step.train_step, model_config, tx, schedule, seed=config.seed, micro_batches=options.micro_batches,
        z_loss=options.z_loss,
    )  # fmt: skip


def abstract_batch(config, model_config: model.Config) -> step.Batch:
    """The shapes of such a step's batch, which no data are needed for.

    Raises:
        ValueError: a contrastive run, whose batches are made of pairs.
    """
    if model_config.vision is not None and model_config.vision.clip_dim:
        raise ValueError("vision.clip_dim: the batches of contrastive training are not planned")
    names = ("tokens", "targets", "segment_ids", "positions", "bytes")
    row = {name: np.zeros(config.data.seq_len, np.int32) for name in names}
    if model_config.vision is not None:
        row = interleaved.empty_row(multimodal.room(config.data), model_config.vision)
    shapes: dict[str, Any] = {
        name: jax.ShapeDtypeStruct((config.batch_size, *array.shape), array.dtype) for name, array in row.items()
    }
    return step.Batch.of(shapes)


def _language_evaluation(config, model_config, data, mesh, shardings):
    eval_rows = config.eval.batch_size or config.batch_size
    eval_config = dataclasses.replace(model_config, memory_len=eval_memory(config, model_config))
    rows, everywhere = partition.batch_sharding(mesh), partition.replicated(mesh)
    behind = partition.memory_sharding(mesh) if eval_config.memory_len else None
    eval_step = jax.jit(
        partial(step.eval_step, eval_config),
        in_shardings=(shardings.params, rows, behind), out_shardings=(everywhere, behind), donate_argnums=2,
    )  # fmt: skip
    right_step = jax.jit(  # the answers' places beside it, so that every process has those of all rows
        lambda params, batch, answers_bt: (step.right_step(eval_config, params, batch), answers_bt),
        in_shardings=(shardings.params, rows, rows), out_shardings=everywhere,
    )  # fmt: skip
    no_memory = jax.jit(
        lambda: model.init_memory(eval_config, eval_rows) if eval_config.memory_len else None, out_shardings=behind
    )
    return evaluation.of_text(config, mesh, data, eval_step, right_step, no_memory)


def eval_memory(config, model_config: model.Config) -> int:
    """Tokens of memory in evaluations."""
    return max(0, config.eval.memory_len or model_config.memory_len)


def _contrastive(config, model_config: model.Config, cache_dir: pathlib.Path, say: Say) -> Objective:
    """Pairs of `data.dataset` for training; of the captioned images in `data.eval_split` each is to be named."""
    options, vision = config.data, model_config.vision
    assert vision is not None
    if config.mesh.context != 1:
        raise UserError(
            f"mesh.context is {config.mesh.context}; contrastive training has no rows to divide: set it to 1"
        )
    if config.optimizer.micro_batches != 1:
        raise UserError("optimizer.micro_batches: a contrastive loss is of a whole batch, which has no parts")
    trained, held = (captioned.of(name, cache_dir) for name in (options.dataset, options.eval_split))
    tok = tokenizer.with_images(
        tokenizer.get(options.tokenizer, cache_dir, lambda: [one.caption for one in trained], captioned.digest(trained))
    )
    multimodal.check_tokenizer(tok, vision, model_config.vocab_size)
    size = vision.patch_size * vision.max_patches
    known = pairs.decoded(captioned.by_name(trained), size)
    rows = pairs.Pairs(known, tok, vision, options.seq_len, config.batch_size, config.seed, pairs.varied)
    names = sorted({one.caption for one in held})
    say(
        f"{options.dataset}: {len(trained):,} images with texts, {rows.steps_per_epoch} steps an epoch; "
        f"{options.eval_split}: {len(held):,} images of {len(names):,} names"
    )
    number = {name: i for i, name in enumerate(names)}
    data = contrastive.ZeroShot(
        [images.decode(one.data, one.key) for one in held], [number[one.caption] for one in held], names
    )
    facts = {
        "dataset": options.dataset, "fingerprint": captioned.digest(trained), "eval": options.eval_split,
        "eval_fingerprint": captioned.digest(held), "tokenizer": tok.name, "tokenizer_fingerprint": tok.fingerprint,
    }  # fmt: skip
    measure = contrastive.evaluation_of(
        model_config, data, config.eval.prompts, tok, options.seq_len, config.eval.batch_size or config.batch_size
    )
    return Objective(
        tok, facts, rows, contrastive.PairBatch.of,
        lambda tx, schedule: partial(contrastive.train_step, model_config, tx, schedule),
        lambda mesh, shardings: measure,
    )  # fmt: skip
