"""Where files are kept, on a disk or in an object store, and files that are there whole or not at all.

What a run keeps may lie under `gs://BUCKET/...` (the extra `gs`). A store has no folders, cannot append, and shows an
object whole or not at all; what only a disk can do is done on this machine's, and copied.
"""

import contextlib
import hashlib
import importlib.util
import json
import os
import pathlib
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias

import fsspec
from etils import epath

from gpt4jax.errors import MishapError, UserError

Path: TypeAlias = pathlib.Path | epath.Path  # of this machine, or of an object store
_UPLOAD_SECONDS = 30.0  # at most so much of an `Appender`'s text is not in the store yet


def user_path(text: str | Path) -> Path:
    """A path as a person writes it: `~` and all, or `gs://BUCKET/NAME`.

    Raises:
        UserError: `~NAME` of nobody, another kind of store, or a store without its client.
    """
    scheme, store, name = str(text).partition("://")
    if not store:
        try:
            return pathlib.Path(text).expanduser()
        except RuntimeError as error:
            raise UserError(f"{text}: {error}") from error
    if scheme != "gs" or not name.strip("/"):
        raise UserError(f"{text}: a path is one of this machine's, or gs://BUCKET/NAME")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(f"{text} needs the client of Google's object store: pip install 'gpt4jax[gs]'")
    os.environ.setdefault("EPATH_USE_TF", "false")  # one client, whatever else is installed
    # Other processes write there too: what a client remembers of a listing is not what is there.
    fsspec.config.conf.setdefault("gcs", {})["use_listings_cache"] = False
    return epath.Path(str(text).rstrip("/"))


def in_store(path: Path) -> bool:
    """Whether a path is one of an object store's."""
    return "://" in str(path)


def absolute(path: Path) -> Path:
    """The path from the root of its disk, or of its store."""
    return path if in_store(path) else path.absolute()


def local_folder(path: str | Path, flag: str) -> pathlib.Path:
    """The absolute path of a folder that a flag names.

    Raises:
        UserError: it is in an object store, or a file.
    """
    path = user_path(path)
    if not isinstance(path, pathlib.Path):
        raise UserError(f"{flag} {path}: only a local folder here, no object store")
    path = path.absolute()
    if path.exists() and not path.is_dir():
        raise UserError(f"{flag} {path} is a file")
    return path


def cache_dir() -> pathlib.Path:
    """Where this machine keeps what is prepared: $GPT4JAX_CACHE, or ~/.cache/gpt4jax."""
    return local_folder(os.environ.get("GPT4JAX_CACHE") or "~/.cache/gpt4jax", "GPT4JAX_CACHE")


def shared_cache(option: str) -> Path:
    """Where tokens are kept, which processes of several machines may share: the config's data.cache_dir, or ours."""
    return absolute(user_path(option)) if option else cache_dir()


def on_disk(folder: Path) -> pathlib.Path:
    """The folder itself, or in place of one in an object store this machine's own cache."""
    return folder if isinstance(folder, pathlib.Path) else cache_dir()


def replace(path: Path, data: bytes | str) -> None:
    """Writes a file as a whole, its folder too: a kill, or another process, leaves the old one or the new one.

    Raises:
        UserError: an object store does not take it.
    """
    data = data.encode() if isinstance(data, str) else data
    if in_store(path):
        with _in_words(path):
            path.write_bytes(data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")  # the writers may be those of several hosts
    part.write_bytes(data)
    part.replace(path)


class Appender:
    """Text that is added to a file: on a disk it is there when `write` returns.

    In an object store, where every addition writes the whole object, it is there after `flush`, or half a minute later
    (of megabytes, as many seconds as they are, if that is more).
    """

    def __init__(self, path: Path):
        self._path, self._flushed = path, time.monotonic()
        self._file = None if in_store(path) else path.open("a")
        self._text = path.read_text() if self._file is None and path.is_file() else ""
        self._new = False

    def write(self, text: str) -> None:
        """Adds text."""
        if self._file is not None:
            self._file.write(text)
            self._file.flush()
            return
        self._text += text
        self._new = True
        if time.monotonic() - self._flushed > max(_UPLOAD_SECONDS, len(self._text) / 1e6):
            self._flushed = time.monotonic()
            with contextlib.suppress(UserError):  # nothing is lost yet: again later, and at last in `flush`
                self.flush()

    def flush(self) -> None:
        """Returns when all of the text is in the file."""
        if self._new:
            replace(self._path, self._text)
            self._flushed, self._new = time.monotonic(), False

    def close(self) -> None:
        """Closes the file."""
        try:
            self.flush()
        finally:
            if self._file is not None:
                self._file.close()


class Outbox:
    """A folder for what writes to disks only: the one that it is for, or a temporary one, whose files `send` copies."""

    def __init__(self, target: Path):
        self._target = target
        self._temporary = tempfile.TemporaryDirectory(prefix="gpt4jax-") if in_store(target) else None
        self.folder = target if self._temporary is None else pathlib.Path(self._temporary.name)
        self._sent: dict[Path, int] = {}  # how long a file was

    def send(self) -> None:
        """Copies those files to an object store that have grown since."""
        for path in below(self.folder) if self._temporary is not None else ():
            data = path.read_bytes()
            if self._sent.get(path) != len(data):
                replace(self._target / path.relative_to(self.folder).as_posix(), data)
                self._sent[path] = len(data)

    def close(self) -> None:
        """Sends what is left, and removes a temporary folder."""
        try:
            self.send()
        finally:
            if self._temporary is not None:
                self._temporary.cleanup()


def text(path: Path) -> str | None:
    """What is in a file, or None where there is no file.

    Raises:
        UserError: an object store can't be asked, which says nothing of what it has.
    """
    with _in_words(path) if in_store(path) else contextlib.nullcontext():
        try:
            return path.read_text()
        except FileNotFoundError:
            return None


def is_folder(path: Path) -> bool:
    """Whether there is a folder; in an object store, whether it has anything below that name.

    Raises:
        UserError: as `text`. (The store's own `is_dir` takes any error for a no.)
    """
    return bool(_objects(path)) if in_store(path) else path.is_dir()


def read_json(path: Path) -> dict[str, Any]:
    """A file's JSON object, or an empty one where there is no file.

    Raises:
        UserError: it is no JSON object.
    """
    try:
        found = text(path) if in_store(path) or path.is_file() else None
        loaded = {} if found is None else json.loads(found)
    except (ValueError, RecursionError) as error:  # the latter: nested without end
        raise UserError(f"{path} can't be read: {error}") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{path} holds no JSON object")
    return loaded


def below(folder: Path) -> list[Path]:
    """The files under a folder, at any depth, in order."""
    if isinstance(folder, pathlib.Path):
        return sorted(path for path in folder.rglob("*") if path.is_file())
    return [epath.Path(f"gs://{key}") for key in sorted(_objects(folder))]


def checksums(folder: Path, names: Sequence[str]) -> list[str]:
    """The sha256 of each of a folder's files; in a store what that has computed: length, CRC32C and MD5."""
    if in_store(folder):
        found, start = _objects(folder), _key(folder)
        return [_identity(found[f"{start}/{name}"]) if f"{start}/{name}" in found else "gone" for name in names]

    def of(name: str) -> str:
        with (folder / name).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing leaves Python to other threads
        return list(pool.map(of, names))


def modified(path: Path) -> float:
    """When a file was written, in seconds since 1970."""
    return path.stat().st_mtime if isinstance(path, pathlib.Path) else float(path.stat().mtime)


def move(folder: Path, target: Path) -> None:
    """Moves a folder with all that is in it; `target` must not exist."""
    if in_store(folder):
        with _in_words(folder):
            for key in sorted(_objects(folder)):
                _client(folder).copy(key, f"{target}{key.removeprefix(_key(folder))}")
            _client(folder).rm(str(folder), recursive=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(folder, target)


def local_copy(path: Path, root: Path | None = None, *, beside: bool = False) -> pathlib.Path:
    """The path itself; of what an object store has there, a file or a folder, a copy on this machine's disk.

    A copy is made once of what is there, and again when that has changed. It lies below a folder of its own as `path`
    lies below `root` (None: its parent). With `beside` a file comes with all that lies beside and below it.

    Raises:
        UserError: there is nothing, or it can't be read.
    """
    if isinstance(path, pathlib.Path):
        return path
    found = _objects(path)
    if not found:
        raise UserError(f"there is no {path}")
    if beside and _key(path) in found:
        return local_copy(path.parent) / path.name
    inside = path.relative_to(path.parent if root is None else root)
    contents = [f"{inside} of {path}", *(f"{key} {_identity(facts)}" for key, facts in sorted(found.items()))]
    top = cache_dir() / "fetched" / hashlib.sha256("\n".join(contents).encode()).hexdigest()[:16]
    if not top.is_dir():
        part = top.with_name(f"{top.name}.{uuid.uuid4().hex}.part")
        with _in_words(path):
            for key, facts in found.items():
                target = part / inside / key.removeprefix(_key(path)).lstrip("/")
                target.parent.mkdir(parents=True, exist_ok=True)
                _client(path).get_file(key, str(target))
                if target.stat().st_size != facts["size"]:
                    raise UserError(f"gs://{key} has changed while it was copied")
        try:
            part.rename(top)
        except OSError:
            if not top.is_dir():  # else another process was quicker
                raise
            shutil.rmtree(part)
    return top / inside


def _client(path: Path) -> Any:
    return fsspec.filesystem(str(path).partition("://")[0])


def _key(path: Path) -> str:
    """BUCKET/NAME."""
    return str(path).partition("://")[2]


def _objects(path: Path) -> dict[str, dict[str, Any]]:
    """What an object store says of an object, or of all those below a folder, by BUCKET/NAME."""
    with _in_words(path):
        found = _client(path).find(str(path), detail=True)
    return {key: facts for key, facts in found.items() if not key.endswith("/")}  # what stands for empty folders


def _identity(facts: dict[str, Any]) -> str:
    # Both, for parts of Orbax's files end in their own CRC32C, which makes one of the whole the same for all of them;
    # and an object that was put together from parts has no MD5.
    return f"{facts['size']} bytes, crc32c {facts['crc32c']}, md5 {facts.get('md5Hash')}"


@contextlib.contextmanager
def _in_words(path: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of the store's client, of its HTTP client, of whatever gives it credentials
        kind = UserError if isinstance(error, FileNotFoundError | PermissionError) else MishapError
        raise kind(f"{path}: {type(error).__name__}: {error}; nothing that was saved is lost") from error
