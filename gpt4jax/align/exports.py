"""What a stage leaves behind: an ordinary folder of weights, with a head beside it if it is a reward model."""

import json
import shutil
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file, save_file

from gpt4jax import files, model, weights
from gpt4jax.align.answers import Head
from gpt4jax.align.config import STAGES
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import partition
from gpt4jax.training import init_from
from gpt4jax.weights import layout

FOLDER, HEAD, DONE = "export", "head.safetensors", "done.json"


def done(workdir: files.Path) -> dict[str, Any] | None:
    """What a stage said when it was done, or None."""
    text = files.text(workdir / DONE)
    return None if text is None else json.loads(text)


def place(name: str, workdir: files.Path) -> str:
    """Where weights of that name are: of a stage, in the job's workdir; else the name itself.

    Raises:
        UserError: a stage that is not done.
    """
    if name not in STAGES:
        return name
    if done(workdir / name) is None:
        raise UserError(
            f"the stage {name!r} is not done in {workdir}: put it before the stage that starts from it "
            f"(--config.stages), or name weights in its place (init_from)"
        )
    return str(workdir / name / FOLDER)


def write(
    workdir: files.Path, config: model.Config, params: Params, tokenizer: Tokenizer, head: Head | None, facts: Any
) -> None:
    """Writes the folder, and last of all that the stage is done; an older one goes."""
    here = files.on_disk(workdir)
    (here / DONE).unlink(missing_ok=True)
    shutil.rmtree(here / FOLDER, ignore_errors=True)
    weights.save(here / FOLDER, config, params, tokenizer)
    if head is not None:
        arrays = {name: np.asarray(jax.device_get(leaf)) for name, leaf in head.items()}
        save_file(arrays, here / FOLDER / HEAD)
    names = sorted(path.name for path in (here / FOLDER).iterdir())
    sums = dict(zip(names, files.checksums(here / FOLDER, names), strict=True))
    files.replace(workdir / DONE, json.dumps({**facts, "sha256": sums}, indent=2) + "\n")


class RewardModel(NamedTuple):
    """A reward model on devices."""

    config: model.Config
    params: Params
    head: Head


def reward_model(folder: str, config: model.Config, tokenizer: Tokenizer, mesh, cache_dir: files.Path) -> RewardModel:
    """The reward model that a stage left; activations and parameters have the types of `config`.

    Raises:
        UserError: there is none, or it reads another tokenizer's ids.
    """
    path = files.on_disk(files.user_path(folder))
    if not (path / HEAD).is_file():
        raise UserError(f"{folder} is no reward model: it has no {HEAD}, which the stage 'reward' writes")
    opened = weights.open_weights(folder, cache_dir=files.on_disk(cache_dir))
    theirs = None if opened.tokenizer is None else opened.tokenizer.pieces
    if theirs != tokenizer.pieces:
        raise UserError(
            f"the reward model {folder} has another tokenizer than the policy ({len(theirs or ())} and "
            f"{len(tokenizer.pieces)} ids): the same ids mean other texts to it"
        )
    found = init_from.like(opened.config, config)
    try:
        partition.check_parameters(found, mesh)
    except ValueError as error:
        raise UserError(f"the reward model {folder} does not divide over the mesh: {error}") from error
    params = layout.place(found, opened.tensors, partition.param_shardings(found, mesh))
    head = jax.device_put(load_file(path / HEAD), partition.replicated(mesh))
    return RewardModel(found, params, head)
