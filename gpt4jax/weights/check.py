"""Whether a file's tensors are those of a decoder."""

import re

import numpy as np

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.weights import layout

# Buffers that old checkpoints hold and that follow from the config: rotary frequencies, GPT-2's causal masks.
_BUFFERS = re.compile(r"rotary_emb\.inv_freq$|\.attn\.(masked_)?bias$")
_OUTPUT = "lm_head.weight"


def check(config: model.Config, tensors: layout.Tensors, where: str) -> None:
    """Checks every tensor's name and shape; a tied output matrix that is there must equal the embedding.

    Raises:
        UserError: what is missing, too many, or of another shape.
    """
    if config.num_layers > len(tensors.shapes):  # before a name is made for each of them
        raise UserError(
            f"{where} holds {len(tensors.shapes)} tensors, too few for the {config.num_layers} layers it states"
        )
    wanted = {name: layout.hf_shape(parts[0][0]) for name, parts in layout.expected(config).items()}
    found = {name: shape for name, shape in tensors.shapes.items() if not _BUFFERS.search(name)}
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"{where} lacks {_some(missing)} of the {len(wanted)} tensors that its config calls for")
    for name, shape in wanted.items():
        if found[name] != shape:
            raise UserError(f"{where}: {name} is {_shape(found[name])}, and by its config should be {_shape(shape)}")
    extra = [name for name in found if name not in wanted]
    if config.tie_embeddings and _OUTPUT in extra:
        extra.remove(_OUTPUT)
        if not _equal(tensors.read(_OUTPUT), tensors.read(next(iter(wanted)))):
            raise UserError(
                f"{where}: {_OUTPUT} differs from the token embedding, but its config ties them "
                "(tie_word_embeddings); say false there if the file is right"
            )
    if extra:
        raise UserError(f"{where} holds {_some(extra)}, which its config knows nothing of")


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    step = max(1, 2**24 // max(1, a.shape[-1]))
    return a.shape == b.shape and all(np.array_equal(a[i : i + step], b[i : i + step]) for i in range(0, len(a), step))


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
