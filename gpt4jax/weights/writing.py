"""Writes a decoder as a Hugging Face folder: safetensors files, config.json and the tokenizer."""

import json
import os
import pathlib
import shutil
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from gpt4jax import model
from gpt4jax.data import foreign
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model import mup
from gpt4jax.model.parameters import Parameter, Params
from gpt4jax.weights import architecture, layout
from gpt4jax.weights.folder import INDEX, SINGLE

SHARD_BYTES = 5 * 10**9  # of one file at most, unless one tensor is larger


class Saved(NamedTuple):
    """What was written: counts, bytes of the tensors, the architecture, and why it is ours alone (or None)."""

    tensors: int
    parameters: int
    bytes: int
    architecture: str
    reason: str | None


def check_target(folder: pathlib.Path) -> None:
    """Checks that a folder may be written.

    Raises:
        UserError: it exists and is not empty, or is no folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose another folder")


def save(
    folder: pathlib.Path,
    config: model.Config,
    params: Params,
    tokenizer: Tokenizer | None,
    *,
    dtype: str = "",
    shard_bytes: int = SHARD_BYTES,
) -> Saved:
    """Writes the folder under a temporary name beside it and renames it: it is whole or not there.

    The host holds one file's tensors at a time. `transformers` loads the folder, unless no architecture of its
    own expresses the decoder: then `reason` says why, and `weights.load` alone reads it.

    Args:
        folder: must not exist, or be empty.
        config: the decoder.
        params: its parameters, on one process's devices.
        tokenizer: written with its special tokens and chat template; None: none.
        dtype: "float32", "bfloat16", or "" as they are.
        shard_bytes: of tensors in one file.

    Raises:
        UserError: the folder is not empty, a tokenizer larger than the vocabulary, or parameters that lie in part
            on other processes.
    """
    check_target(folder)
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"the tokenizer does not fit the vocabulary: it has {tokenizer.vocab_size} ids, and model.vocab_size "
            f"is {config.vocab_size}"
        )
    if not all(leaf.is_fully_addressable for leaf in jax.tree.leaves(params)):
        raise UserError("the parameters lie in part on other processes; export a checkpoint from one process")
    config, params = mup.fold(config, params)
    dtype = dtype or config.param_dtype
    part = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    try:
        (part / "config.json").write_text(json.dumps(_config(config, dtype, tokenizer), indent=2) + "\n")
        saved = _write(part, config, params, jnp.dtype(dtype), shard_bytes)
        if tokenizer is not None:
            foreign.write(tokenizer, part)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return saved


def _config(config: model.Config, dtype: str, tokenizer: Tokenizer | None) -> dict[str, Any]:
    hf = architecture.to_hf(config, dtype)
    if tokenizer is None:
        return hf | dict(bos_token_id=None, eos_token_id=None)
    stops, bos = sorted(tokenizer.stops), tokenizer.roles.get("bos_token")
    return hf | dict(
        bos_token_id=tokenizer.special[bos] if bos else None, eos_token_id=stops[0] if len(stops) == 1 else stops
    )


def _write(folder: pathlib.Path, config: model.Config, params: Params, dtype: np.dtype, shard_bytes: int) -> Saved:
    wanted = layout.expected(config)
    sizes = {name: _elements(parts) * dtype.itemsize for name, parts in wanted.items()}
    groups: list[list[str]] = [[]]
    for name, size in sizes.items():
        if groups[-1] and sum(sizes[other] for other in groups[-1]) + size > shard_bytes:
            groups.append([])
        groups[-1].append(name)
    placed: dict[str, str] = {}
    for number, names in enumerate(groups, start=1):
        file = SINGLE if len(groups) == 1 else f"model-{number:05d}-of-{len(groups):05d}.safetensors"
        arrays = {name: _tensor(wanted[name], params).astype(dtype) for name in names}
        save_file(arrays, folder / file, metadata={"format": "pt"})  # transformers asks for this word
        shutil.copymode(folder / "config.json", folder / file)  # the library's files are its user's alone
        placed |= dict.fromkeys(names, file)
    if len(groups) > 1:
        index = {"metadata": {"total_size": sum(sizes.values())}, "weight_map": placed}
        (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
    reason = architecture.inexpressible(config)
    name = architecture.to_hf(config, dtype.name)["architectures"][0]
    total = sum(sizes.values())
    return Saved(len(wanted), total // dtype.itemsize, total, name, reason)


def _elements(parts: list[tuple[Parameter, int]]) -> int:
    return sum(row.size // (row.shape[0] if row.group == "layers" else 1) for row, _ in parts)


def _tensor(parts: list[tuple[Parameter, int]], params: Params) -> np.ndarray:
    def values(row: Parameter, layer: int) -> np.ndarray:
        stacked = params[row.group][row.name]
        return np.asarray(stacked[layer] if row.group == "layers" else stacked)

    return layout.to_hf([(row, values(row, layer)) for row, layer in parts])
