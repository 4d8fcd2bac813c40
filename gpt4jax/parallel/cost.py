"""How long a scheduled program takes on a slice: a model, with few constants, which are fitted on published runs.

The schedule (`gpt4jax.parallel.schedule`) is gone through once, as a device would. Arithmetic takes the cycles that the
compiler estimates, times a constant, over the clock. Attention kernels, of which it estimates nothing, take the
operations of the tiles that they compute over a share of the peak. A collective takes the bytes that a device sends
over what its links carry, in the order of the schedule; what of that is not over when its result is needed is
exposed, and only that is counted. Loops count as often as they run.

Where the published runs and our programs differ (what is kept or recomputed, what XLA overlaps for another program),
the constants take it up: they are those of the runs as a whole.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt4jax.model import layers, parts, tiles
from gpt4jax.model.config import Config, encoder
from gpt4jax.model.kernels import tiling, tpu
from gpt4jax.model.masks import Mask, full
from gpt4jax.parallel.schedule import Collective, Compute, Done, Kernel, Loop, Schedule, Start
from gpt4jax.parallel.topology import DCN_BANDWIDTH, Topology


class Constants(NamedTuple):
    """What is not on a data sheet.

    Attributes:
        products: seconds of products of matrices, with what is fused to them, over those that the compiler's cycles
            stand for.
        elementwise: the same of all else. (The compiler gives a copy of bfloat16 four times what its bytes take.)
        kernels: share of what a matrix unit can do with heads of their width that attention kernels reach on the tiles
            that they compute.
        links: share of their bandwidth that links carry.
    """

    products: float
    elementwise: float
    kernels: float
    links: float


# `python -m tests.bench.cost_model --fit` gives them, and says on which rows: one or two of each kind of chip.
PRODUCTS = {"v4": 1.08, "v5e": 0.86, "v5p": 0.85, "v6e": 0.72, "tpu7x": 1.01}
ELEMENTWISE = 0.49
# Of the published kernels: ours have been run on no TPU. (Splash attention on Ironwood, forward, at 8k to 128k: 24.9
# to 34.3% of the peak with heads of 128, with which half of a matrix unit is idle, 44.9 to 63.4% with 256: over the
# tiles of 2048 that it computes 56% to 70%.)
KERNELS = 0.77
LINKS = 1.0


def constants(kind: str) -> Constants:
    """The constants of a kind of chip, a key of `topology.DEVICES`."""
    return Constants(PRODUCTS[kind], ELEMENTWISE, KERNELS, LINKS)


class Placement:
    """A mesh on a slice: which of its axes a collective goes along, and what its links carry there."""

    def __init__(self, topology: Topology, axes: Mapping[str, int], devices: Sequence[Any]) -> None:
        """`devices` in the order of the mesh, whose axes and sizes `axes` are."""
        self.topology = topology
        self._axes = tuple(axes)
        self._places = np.stack(np.unravel_index(np.arange(len(devices)), tuple(axes.values())), axis=1)
        self._chips = np.array([list(device.coords)[: len(topology.sides)] for device in devices])
        self._cores = np.array([device.core_on_chip for device in devices])
        self._slices = np.array([getattr(device, "slice_index", None) or 0 for device in devices])

    def axes(self, collective: Collective) -> str:
        """The mesh axes along which members of a group differ, such as "fsdp" or "data+fsdp"."""
        moved = np.zeros(len(self._axes), bool)
        for group in collective.groups:
            of_group = self._places[list(group)]
            moved |= (of_group != of_group[0]).any(axis=0)
        return "+".join(axis for axis, differs in zip(self._axes, moved, strict=True) if differs) or "none"

    def seconds(self, collective: Collective) -> float:
        """How long links are busy with it that carry all that their data sheet says."""
        device = self.topology.device
        between = DCN_BANDWIDTH / device.per_chip
        if collective.kind == "collective-permute":
            pairs = np.array(collective.groups)
            if (self._slices[pairs[:, 0]] != self._slices[pairs[:, 1]]).any():
                return collective.size / between
            return collective.size * self._hops(pairs) / device.link_bandwidth
        group = list(collective.groups[0])
        slices = len(set(self._slices[group]))
        if slices == 1:
            return collective.sent / self._bandwidth(group)
        inner = [device for device in group if self._slices[device] == self._slices[group[0]]]
        within = 0.0
        if len(inner) > 1:  # first in every slice, then what is left of it between slices
            within = collective.sent / self._bandwidth(inner)
        return within + collective.sent / len(inner) / between

    def _hops(self, pairs: np.ndarray) -> float:
        """How many links a message passes on average: every link then carries so many."""
        apart = np.abs(self._chips[pairs[:, 0]] - self._chips[pairs[:, 1]])
        for side, size in enumerate(self.topology.sides):
            if self.topology.links(side) == 2:
                apart[:, side] = np.minimum(apart[:, side], size - apart[:, side])
        return max(float(apart.sum(axis=1).mean()), 0.25)  # within a chip: not over links, but not for nothing

    def _bandwidth(self, group: list[int]) -> float:
        """Bytes/s that a device of a group sends: both ways along a side that the group closes, else one way."""
        topology, ways = self.topology, 0.0
        for side, size in enumerate(topology.sides):
            taken = np.unique(self._chips[group, side])
            if len(taken) > 1:
                apart = int(np.diff(taken).min())
                ways += (topology.links(side) if len(taken) * apart == size else 1) / apart
        cores = len(set(self._cores[group]))
        return topology.device.link_bandwidth * max(ways, 1.0) * cores  # both cores of a chip get the same bytes once


class _Attention(NamedTuple):
    """Attention of one kind of layer: its masks, query heads for each, and the last `queries` of a row's `keys`."""

    of_heads: Sequence[Mask]
    group: int
    queries: int
    keys: int


def _attentions(config: Config, seq_len: int, patches: int, images: int) -> list[_Attention]:
    group = config.num_heads // config.num_kv_heads
    found = [
        _Attention(layers.masks_of_heads(config, pattern, patches > 0), group, seq_len, seq_len)
        for pattern in dict.fromkeys(config.attention)
    ]
    if (vision := config.vision) is not None and vision.encoder:
        seen = patches + (images if vision.class_token else 0)
        found.append(_Attention(layers.masks_of_heads(encoder(config), "dense", False), 1, seen, seen))
        if vision.frontend == "resampler":
            latents = images * vision.resampler_len
            found.append(_Attention((full(),) * vision.num_heads, 1, latents, patches + latents))
    return found


def tile_areas(config: Config, seq_len: int, patches: int = 0, images: int = 0) -> dict[tuple[int, int], int]:
    """Pairs in a tile of the attention kernels, by the tiles in a row and the row's length in whole tiles.

    A row has `seq_len` tokens, and room for so many patches of so many images.

    Raises:
        ValueError: two kernels that can't be told apart by these have tiles of different sizes.
    """
    areas: dict[tuple[int, int], int] = {}
    for of_heads, group, length, seen in _attentions(config, seq_len, patches, images):
        for _, mask, indices in parts.head_groups(of_heads):
            for part in parts.without_windows(parts.split(mask, indices, False, seen - length, length, seen)):
                _, queries, keys = (0, length, seen) if part.kind == "whole" else tiles.shape(part, length)
                q_size, k_size = (tpu._size(part, group, some) for some in (queries, keys))
                kinds = tiling._kinds(part.plan, part.offset, queries, keys, q_size, k_size, True)
                for of in (kinds, kinds.T):
                    key = len(tpu._tiles(of)[0]), -(-queries // q_size) * q_size
                    if areas.setdefault(key, q_size * k_size) != q_size * k_size:
                        raise ValueError(f"two kernels of {key[0]} tiles in rows of {key[1]} have tiles of two sizes")
    return areas


def kernel_flops(kernel: Kernel, areas: Mapping[tuple[int, int], int]) -> float:
    """Operations of an attention kernel in the tiles that it computes, masked pairs among them.

    Two products a pair forward, three for the gradient of the queries, four for those of keys and values, which work
    out the scores again.

    Raises:
        ValueError: a kernel that is none of attention's, or of another mask than `areas` are of.
    """
    (_, counts), (_, queries) = kernel.operands[0], kernel.operands[3]
    products = {3: 2, 1: 3, 2: 4}.get(len(kernel.results))
    if products is None or len(counts) != 1 or len(queries) != 6 or (counts[0], queries[4]) not in areas:
        raise ValueError(f"a kernel that is not attention's as planned: {kernel.operands[0]}, {kernel.operands[3]}")
    rows, batch, kv_heads, group, length, width = queries
    pairs = counts[0] * areas[counts[0], length] * rows * batch * kv_heads * group
    return 2.0 * products * width * pairs


class Busy(NamedTuple):
    """A device computes: `seconds` at the best of its data sheet, or by the compiler's cycles.

    `kind` is products, elementwise, memory (what the compiler has no cycles for) or attention.
    """

    kind: str
    seconds: float
    flops: float = 0.0


class Sending(NamedTuple):
    """A collective begins; those of one lane wait for each other. `seconds` as above."""

    key: str
    axis: str
    lane: str
    kind: str
    bytes: float
    seconds: float


class Repeated(NamedTuple):
    """A loop."""

    trips: int
    steps: "Priced"


Priced = tuple[Busy | Sending | Done | Repeated, ...]


def priced(schedule: Schedule, placement: Placement, areas: Mapping[tuple[int, int], int]) -> Priced:
    """A schedule with what each of its steps takes on a slice."""
    device = placement.topology.device
    steps: list[Any] = []
    for step in schedule:
        if isinstance(step, Compute):
            kind = "products" if step.product else "elementwise"
            by_bytes = Busy("memory", step.size / device.hbm_bandwidth)
            steps.append(by_bytes if step.cycles is None else Busy(kind, step.cycles / device.clock))
        elif isinstance(step, Kernel):
            flops = kernel_flops(step, areas)
            reach = device.peak_flops * min(1.0, step.operands[3][1][-1] / device.mxu)
            steps.append(Busy("attention", flops / reach, flops))
        elif isinstance(step, Start):
            what = step.collective
            axis = placement.axes(what)
            # A permute goes one way round; those that go the other way have links of their own.
            lane = f"{axis} {what.groups[0]}" if what.kind == "collective-permute" else axis
            steps.append(Sending(step.key, axis, lane, what.kind, what.sent, placement.seconds(what)))
        elif isinstance(step, Loop):
            steps.append(Repeated(step.trips, priced(step.steps, placement, areas)))
        else:
            steps.append(step)
    return tuple(steps)


@dataclasses.dataclass
class Cost:
    """What a program costs a device.

    Attributes:
        seconds: all of it.
        busy: seconds of each kind of `Busy`.
        exposed: seconds that it waits for collectives, by mesh axis.
        bytes: that it sends, by kind of collective and mesh axis.
        kernel_flops: operations of attention kernels.
    """

    seconds: float = 0.0
    kernel_flops: float = 0.0
    busy: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    exposed: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    bytes: dict[tuple[str, str], float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Cost", times: int) -> None:
        """Adds what another costs so many times."""
        self.seconds += times * other.seconds
        self.kernel_flops += times * other.kernel_flops
        for name in ("busy", "exposed", "bytes"):
            for key, value in getattr(other, name).items():
                getattr(self, name)[key] += times * value

    @property
    def by_kind(self) -> dict[str, float]:
        """Seconds that add up to all."""
        return dict(self.busy) | {f"collectives over {axis}": seconds for axis, seconds in self.exposed.items()}

    @property
    def bound_by(self) -> str:
        """What takes most of the time."""
        return max(self.by_kind, key=lambda kind: self.by_kind[kind])


def cost(steps: Priced, constants: Constants) -> Cost:
    """What a device spends on a program; of a collective only the time counts in which nothing else goes on."""
    shares = {
        "products": constants.products, "elementwise": constants.elementwise,
        "memory": 1.0, "attention": 1 / constants.kernels,
    }  # fmt: skip
    total, free, arrives = Cost(), defaultdict[str, float](float), dict[str, tuple[str, float]]()
    for step in steps:
        if isinstance(step, Busy):
            seconds = step.seconds * shares[step.kind]
            total.busy[step.kind] += seconds
            total.seconds += seconds
            total.kernel_flops += step.flops
        elif isinstance(step, Sending):
            free[step.lane] = max(total.seconds, free[step.lane]) + step.seconds / constants.links
            arrives[step.key] = step.axis, free[step.lane]
            total.bytes[step.kind, step.axis] += step.bytes
        elif isinstance(step, Done):
            axis, arrival = arrives.get(step.key, ("", 0.0))
            if arrival > total.seconds:
                total.exposed[axis] += arrival - total.seconds
                total.seconds = arrival
        else:
            total.add(cost(step.steps, constants), step.trips)
    return total
