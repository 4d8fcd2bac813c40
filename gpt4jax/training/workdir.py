"""A run's folder: what may be resumed in it, and what must not be."""

import json
import os
import re
from typing import Any

import ml_collections

from gpt4jax import config as configuration
from gpt4jax import files
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.training import checkpoint

MAY_CHANGE = ("num_steps", "eval", "checkpoint", "mesh", "model.context_method", "data.cache_dir", "data.prefetch")


def open_workdir(
    workdir: files.Path, config: ml_collections.ConfigDict, start: configuration.Start | None = None
) -> None:
    """Creates a run's folder, or checks that the one there belongs to this run; changes no file in it.

    `start` gives the keys that the config has, as in `config.load`.

    Raises:
        UserError: it can't be written, holds something else, or was begun with another config.
    """
    saved = workdir / "config.json"
    try:
        if files.in_store(workdir):
            there = {path.relative_to(workdir).parts[0] for path in files.below(workdir)}
        else:
            workdir.mkdir(parents=True, exist_ok=True)
            if not os.access(workdir, os.W_OK):
                raise PermissionError(13, "Permission denied", str(workdir))
            there = {path.name for path in workdir.iterdir()}
    except (FileExistsError, NotADirectoryError, PermissionError, FileNotFoundError) as error:
        raise UserError(f"the workdir {workdir} can't be created or written: {error.strerror}") from error
    # data.json is written once the data are ready; before that a run has nothing to lose, and its config may change.
    if "data.json" not in there:
        if [name for name in there if not re.fullmatch(r"config\.json|joining|\w+\.json\.[0-9a-f]+\.part", name)]:
            raise UserError(f"{workdir} is not empty and no run of gpt4jax; choose another")
        if saved.is_file():  # killed between the two files, or somebody else's config
            configuration.from_json(saved, start)
        return
    if not saved.is_file():
        raise UserError(f"{workdir} has a data.json but no config.json: it is no run of gpt4jax, or a damaged one")
    different = configuration.differences(configuration.from_json(saved, start), config, MAY_CHANGE)
    if different:
        raise UserError(
            f"{workdir} was begun with another config; choose another workdir, or change back " + "; ".join(different)
        )


def record(
    workdir: files.Path, config: ml_collections.ConfigDict, facts: dict[str, Any], of_run: tokenizer.Tokenizer
) -> None:
    """Writes config.json, data.json and the tokenizer, after checking that the run was begun with these data.

    Raises:
        UserError: it was not, or it is past its last step.
    """
    newest = max(checkpoint.saved_steps(workdir), default=0)
    if newest > config.num_steps:
        raise UserError(f"{workdir} is at step {newest}, past num_steps {config.num_steps}")
    path = workdir / "data.json"
    before = files.text(path)
    if before is not None:
        try:
            old = json.loads(before)
            changed = [key for key in ("fingerprint", "tokenizer_fingerprint") if old[key] != facts[key]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged: without it nobody knows whether the data are the same") from error
        for key in changed:
            raise UserError(
                f"{workdir} was begun with other data: the {key.replace('_', ' ')} of {facts['dataset']} was "
                f"{old[key][:16]} and is {facts[key][:16]} (another Python version, or changed files?)"
            )
    files.replace(workdir / "config.json", configuration.to_json(config))
    files.replace(path, json.dumps(facts, indent=2) + "\n")
    tokenizer.keep(of_run, workdir)
