"""Weights in and out: Hugging Face safetensors folders, and GGUF files in."""

import dataclasses
import pathlib
from collections.abc import Callable

from jax.sharding import Mesh

from gpt4jax import files, model
from gpt4jax.data import foreign
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.parameters import Params
from gpt4jax.parallel import partition
from gpt4jax.weights import architecture, gguf_tokenizer, layout, source
from gpt4jax.weights.check import check
from gpt4jax.weights.folder import SafetensorsFolder
from gpt4jax.weights.gguf_file import GgufFile
from gpt4jax.weights.writing import check_target, save

__all__ = ["Loaded", "Opened", "check_target", "load", "open_weights", "save", "shardings"]


@dataclasses.dataclass(frozen=True)
class Opened:
    """Weights whose names and shapes are checked and of which nothing is read yet.

    Attributes:
        config: the decoder, in float32.
        tensors: what `layout.place` reads.
        tokenizer: None if the folder has no tokenizer.json.
        source: the folder or file.
    """

    config: model.Config
    tensors: layout.Tensors
    tokenizer: Tokenizer | None
    source: pathlib.Path


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Weights on devices: `config.param_dtype` is the parameters' type, and `config.dtype` the same."""

    config: model.Config
    params: Params
    tokenizer: Tokenizer | None
    source: pathlib.Path

    @property
    def chat_template(self) -> str | None:
        """The tokenizer's Jinja template."""
        return None if self.tokenizer is None else self.tokenizer.chat_template


def open_weights(
    name: str, *, cache_dir: pathlib.Path | None = None, say: Callable[[str], None] = lambda line: None
) -> Opened:
    """Finds weights by name (`source.find`) and checks them; reads no tensor but a tied one that is there twice.

    `say` hears of a tokenizer that has few of the model's ids.

    Raises:
        UserError: nothing of that name, damaged, of an architecture that is not supported, or with a tokenizer
            that does not fit.
    """
    path = source.find(name, cache_dir or files.cache_dir())
    tensors: layout.Tensors
    tokenizer: Tokenizer | None
    if path.is_file():
        file = GgufFile(path)
        config, tensors = file.config, file
        tokenizer = gguf_tokenizer.read(file.metadata, path)
    else:
        config = architecture.from_hf(files.read_json(path / "config.json"))
        tensors = SafetensorsFolder(path)
        tokenizer = foreign.read(path) if (path / foreign.FILE).is_file() else None
    check(config, tensors, str(path))
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise UserError(
            f"{path}: its tokenizer does not fit the vocabulary: it has ids up to {tokenizer.vocab_size - 1}, "
            f"and the model's vocab_size is {config.vocab_size}"
        )
    if tokenizer is not None and 2 * (tokens := _count(tokenizer)) < config.vocab_size:
        say(f"{path}: its tokenizer has {tokens} tokens for a model of {config.vocab_size} ids; is it the right one?")
    return Opened(config, tensors, tokenizer, path)


def _count(tokenizer: Tokenizer) -> int:
    """How many ids have a token."""
    return sum(map(bool, tokenizer.pieces)) + len(tokenizer.special)


def shardings(config: model.Config, mesh: Mesh | None, name: str):
    """Where the parameters of weights of that name lie on a mesh; None: on one device.

    Raises:
        UserError: one of them does not divide over it.
    """
    if mesh is None:
        return None
    try:
        partition.check_parameters(config, mesh)
    except ValueError as error:
        raise UserError(f"{name} does not divide over the mesh: {error}") from error
    return partition.param_shardings(config, mesh)


def load(
    name: str,
    *,
    cache_dir: pathlib.Path | None = None,
    mesh: Mesh | None = None,
    dtype: str = "float32",
    say: Callable[[str], None] = lambda line: None,
) -> Loaded:
    """Weights by name, on a mesh or (None) on one device.

    Args:
        name: a folder, a .gguf file, a hub id or a pinned name (`source.find`).
        cache_dir: where a pinned package is kept; None: where everything is (`files.cache_dir`).
        mesh: parameters lie on it as `partition.param_shardings` says.
        dtype: "float32", "bfloat16", or "" for the type they are stored in (of GGUF's and float16: float32).
        say: hears what was loaded, and what is odd about it.

    Raises:
        UserError: as `open_weights` does; or a mesh over which a parameter doesn't divide.
    """
    opened = open_weights(name, cache_dir=cache_dir, say=say)
    dtype = dtype or opened.tensors.stored
    config = dataclasses.replace(opened.config, dtype=dtype, param_dtype=dtype)
    params = layout.place(config, opened.tensors, shardings(config, mesh, name))
    say(f"weights {opened.source} in {dtype}")
    return Loaded(config, params, opened.tokenizer, opened.source)
