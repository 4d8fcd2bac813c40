"""Where files are kept, and files that are there whole or not at all."""

import json
import os
import pathlib
import uuid
from typing import Any

from gpt4jax.errors import UserError


def user_path(text: str | pathlib.Path) -> pathlib.Path:
    """A path as a person writes it, `~` and all.

    Raises:
        UserError: `~NAME` of nobody.
    """
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{text}: {error}") from error


def local_folder(path: pathlib.Path, flag: str) -> pathlib.Path:
    """The absolute path of a folder that a flag names.

    Raises:
        UserError: it is in an object store, or a file.
    """
    if "://" in str(path) or ":/" in str(path):  # pathlib makes one slash of two
        raise UserError(f"{flag} {path}: only local folders for now, no object store")
    path = user_path(path).absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag} {path} is a file")
    return path


def cache_dir(option: str = "") -> pathlib.Path:
    """Where prepared data is kept: the config's data.cache_dir, $GPT4JAX_CACHE, or ~/.cache/gpt4jax."""
    chosen = option or os.environ.get("GPT4JAX_CACHE") or "~/.cache/gpt4jax"
    return user_path(chosen).absolute()


def replace(path: pathlib.Path, data: bytes | str) -> None:
    """Writes a file as a whole, its folder too: a kill, or another process, leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # the writers may be those of several hosts
    part.write_bytes(data.encode() if isinstance(data, str) else data)
    part.replace(path)


class Appender:
    """Text that is added to a file, and is in it when `write` returns."""

    def __init__(self, path: pathlib.Path):
        self._file = path.open("a")

    def write(self, text: str) -> None:
        """Adds text."""
        self._file.write(text)
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A file's JSON object, or an empty one where there is no file.

    Raises:
        UserError: it is no JSON object.
    """
    if not path.is_file():
        return {}
    try:
        loaded = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # the latter: nested without end
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no JSON object")
    return loaded
