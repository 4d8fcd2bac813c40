"""Maximal update parametrisation: one table by which hyper-parameters tuned on a small decoder serve a large one.

Width by Tensor Programs V (Yang et al. 2022, tables 3 and 8, Adam): m = embed_dim / base_embed_dim, with the MLP
and the heads grown in proportion. Depth by CompleteP (Dey et al. 2025): l = num_layers / base_num_layers, where
every residual branch is divided by l, so that each layer goes on learning as depth grows and the learning
rate stays. At the base shape (m = l = 1) only the zero below differs from the standard parametrisation.

    role     what                               first std     learning rate   eps of Adam
    input    embeddings                         s             1               1/m
    hidden   matrices inside the blocks         s / sqrt(m)   1/m             1/(m l)
    query    hidden, and 0 at first             0             1/m             1/(m l)
    output   the output matrix                  s             1               1/m
    vector   norms and biases                   as they are   1               1/m, in blocks 1/(m l)

    forward pass: branches of the residual stream times 1/l; logits times 1/m;
    attention scores q k sqrt(base_head_dim) / head_dim, which is q k / sqrt(head_dim) at the base.

s is init_std; of matrices that write into the residual stream s / sqrt(2 base_num_layers). Weight decay is that of
the schedule's learning rate for every role. Zero queries are Yang et al.'s advice (appendix D.2): attention that is
even at the start does not depend on the width. Queries behind qk_norm are not zeroed: a norm has no use for zeros.
Yang et al.'s zero outputs are not here: gradients then reach the decoder through a matrix that has only begun to
grow, which short runs do not make up for (the runs of configs/mup.py at 64x2, best rate, three seeds: 2.48 nats/token
against 2.13 with outputs of s).
"""

import dataclasses
import math
from typing import Any, NamedTuple

from gpt4jax.model.config import Config


class Scale(NamedTuple):
    """Factors of one parameter's initial standard deviation, learning rate and Adam's eps."""

    std: float = 1.0
    learning_rate: float = 1.0
    eps: float = 1.0


class Multipliers(NamedTuple):
    """Factors in the forward pass: of a residual branch, of the logits, and of q k / sqrt(head_dim)."""

    residual: float = 1.0
    output: float = 1.0
    attention: float = 1.0


def scale(config: Config, role: str, group: str) -> Scale:
    """The table's row for a parameter of this role; `group` as in `parameters.Parameter`."""
    if config.parametrization == "standard":
        return Scale()
    m, l = _ratios(config)  # noqa: E741 - the papers' letters
    eps = 1 / (m * l) if group == "layers" else 1 / m
    return {
        "input": Scale(1.0, 1.0, eps),
        "hidden": Scale(1 / math.sqrt(m), 1 / m, eps),
        "query": Scale(1 / math.sqrt(m) if config.qk_norm else 0.0, 1 / m, eps),
        "output": Scale(1.0, 1.0, eps),
        "vector": Scale(1.0, 1.0, eps),
    }[role]


def multipliers(config: Config) -> Multipliers:
    """The table's last lines."""
    if config.parametrization == "standard":
        return Multipliers()
    m, l = _ratios(config)  # noqa: E741
    return Multipliers(1 / l, 1 / m, math.sqrt(config.base_head_dim / config.head_dim))


def residual_std(config: Config) -> float:
    """The initial standard deviation of matrices that write into the residual stream, before `Scale.std`.

    GPT-2's: smaller by the number of such writes; under muP of those of the base, as branches are divided further on.
    """
    layers = config.num_layers if config.parametrization == "standard" else config.base_num_layers
    return config.init_std / math.sqrt(2 * layers)


def fold(config: Config, params):
    """The same decoder in the standard parametrisation: (config, parameters) with every multiplier in the weights.

    For layouts that know no multipliers. It computes the same function, and would train otherwise.
    """
    if config.parametrization == "standard":
        return config, params
    by = multipliers(config)
    layers, final = dict(params["layers"]), dict(params["final"])

    def times(group: dict, names: tuple[str, ...], factor: float) -> None:
        for name in names:
            if name in group:
                group[name] = (group[name] * factor).astype(group[name].dtype)

    times(layers, ("out_nhd", "out_bias_d", "down_fd", "down_bias_d"), by.residual)
    query = ("query_norm_h",) if config.qk_norm else ("query_dnh", "query_bias_nh")
    times(layers, query, by.attention)
    shared = dict(params.get("shared", {}))
    for group in (layers, shared):
        times(group, ("content_bias_nh", "distance_bias_nh"), by.attention)
    times(final, ("norm_d", "norm_bias_d") if config.tie_embeddings else ("unembed_vd",), by.output)
    out = {**params, "layers": layers, "final": final} | ({"shared": shared} if shared else {})
    return dataclasses.replace(config, parametrization="standard"), out


def _ratios(config: Config) -> tuple[float, float]:
    return config.embed_dim / config.base_embed_dim, config.num_layers / config.base_num_layers


def grow(config: Config, embed_dim: int, num_layers: int, *, by: str = "num_heads") -> Config:
    """The decoder at another width and depth, its MLP and its attention in proportion.

    `by`: what follows the width, "num_heads" (heads stay as wide as they are) or "head_dim" (as many heads).

    Raises:
        ValueError: the attention can't be grown to that width in whole numbers.
    """
    ratio = embed_dim / config.embed_dim
    fields: dict[str, Any] = dict(embed_dim=embed_dim, num_layers=num_layers, mlp_dim=round(ratio * config.mlp_dim))
    for name in ("num_heads", "num_kv_heads") if by == "num_heads" else ("head_dim",):
        fields[name], rest = divmod(embed_dim * getattr(config, name), config.embed_dim)
        if rest or not fields[name]:
            raise ValueError(
                f"a decoder of embed_dim {config.embed_dim} and {name} {getattr(config, name)} has no whole {name} "
                f"at embed_dim {embed_dim}"
            )
    return dataclasses.replace(config, **fields)
