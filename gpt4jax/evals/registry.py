"""OpenAI Evals' registry, read as it is: YAML of evals, sets and graders, and JSONL of samples.

From a folder of the user's, or out of the pinned package. The layout: `evals/`, `eval_sets/`, `modelgraded/`, `data/`.
"""

import fnmatch
import functools
import gzip
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import yaml

from gpt4jax.data.fetch import fetch_wheels
from gpt4jax.errors import UserError
from gpt4jax.evals import sources

# Data sets whose licences don't allow commercial use, or parts of them: not run unless asked for.
RESTRICTED = ("steganography", "theory_of_mind")
_RESERVED = {"key", "group", "cls"}


class Spec(NamedTuple):
    """One eval: "base.split.version", the library's class as "module:Class", and its arguments."""

    name: str
    cls: str
    args: Mapping[str, Any]


class Registry:
    """A registry's files.

    Args:
        names: all paths in it, relative to its root.
        read: the bytes of one of them.
        where: what to call it.
    """

    def __init__(self, names: Sequence[str], read: Callable[[str], bytes], where: str):
        self._names, self._read, self.where = frozenset(names), read, where
        self.unreadable: dict[str, str] = {}  # YAML files, and entries of them, and why

    @functools.cached_property
    def evals(self) -> dict[str, Any]:
        """Entries of all files of evals, by name: what an entry means is asked of `resolve`."""
        return self._entries("evals")

    @functools.cached_property
    def sets(self) -> dict[str, Any]:
        """Entries of sets of evals."""
        return self._entries("eval_sets")

    @functools.cached_property
    def graders(self) -> dict[str, Any]:
        """Specifications of model-graded evals."""
        return self._entries("modelgraded")

    def resolve(self, name: str) -> Spec:
        """The eval of a name, through however many other names.

        Raises:
            UserError: there is none, or names that go in a circle.
        """
        seen = [name]
        entry = self._entry(name)
        while isinstance(entry, str) or (isinstance(entry, dict) and "class" not in entry):
            following = entry if isinstance(entry, str) else entry.get("id")
            if not isinstance(following, str):
                raise UserError(f"the eval {seen[-1]} of {self.where} has neither a class nor an id")
            if following in seen:
                raise UserError(f"the evals {' -> '.join([*seen, following])} of {self.where} go in a circle")
            seen.append(following)
            entry = self._entry(following)
        if not isinstance(entry, dict) or not isinstance(entry["class"], str):
            raise UserError(f"the eval {seen[-1]} of {self.where} has no class")
        args = entry.get("args") or {}
        return Spec(seen[-1], entry["class"], {key: value for key, value in args.items() if key not in _RESERVED})

    def _entry(self, name: str) -> Any:
        if name not in self.evals:
            near = sorted(other for other in self.evals if name.split(".")[0] in other)[:5]
            raise UserError(f"{self.where} has no eval {name}{'; it has ' + ', '.join(near) if near else ''}")
        return self.evals[name]

    def of_set(self, name: str) -> list[str]:
        """The evals of a set, `*` standing for anything.

        Raises:
            UserError: there is no such set.
        """
        entry = self.sets.get(name)
        if not isinstance(entry, dict) or not isinstance(entry.get("evals"), list):
            raise UserError(f"{self.where} has no set {name} of evals; it has {', '.join(sorted(self.sets)[:10])}")
        found: dict[str, None] = {}
        for pattern in entry["evals"]:
            found |= dict.fromkeys(sorted(fnmatch.filter(self.evals, pattern)))
        return list(found)

    def samples(self, path: str) -> list[tuple[str, sources.Row | str]]:
        """The rows of a file below `data/`, by "path:line", or why a line is none.

        Raises:
            UserError: there is no such file, or it is packed in a way that this does not read.
        """
        name = f"data/{path}"
        if name not in self._names:
            raise UserError(f"{self.where} has no file {name}")
        data = self._read(name)
        if path.endswith(".gz"):
            data = gzip.decompress(data)
        elif not path.endswith(".jsonl"):
            raise UserError(f"{name} of {self.where}: only .jsonl and .jsonl.gz are read")
        return list(sources.json_lines(data, path))

    def _entries(self, folder: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in sorted(self._names):
            if not (name.startswith(f"{folder}/") and name.endswith((".yaml", ".yml"))):
                continue
            try:
                loaded = yaml.safe_load(self._read(name))
            except yaml.YAMLError as error:
                self.unreadable[name] = f"no YAML: {error}"
                continue
            if not isinstance(loaded, dict):
                self.unreadable[name] = "it holds no names"
                continue
            for key, value in loaded.items():
                if key in found:
                    self.unreadable[f"{name}: {key}"] = "another file has this name already"
                else:
                    found[key] = value
        return found


def of_folder(path: pathlib.Path) -> Registry:
    """The registry in a folder.

    Raises:
        UserError: there is no such folder, or it has no `evals/`.
    """
    if not (path / "evals").is_dir():
        raise UserError(f"{path} is no registry: it has no folder evals/")
    names = [file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()]
    return Registry(names, lambda name: (path / name).read_bytes(), str(path))


def of_package(cache_dir: pathlib.Path) -> Registry:
    """The published registry, out of the pinned wheel, which is not unpacked."""
    (path,) = fetch_wheels([sources.EVALS], cache_dir)
    archive, root = zipfile.ZipFile(path), "evals/registry/"
    names = [name.removeprefix(root) for name in archive.namelist() if name.startswith(root)]
    return Registry(names, lambda name: archive.read(root + name), f"evals {sources.EVALS.version}")


def is_restricted(spec: Spec) -> bool:
    """Whether its data's licence is one of those that are left out."""
    paths = json.dumps(dict(spec.args), default=str)
    return any(f"{name}/" in paths or spec.name.startswith(name) for name in RESTRICTED)


def specs(registry: Registry, classes: Sequence[str]) -> Iterator[Spec]:
    """Every eval of some classes ("Match", ...) once, whatever names lead to it."""
    for name, entry in registry.evals.items():
        if isinstance(entry, dict) and str(entry.get("class", "")).rpartition(":")[2] in classes:
            yield registry.resolve(name)
