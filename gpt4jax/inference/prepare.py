"""Parameters as decoding wants them: layers apart, matrices with their outputs first, in bf16 or int8 if asked.

Training stacks each parameter over the layers, so that a scan can run through them. Decoding reads every
weight for each token and does little else; a slice of a stacked array would be copied before it is read.
"""

from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from gpt4jax.model import axes
from gpt4jax.model.config import Config
from gpt4jax.model.layers import Matrix
from gpt4jax.model.parameters import Parameter, Params, table

WEIGHTS = ("float32", "bfloat16", "int8")


def prepare(
    config: Config, params: Params, *, weights: str = "", mesh: Mesh | None = None, consume: bool = False
) -> dict[str, Any]:
    """What `model.features` takes in the place of `params`, over a mesh or on one device.

    `weights` is the type of matrices and embeddings: "" as they are, "float32", "bfloat16", or "int8" with one
    scale for each output (a row of a matrix as it is laid out here), rounded to the nearest. Activations keep
    `config.dtype`. `consume` frees each parameter of `params` once it is done, so that there is never more than
    one of them twice.

    Raises:
        ValueError: another name of a type.
    """
    if weights not in ("", *WEIGHTS):
        raise ValueError(f"weights are {weights!r}; they must be one of {', '.join(WEIGHTS)}")
    out: dict[str, Any] = {}
    stacked: dict[str, list[Any]] = {}
    for row in table(config):
        array = params[row.group][row.name]
        if mesh is not None:
            array = jax.device_put(array, NamedSharding(mesh, axes.spec(row.axes)))
        lay_out = _layout(row, weights, jnp.dtype(config.param_dtype), _shardings(row, weights, mesh))
        # One layer at a time: a program of all of them would take a second to compile.
        parts = [lay_out(array, i) for i in range(len(array))] if row.group == "layers" else lay_out(array)
        jax.block_until_ready(parts)
        if consume:
            for used in (array, params[row.group][row.name]):
                used.delete()
        if row.group == "layers":
            stacked[row.name] = parts
        else:
            out.setdefault(row.group, {})[row.name] = parts
    out["layers"] = tuple({name: parts[i] for name, parts in stacked.items()} for i in range(config.num_layers))
    return out


def _is_matrix(row: Parameter) -> bool:
    """Whether decoding multiplies by it (and for the embedding: looks it up in the same array)."""
    return row.matmul or row.name == "token_vd"


@cache
def _layout(row: Parameter, weights: str, dtype: jnp.dtype, shardings: Any):
    """The jitted function from a parameter, and the number of a layer where it is stacked, to what decoding takes."""

    def lay_out(array, layer=None):
        if layer is not None:
            array = jax.lax.dynamic_index_in_dim(array, layer, keepdims=False)
        if not _is_matrix(row):
            return array
        values = jnp.moveaxis(array, range(row.inputs), range(-row.inputs, 0))
        if weights == "int8":
            return _quantize(values, max(row.inputs, 1))
        return Matrix(values.astype(weights or dtype), None)

    return jax.jit(lay_out, out_shardings=shardings)


def _quantize(values: jax.Array, inputs: int) -> Matrix:
    inner = tuple(range(values.ndim - inputs, values.ndim))
    values = values.astype(jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(values), axis=inner, keepdims=True), 1e-30) / 127
    return Matrix(jnp.round(values / scale).astype(jnp.int8), jnp.squeeze(scale, inner))


def _shardings(row: Parameter, weights: str, mesh: Mesh | None) -> Any:
    if mesh is None:
        return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    place = partial(NamedSharding, mesh)
    names = row.axes[1:] if row.group == "layers" else row.axes
    if not _is_matrix(row):
        return place(axes.spec(names))
    outputs = names[row.inputs :] if row.inputs else names[:1]
    inputs = names[: row.inputs] if row.inputs else names[1:]
    scale = place(axes.spec(outputs)) if weights == "int8" else None
    return Matrix(place(axes.spec((*outputs, *inputs))), scale)
