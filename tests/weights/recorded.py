"""Tiny models of the `transformers` library as folders: tests/bench/record_transformers.py recorded them."""

import json
import pathlib

import numpy as np
from safetensors.numpy import save_file

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "transformers.npz")
NAMES = sorted(key.partition("/")[0] for key in RECORDED if key.endswith("/config"))


def tensors(name: str) -> dict[str, np.ndarray]:
    """Its tensors in Hugging Face's layout."""
    other = ("config", "tokens", "logits")
    keys = [key for key in RECORDED if key.startswith(name + "/") and key.partition("/")[2] not in other]
    return {key.partition("/")[2]: RECORDED[key] for key in keys}


def config(name: str) -> dict:
    """Its config.json."""
    return json.loads(str(RECORDED[f"{name}/config"]))


def write(folder: pathlib.Path, name: str, arrays=None, **changes) -> pathlib.Path:
    """The folder, with other tensors or fields of the config if given; a field of `...` is left out."""
    folder.mkdir(parents=True, exist_ok=True)
    fields = {key: value for key, value in (config(name) | changes).items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(fields))
    save_file(tensors(name) if arrays is None else arrays, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
