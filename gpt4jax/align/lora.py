"""Low-rank adapters (Hu et al. 2022): what training adds to a frozen decoder's matrices.

A matrix W of a layer becomes W + scale A B: A takes its inputs to `rank` numbers, B those to its outputs, and B begins
at 0. The sum is a decoder like any other: `merged` is how it is computed, decoded and exported.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from gpt4jax import model
from gpt4jax.model import axes, parameters
from gpt4jax.model.parameters import Parameter, Params

Adapters = Mapping[str, Mapping[str, jax.Array]]  # by the name of the matrix: "a" (L, inputs..., R), "b" (L, R, ...)


def adapted(config: model.Config, targets: Sequence[str]) -> list[Parameter]:
    """The matrices that get adapters: those of the layers whose names begin with one of `targets` ("query", "up").

    Raises:
        ValueError: a target that no matrix of a layer is called by.
    """
    matrices = [row for row in parameters.table(config) if row.group == "layers" and row.inputs]
    kinds = sorted({row.name.split("_")[0] for row in matrices})
    strange = [target for target in targets if target not in kinds]
    if strange or not targets:
        raise ValueError(f"adapters are for {', '.join(strange) or 'nothing'}; the layers have {', '.join(kinds)}")
    return [row for row in matrices if row.name.split("_")[0] in targets]


def init(config: model.Config, rank: int, targets: Sequence[str], key: jax.Array) -> Adapters:
    """Adapters before training: A normal with variance 1 / inputs, B zero; a matrix's do not depend on the others."""
    made = {}
    for row in adapted(config, targets):
        inputs, outputs = _sides(row)
        zeros = jnp.zeros((row.shape[0], rank, *outputs), jnp.dtype(config.param_dtype))
        own = parameters.draw(_named(row, (row.shape[0], *inputs, rank)), key, zeros.dtype)
        made[row.name] = {"a": own, "b": zeros}
    return made


def _sides(row: Parameter) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return row.shape[1 : 1 + row.inputs], row.shape[1 + row.inputs :]


def _named(row: Parameter, shape: tuple[int, ...]) -> Parameter:
    inputs = 1
    for size in shape[1:-1]:
        inputs *= size
    return Parameter(
        "adapters", row.name, shape, (*row.axes[: 1 + row.inputs], "rank"), std=inputs**-0.5, fill=0.0, role="hidden",
        decay=True, hf_name="",
    )  # fmt: skip


def specs(config: model.Config, targets: Sequence[str]) -> dict[str, dict[str, jax.sharding.PartitionSpec]]:
    """How adapters lie on a mesh: each side like the matrix's."""
    return {
        row.name: {
            "a": axes.spec((*row.axes[: 1 + row.inputs], "rank")),
            "b": axes.spec(("layers", "rank", *row.axes[1 + row.inputs :])),
        }
        for row in adapted(config, targets)
    }


def merged(base: Params, adapters: Adapters, scale: float) -> Params:
    """The decoder with its adapters added: `scale` is alpha / rank in the paper's terms."""
    layers = dict(base["layers"])
    for name, pair in adapters.items():
        a, b = pair["a"], pair["b"]
        product = jax.vmap(lambda a, b: jnp.tensordot(a, b, 1))(a, b)
        layers[name] = layers[name] + (scale * product).astype(layers[name].dtype)
    return {**base, "layers": layers}
