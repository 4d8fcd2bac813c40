"""A folder as Hugging Face writes it: config.json and safetensors files, read through memory maps."""

import json
import pathlib

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from gpt4jax.errors import UserError

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_DTYPES = {"F32": np.dtype(np.float32), "F16": np.dtype(np.float16), "BF16": np.dtype(ml_dtypes.bfloat16)}
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


class SafetensorsFolder:
    """The tensors of a folder's safetensors files (`layout.Tensors`)."""

    def __init__(self, folder: pathlib.Path):
        self._arrays: dict[str, np.ndarray] = {}
        for path, names in _files(folder).items():
            found = _open(path)
            if names is not None and names - found.keys():
                raise UserError(f"{path} lacks {sorted(names - found.keys())[0]}, which {INDEX} says it holds")
            if twice := found.keys() & self._arrays.keys():
                raise UserError(f"{path} holds {sorted(twice)[0]}, and so does another file of {folder}")
            self._arrays |= found
        # The hub's GPT-2 was saved without the head, from a class that has no "transformer." before its names.
        if "wte.weight" in self._arrays:
            self._arrays = {
                name if name == "lm_head.weight" else f"transformer.{name}": array
                for name, array in self._arrays.items()
            }
        self.shapes = {name: array.shape for name, array in self._arrays.items()}
        half = {array.dtype for array in self._arrays.values()} == {_DTYPES["BF16"]}
        self.stored = "bfloat16" if half else "float32"

    def read(self, name: str) -> np.ndarray:
        """A view of the memory-mapped file."""
        return self._arrays[name]


def _files(folder: pathlib.Path) -> dict[pathlib.Path, set[str] | None]:
    """The files of a folder, and which tensors the index says each of them holds."""
    if (folder / INDEX).is_file():
        try:
            placed = json.loads((folder / INDEX).read_text())["weight_map"].items()
            paths = {name: folder / pathlib.PurePath(file).name for name, file in placed}  # never outside the folder
        except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
            raise UserError(f"{folder / INDEX} is no index of safetensors files: {error}") from error
        out: dict[pathlib.Path, set[str] | None] = {}
        for name, path in paths.items():
            names = out.setdefault(path, set())
            assert names is not None
            names.add(name)
        if absent := [path for path in out if not path.is_file()]:
            raise UserError(f"{folder} lacks {absent[0].name}, which its {INDEX} names")
        return out
    found = sorted(folder.glob("*.safetensors"))
    if (folder / SINGLE) in found or len(found) == 1:
        return {(folder / SINGLE) if (folder / SINGLE) in found else found[0]: None}
    if found:
        raise UserError(f"{folder} holds {len(found)} safetensors files, but no {INDEX} that says which to read")
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise UserError(
            f"{folder} holds weights as a pickle only ({pickles[0]}), which could run any code when it is loaded and "
            "is never opened here; its author, or transformers on a machine of no worth, can save safetensors instead"
        )
    raise UserError(f"{folder} holds no *.safetensors file")


def _open(path: pathlib.Path) -> dict[str, np.ndarray]:
    try:
        with safe_open(path, framework="np"):  # checks the header, and that the tensors cover the file exactly
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path} is no whole safetensors file ({error}); fetch it again") from error
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    data = np.memmap(path, np.uint8, "r", offset=8 + length) if header else np.empty(0, np.uint8)
    out = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise UserError(f"{path}: {name} is of type {entry['dtype']}; only {', '.join(_DTYPES)} can be read")
        start, end = entry["data_offsets"]
        out[name] = data[start:end].view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return out
