"""Which meshes, remat policies and batch sizes a sweep looks at, by arithmetic alone: pure functions of shapes.

The arithmetic is rough, and orders candidates before any is compiled: what is compiled decides.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping
from typing import Any

from gpt4jax.model import flops, parameters
from gpt4jax.model.config import Config
from gpt4jax.parallel import partition
from gpt4jax.parallel.topology import FITS, Topology

BUSY = 0.7  # share of the peak that products of matrices reach
TENSOR = (1, 2, 4, 8, 16)
LANES = 128  # of parameters cut into pieces that are no multiple of it XLA sums padded copies: twice as much is sent
# Sums of a layer's activations over `tensor`, each a gathering and a scattering: two forward, as many back, and what
# is gathered or computed again.
SUMS = {"none": 4, "dots": 5, "full": 7}


@dataclasses.dataclass(frozen=True)
class Candidate:
    """One way to run a config.

    Attributes:
        mesh: its sizes.
        remat, batch_size, micro_batches: as in the config.
        bytes: that a device holds, about.
        tokens_per_second: about.
    """

    mesh: tuple[tuple[str, int], ...]
    remat: str
    batch_size: int
    micro_batches: int
    bytes: float
    tokens_per_second: float

    def overrides(self) -> list[str]:
        """As flags have them after `--config.`."""
        sizes = [f"mesh.{axis}={size}" for axis, size in self.mesh]
        rows = [f"batch_size={self.batch_size}", f"optimizer.micro_batches={self.micro_batches}"]
        return [*sizes, f"model.remat={self.remat}", *rows]

    def fits(self, topology: Topology) -> bool:
        """Whether its bytes leave free what must stay free."""
        return self.bytes <= FITS * topology.device.hbm_bytes


def candidates(
    config: Config, batch_size: int, seq_len: int, topology: Topology, devices: int, micro_batches: int = 1
) -> list[Candidate]:
    """What divides, the fastest by arithmetic first: every mesh of data, fsdp and tensor, remat policy and batch size.

    Batches are the config's, half, twice and four times as much, each in `micro_batches`. `data` is the number of
    slices, or that times a power of two. Of remat policies: "full", "dots" and the config's.
    """
    out = []
    copies = [2**i for i in range((devices // topology.slices).bit_length())]
    remats = dict.fromkeys(("full", "dots", config.remat))
    for copy, tensor, remat, times in itertools.product(copies, TENSOR, remats, (0.5, 1, 2, 4)):
        rows, data = int(batch_size * times), copy * topology.slices
        if devices % (tensor * data) or rows < 1:
            continue
        mesh = {"data": data, "fsdp": devices // tensor // data, "tensor": tensor, "context": 1}
        if _divides(config, mesh, rows, micro_batches):
            remade = dataclasses.replace(config, remat=remat)
            held = device_bytes(remade, mesh, rows, seq_len, micro_batches)
            each = seconds(remade, mesh, rows // micro_batches, seq_len, topology)
            speed = rows * seq_len / (micro_batches * each)
            out.append(Candidate(tuple(mesh.items()), remat, rows, micro_batches, held, speed))
    return sorted(out, key=lambda one: -one.tokens_per_second)


class _Shape:
    """What `partition.check` asks of a mesh."""

    def __init__(self, shape: Mapping[str, int]) -> None:
        self.shape = shape


def _divides(config: Config, mesh: Mapping[str, int], rows: int, micro_batches: int) -> bool:
    shape: Any = _Shape(mesh)
    try:
        partition.check(config, shape, rows, micro_batches)
    except ValueError:
        return False
    # Attention's kernels take whole heads; the compiler would pad.
    return config.num_kv_heads % mesh["tensor"] == 0


def device_bytes(config: Config, mesh: Mapping[str, int], rows: int, seq_len: int, micro_batches: int = 1) -> float:
    """State and gradients, what the backward pass of a micro-batch keeps, one layer's work and a chunk's logits."""
    tensor, context, shards = mesh["tensor"], mesh.get("context", 1), mesh["fsdp"] * mesh["tensor"]
    # Parameters, two moments, gradients; and where there are several micro-batches the gradients' sum.
    width, state = 2, (4 if micro_batches == 1 else 5) * config_bytes(config)
    tokens = rows // micro_batches // (mesh["data"] * mesh["fsdp"]) * seq_len / context
    gates = 2 if config.activation == "swiglu" else 1
    heads = (config.num_heads + 2 * config.num_kv_heads) * config.head_dim
    inner = (gates * config.mlp_dim + heads) / tensor
    cycle = len(config.attention)
    divided = config.position != "transformer_xl" and seq_len % (tensor * context) == 0
    stream = config.embed_dim / (tensor if divided else 1)  # as `layers.stream` has it
    kept = {
        "full": config.num_layers / cycle * stream,
        "dots": config.num_layers * (3 * stream + inner),
        "none": config.num_layers * (2 * config.embed_dim + 6 * stream + 3 * inner),
    }[config.remat]
    layer = cycle * (2 * config.embed_dim + 6 * stream + 3 * inner)
    chunk = config.loss_chunk_len or seq_len
    logits = 2 * 4 * tokens / seq_len * chunk * config.vocab_size / tensor
    return state / shards + tokens * width * (kept + layer) + logits


def config_bytes(config: Config) -> int:
    """Bytes of all parameters."""
    return parameters.count(config)["total"] * (4 if config.param_dtype == "float32" else 2)


def seconds(config: Config, mesh: Mapping[str, int], rows: int, seq_len: int, topology: Topology) -> float:
    """Products of matrices; gathering parameters, beside them if nothing is padded; sums over `tensor`."""
    device, devices = topology.device, math.prod(mesh.values())
    tensor, tokens = mesh["tensor"], rows * seq_len
    work = flops.flops_per_token(config, seq_len)["train"] * tokens * (4 / 3 if config.remat == "full" else 1.05)
    ways = sum(topology.links(side) for side in range(len(topology.sides)))
    sent = 3 * 2 * parameters.count(config)["total"] / tensor  # bfloat16, forward and twice back
    padded = config.embed_dim // mesh["fsdp"] % LANES > 0
    gathered = sent * (2 if padded else 1) / (ways * device.link_bandwidth)
    of_device = tokens / (mesh["data"] * mesh["fsdp"]) * config.embed_dim * 2 * 2 * (tensor - 1) / tensor
    summed = SUMS[config.remat] * config.num_layers * of_device / (2 * device.link_bandwidth)
    products = work / (devices * device.peak_flops * BUSY)
    return (products + gathered if padded else max(products, gathered)) + summed
