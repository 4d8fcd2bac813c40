"""Corpora by name: TFDS builders for Python's library, for packages, a grammar and the user's text; any TFDS set.

All of them end as ArrayRecord files that TFDS prepared, read at random without TensorFlow.
"""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import os
import pathlib
import sys
import sysconfig
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple, overload

import tensorflow_datasets as tfds

from gpt4jax import files
from gpt4jax.data import code_tasks, grammar, is_utf8, operations, packages, restricted_python
from gpt4jax.data.operations import FAMILIES
from gpt4jax.errors import UserError

HELD_OUT_PERCENT = 5
TEST_FOLDERS = frozenset({"test", "tests", "idle_test"})
PACKAGE_FOLDERS = frozenset({"site-packages", "dist-packages"})  # inside the library's folder on some systems


@dataclasses.dataclass(frozen=True)
class Corpus:
    """A prepared data set: `splits["train"]` and `splits["eval"]` are random-access sources of text.

    `fingerprint` is a sha256 of all that went into it (of a TFDS set: of its version, splits, counts and sizes,
    not of its text); `skipped` says what was left out and why.
    """

    name: str
    fingerprint: str
    splits: dict[str, "Documents"]
    skipped: tuple[str, ...]


_AHEAD = 2**24  # bytes read at a time, about: a record alone costs what the block does that it is compressed with
_MOST = 1024  # ... and documents


class Documents(Sequence[bytes]):
    """The text feature of a TFDS data source, as bytes (of UTF-8, if the set holds what it should)."""

    def __init__(self, source: Any, feature: str):
        self._source, self._feature = source, feature

    def __len__(self) -> int:
        return len(self._source)

    @overload
    def __getitem__(self, index: int) -> bytes: ...

    @overload
    def __getitem__(self, index: slice) -> list[bytes]: ...

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self._text(item) for item in self._source.__getitems__(range(len(self))[index])]
        return self._text(self._source[index])

    def __iter__(self) -> Iterator[bytes]:
        first, count = 0, 16
        while first < len(self):
            block = self[first : first + count]
            yield from block
            first += len(block)
            fit = _AHEAD * len(block) // (1 + sum(map(len, block)))  # if the next are like these: a guess
            count = min(_MOST, 2 * count, 1 + fit)

    def _text(self, item: dict[str, Any]) -> bytes:
        text = item[self._feature]
        return text.encode() if isinstance(text, str) else bytes(text)


def held_out(group: str) -> bool:
    """Whether a document belongs to the held-out split: 5 of 100 values of sha256(group)."""
    return int.from_bytes(hashlib.sha256(group.encode()).digest(), "big") % 100 < HELD_OUT_PERCENT


def prepare(options: Any, cache_dir: pathlib.Path) -> Corpus:
    """The corpus that the config group `data` names, prepared on first use under `cache_dir`.

    Raises:
        UserError: no such data set, one that isn't prepared as ArrayRecord, or one without a usable document.
    """
    kind, _, path = options.dataset.partition(":")
    if options.dataset == "python_stdlib":
        builder = _own(PythonStdlib, sysconfig.get_paths()["stdlib"], "", cache_dir)
    elif options.dataset == "python_packages":
        builder = _packages(cache_dir)
    elif kind in _GENERATED:
        builder = _generated(kind, path, cache_dir)
    elif kind in ("folder", "jsonl") and path:
        root = files.local_copy(files.user_path(path)).resolve()
        builder = _own(UserText, str(root), options.text_feature, cache_dir)
    else:
        return _tfds_set(options)
    report = dict(builder.info.metadata or {})
    skipped = [f"{report['empty']} empty documents"] if report.get("empty") else []
    skipped += [f"{report['copies']} copies of other files"] if report.get("copies") else []
    skipped += [f"not UTF-8: {name}" for name in report.get("not_utf8", [])]
    splits = {name: Documents(builder.as_data_source(split=name), "text") for name in ("train", "eval")}
    return Corpus(options.dataset, builder.builder_config.fingerprint, splits, tuple(skipped))


def _own(builder_class: type, root: str, feature: str, cache_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    path = pathlib.Path(root)
    if not path.exists():
        raise UserError(f"data.dataset: there is no file or folder {root}")
    documents = list_documents(path, feature, python_only=builder_class is PythonStdlib)
    digest = hashlib.sha256()
    usable = {"train": 0, "eval": 0}
    for document in documents:
        digest.update(hashlib.sha256(document.key.encode()).digest() + hashlib.sha256(document.data).digest())
        if document.data.strip() and is_utf8(document.data):
            usable["eval" if held_out(document.group) else "train"] += 1
    if not sum(usable.values()):
        raise UserError(f"{root} has no usable document: every file is empty or not UTF-8 text")
    if not all(usable.values()):
        raise UserError(
            f"{root} has {sum(usable.values())} usable documents, too few to hold out {HELD_OUT_PERCENT}% "
            "by hash for evaluation: use more documents, or smaller ones"
        )
    return built(builder_class, root, digest.hexdigest(), cache_dir, feature)


def _packages(cache_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    return built(PythonPackages, str(cache_dir), packages.fingerprint(packages.packages()), cache_dir)


def _generated(kind: str, megabytes: str, cache_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    if not (megabytes.isascii() and megabytes.isdecimal() and int(megabytes)):
        raise UserError(f"data.dataset {kind}:{megabytes}: say how many megabytes to train on, such as {kind}:100")
    modules, builder_class, sample = _GENERATED[kind]
    digest = hashlib.sha256(megabytes.encode())
    # The code that generates, and what it does: another NumPy may draw otherwise.
    for text in (*map(inspect.getsource, modules), *sample()):
        digest.update(hashlib.sha256(text.encode()).digest())
    return built(builder_class, megabytes, digest.hexdigest(), cache_dir)


def built(
    builder_class: type, root: str, fingerprint: str, cache_dir: pathlib.Path, feature: str = ""
) -> tfds.core.DatasetBuilder:
    """A builder of ours, prepared under `cache_dir` on first use.

    Raises:
        UserError: the disk is full, or whatever else keeps it from being written.
    """
    config = SourceConfig(name=fingerprint[:16], root=root, feature=feature, fingerprint=fingerprint)
    make = partial(builder_class, data_dir=cache_dir / "tfds", config=config, file_format="array_record")
    builder = make()
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr):
            builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))
    except (RuntimeError, OSError) as error:  # the writer of records says RuntimeError when the disk is full
        builder = make()
        if not builder.is_prepared():  # else another process of this host was quicker
            raise UserError(f"could not prepare {root} under {cache_dir}: {error}") from error
    return builder


class RawDocument(NamedTuple):
    """A document as found: its unique key, the group whose hash decides its split, and its bytes."""

    key: str
    group: str
    data: bytes


def list_documents(root: pathlib.Path, feature: str, *, python_only: bool = False) -> Iterator[RawDocument]:
    """Every document under a folder, or in a JSONL file, in a fixed order.

    A file's key and group are its path below the folder; a JSONL object's group is its text's hash, so
    that equal texts fall into the same split. Of the Python library, `*.py` without tests and packages.
    """
    if root.is_file():
        yield from _jsonl(root, feature)
        return
    skip = TEST_FOLDERS | PACKAGE_FOLDERS if python_only else frozenset()
    for path in sorted(root.rglob("*.py" if python_only else "*")):
        relative = path.relative_to(root)
        if path.is_file() and not skip & set(relative.parts):
            name = os.fsencode(relative.as_posix()).decode(errors="backslashreplace")  # a name may be any bytes
            yield RawDocument(name, name, path.read_bytes())


def _jsonl(path: pathlib.Path, feature: str) -> Iterator[RawDocument]:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                text = json.loads(line)[feature]
            except (ValueError, KeyError, TypeError) as error:
                raise UserError(f"{path}, line {number}: not a JSON object with the key {feature!r}") from error
            if not isinstance(text, str):
                raise UserError(f"{path}, line {number}: {feature!r} is not a string")
            # JSON can carry lone surrogates, which no UTF-8 text has.
            data = text.encode(errors="replace")
            yield RawDocument(f"line {number}", hashlib.sha256(data).hexdigest(), data)


@dataclasses.dataclass(kw_only=True)
class SourceConfig(tfds.core.BuilderConfig):
    """Where the text comes from; its name, and so its folder, is the fingerprint of the text."""

    root: str = ""
    feature: str = ""
    fingerprint: str = ""


class Builder(tfds.core.GeneratorBasedBuilder):
    """A train and an eval split, which `_generate_examples(evaluation)` gives."""

    VERSION = tfds.core.Version("1.0.0")

    def _split_generators(self, dl_manager):
        del dl_manager
        return {"train": self._generate_examples(False), "eval": self._generate_examples(True)}


class _TextBuilder(Builder):
    """Documents as {"key", "text"}, in a train and an eval split by the hash of the group."""

    python_only = False

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"key": tfds.features.Text(), "text": tfds.features.Text()})
        metadata = tfds.core.MetadataDict()
        return tfds.core.DatasetInfo(builder=self, features=features, description=self.__doc__, metadata=metadata)

    def _split_generators(self, dl_manager):
        self.info.metadata.update(empty=0, copies=0, not_utf8=[])
        return super()._split_generators(dl_manager)

    def _generate_examples(self, evaluation: bool):
        config = self.builder_config
        for key, group, data in list_documents(pathlib.Path(config.root), config.feature, python_only=self.python_only):
            if held_out(group) != evaluation:
                continue
            if not data.strip():
                self.info.metadata["empty"] += 1
            elif not is_utf8(data):
                self.info.metadata["not_utf8"].append(key)
            else:
                yield key, {"key": key, "text": data.decode()}


class PythonStdlib(_TextBuilder):
    """The running Python's own standard library: its .py files without tests and installed packages."""

    python_only = True


class PythonPackages(_TextBuilder):
    """The Python source of pinned packages, without copies; the packages and their licences are in the metadata."""

    def _generate_examples(self, evaluation: bool):
        table, facts = packages.packages(), self.info.metadata
        facts["licenses"] = {f"{p.wheel.package} {p.wheel.version}": p.license for p in table}
        for key, data, held, copied in packages.documents(table, pathlib.Path(self.builder_config.root)):
            if evaluation and not held:
                return  # they come first
            if copied:
                facts["copies"] += not evaluation  # training looks at every file
            elif held != evaluation:
                continue
            elif not data.strip():
                facts["empty"] += 1
            elif not is_utf8(data):
                facts["not_utf8"].append(key)
            else:
                yield key, {"key": key, "text": data.decode()}


class Grammar(_TextBuilder):
    """Documents of the language of known entropy (`gpt4jax.data.grammar`), drawn apart for the two splits."""

    EVAL_BYTES = 4_000_000

    def _generate_examples(self, evaluation: bool):
        size = self.EVAL_BYTES if evaluation else int(self.builder_config.root) * 1_000_000
        for i, text in enumerate(grammar.documents(grammar.language(), int(evaluation), size)):
            yield i, {"key": str(i), "text": text}


class CodeTasks(_TextBuilder):
    """Code tasks with solutions (`gpt4jax.data.code_tasks`); for evaluation, problems that training never shows."""

    EVAL_PROBLEMS = 150  # of each level
    steps = FAMILIES["code_tasks"]

    def _generate_examples(self, evaluation: bool):
        if evaluation:
            for problem in code_tasks.problems(0, self.EVAL_PROBLEMS, operations=self.steps):
                yield problem.name, {"key": problem.name, "text": problem.prompt + problem.solution}
            return
        left = int(self.builder_config.root) * 1_000_000
        texts = code_tasks.documents(0, left, operations=self.steps)  # more than enough, as none is empty
        for i, text in enumerate(texts):
            if left <= 0:
                return
            left -= len(text)
            yield i, {"key": str(i), "text": text}


class NamedTasks(CodeTasks):
    """Code tasks whose steps are names of a library (`gpt4jax.data.operations`), which only training texts show."""

    steps = FAMILIES["named_tasks"]


_TASKS = (code_tasks, operations, restricted_python)
_GENERATED = {  # the modules that write the text, its builder, and a small sample of it
    "grammar": ((grammar,), Grammar, lambda: grammar.documents(grammar.language(), 0, 10_000)),
    "code_tasks": (_TASKS, CodeTasks, lambda: code_tasks.documents(0, 100, operations=CodeTasks.steps)),
    "named_tasks": (_TASKS, NamedTasks, lambda: code_tasks.documents(0, 100, operations=NamedTasks.steps)),
}


class UserText(_TextBuilder):
    """The files of a folder, or the lines of a JSONL file."""


def tfds_builder(options: Any) -> tfds.core.DatasetBuilder:
    """The builder of a TFDS set that is prepared as ArrayRecord.

    Raises:
        UserError: there is none, or it is not so prepared.
    """
    name = options.dataset
    try:
        builder = tfds.builder(name, data_dir=_tfds_folder(name), try_gcs=False)
    except (tfds.core.DatasetNotFoundError, ValueError, OSError) as error:
        raise UserError(
            f"data.dataset {name!r} is neither python_stdlib, python_packages, grammar:MEGABYTES, "
            "code_tasks:MEGABYTES, named_tasks:MEGABYTES, folder:PATH or jsonl:PATH, nor a TFDS data set under "
            f"$TFDS_DATA_DIR ({str(error).splitlines()[0]})"
        ) from error
    how = f"prepare it with `tfds build {name} --file_format=array_record`"
    if not builder.is_prepared():
        raise UserError(f"TFDS set {name!r} is not prepared under {builder.data_dir}: {how}")
    if builder.info.file_format is not tfds.core.FileFormat.ARRAY_RECORD:
        raise UserError(f"TFDS set {name!r} is stored as {builder.info.file_format.value}: {how}")
    return builder


def _tfds_folder(name: str) -> str | None:
    """Where TFDS looks: $TFDS_DATA_DIR; of a set that lies in an object store, a folder here with a copy of it."""
    folder = os.environ.get("TFDS_DATA_DIR")
    if folder is None or not files.in_store(root := files.user_path(folder)):
        return folder
    parts = name.replace(":", "/").split("/")  # SET[/CONFIG][:VERSION]
    return str(files.local_copy(root.joinpath(*parts), root).parents[len(parts) - 1])


def tfds_source(builder: tfds.core.DatasetBuilder, ours: str, theirs: str) -> Any:
    """A split of a TFDS set, at random.

    Raises:
        UserError: it has no such split.
    """
    try:
        return builder.as_data_source(split=theirs)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"TFDS set {builder.info.name!r} has no split {theirs!r} but {', '.join(builder.info.splits)}; "
            f"set data.{ours}_split (slices such as 'train[:99%]' work)"
        ) from error


def _tfds_set(options: Any) -> Corpus:
    name, feature, builder = options.dataset, options.text_feature, tfds_builder(options)
    if feature not in builder.info.features:
        raise UserError(f"TFDS set {name!r} has no feature {feature!r} but {', '.join(builder.info.features)}")
    splits = {
        ours: Documents(tfds_source(builder, ours, theirs), feature)
        for ours, theirs in (("train", options.train_split), ("eval", options.eval_split))
    }
    facts = [builder.info.full_name, feature, options.train_split, options.eval_split]
    facts += [f"{k} {s.num_examples} {s.num_bytes} {s.shard_lengths}" for k, s in sorted(builder.info.splits.items())]
    return Corpus(name, hashlib.sha256("\n".join(facts).encode()).hexdigest(), splits, ())
