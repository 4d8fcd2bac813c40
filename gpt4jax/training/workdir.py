"""A run's folder: what may be resumed in it, and what must not be."""

import json
import os
import pathlib
from typing import Any

import ml_collections

from gpt4jax import config as configuration
from gpt4jax.errors import UserError

MAY_CHANGE = ("num_steps", "eval", "checkpoint", "mesh", "data.cache_dir", "data.prefetch")


def open_workdir(workdir: pathlib.Path, config: ml_collections.ConfigDict) -> None:
    """Creates a run's folder, or checks that the one there belongs to this run; writes config.json.

    Raises:
        UserError: it can't be written, holds something else, or was begun with another config.
    """
    saved = workdir / "config.json"
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        if not os.access(workdir, os.W_OK):
            raise PermissionError(13, "Permission denied", str(workdir))
        if not saved.is_file() and any(p.name != "config.json.part" for p in workdir.iterdir()):
            raise UserError(f"{workdir} is not empty and no run of gpt4jax (it has no config.json); choose another")
    except (FileExistsError, NotADirectoryError, PermissionError, FileNotFoundError) as error:
        raise UserError(f"the workdir {workdir} can't be created or written: {error.strerror}") from error
    # Before its data were ready a run has nothing to lose: a mistake in its config can be mended in place.
    if saved.is_file() and (workdir / "data.json").is_file():
        old = configuration.from_json(saved)
        different = configuration.differences(old, config, MAY_CHANGE)
        if different:
            raise UserError(
                f"{workdir} was begun with another config; choose another workdir, or change back "
                + "; ".join(different)
            )
    write_text(saved, configuration.to_json(config))


def check_data(workdir: pathlib.Path, facts: dict[str, Any]) -> None:
    """Writes data.json, or checks that the data are still those that the run was begun with.

    Raises:
        UserError: they are not.
    """
    path = workdir / "data.json"
    if path.is_file():
        old = json.loads(path.read_text())
        for key in ("fingerprint", "tokenizer_fingerprint"):
            if old[key] != facts[key]:
                raise UserError(
                    f"{workdir} was begun with other data: the {key.replace('_', ' ')} of {facts['dataset']} was "
                    f"{old[key][:16]} and is {facts[key][:16]} (another Python version, or changed files?)"
                )
    write_text(path, json.dumps(facts, indent=2) + "\n")


def write_text(path: pathlib.Path, text: str) -> None:
    """Replaces a file as a whole: a kill leaves the old one or the new one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)
