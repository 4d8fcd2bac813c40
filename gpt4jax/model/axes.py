"""The one table that maps logical axes to mesh axes.

It stands at the bottom of the package because the decoder constrains its activations by it;
`gpt4jax.parallel.partition` shards parameters and batches by the same table.
"""

import math

import jax
from jax.sharding import PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor", "context")

# Parameters and activations have two separate sets of names: FSDP shards a parameter's embed axis
# over the same devices that hold different rows of the batch, or different tokens of a row.
RULES: dict[str, tuple[str, ...]] = {
    "layers": (),
    "positions": (),
    "patch": (),  # pixels of a patch, or its levels
    "head_dim": (),
    "vocab": ("tensor",),
    "embed": ("fsdp", "context"),
    "mlp": ("tensor",),
    "heads": ("tensor",),
    "kv_heads": ("tensor",),
    "norm": (),
    "rank": (),  # of low-rank adapters
    "act_batch": ("data", "fsdp"),
    "act_len": ("context",),
    # Between attention and MLP nothing mixes tokens: norms and sums are shared out over tensor too, and so is what a
    # layer keeps for the backward pass (sequence parallelism, Korthikanti et al. 2022).
    "act_stream": ("context", "tensor"),
    "act_patches": (),  # of images, which a row has beside its tokens
    "act_cache": (),  # tokens that are over: of a KV cache or a memory
    "act_embed": (),
    "act_heads": ("tensor",),
    "act_kv_heads": ("tensor",),
    "act_head_dim": (),
    "act_mlp": ("tensor",),
    "act_vocab": ("tensor",),
}


def spec(axes: tuple[str, ...]) -> PartitionSpec:
    """The PartitionSpec of an array with these logical axes.

    Raises:
        ValueError: an axis without a rule, or two axes of one array on the same mesh axis.
    """
    unknown = [axis for axis in axes if axis not in RULES]
    if unknown:
        raise ValueError(f"logical axis {unknown[0]!r} has no sharding rule; known axes: {', '.join(RULES)}")
    used = [mesh_axis for axis in axes for mesh_axis in RULES[axis]]
    twice = sorted({mesh_axis for mesh_axis in used if used.count(mesh_axis) > 1})
    if twice:
        raise ValueError(f"logical axes {axes} collide: mesh axis {twice[0]!r} would shard more than one of them")
    return PartitionSpec(*(RULES[axis] or None for axis in axes))


def shards(axis: str) -> int:
    """Into how many parts the mesh in use (`jax.set_mesh`) divides a logical axis; without a mesh, 1."""
    mesh = jax.sharding.get_abstract_mesh()
    return 1 if mesh.empty else math.prod(mesh.shape[mesh_axis] for mesh_axis in RULES[axis])


def constrain(x: jax.Array, *axes: str) -> jax.Array:
    """Keeps `x` sharded by its logical axes under the mesh in use (`jax.set_mesh`); without a mesh, `x` itself."""
    if jax.sharding.get_abstract_mesh().empty:
        return x
    return jax.lax.with_sharding_constraint(x, spec(axes))
