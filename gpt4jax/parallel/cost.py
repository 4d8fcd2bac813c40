"""How long a scheduled program takes on a slice: a model, with few constants, which are fitted on published runs.

The schedule (`gpt4jax.parallel.hlo`) is gone through once, as a device would. Arithmetic takes the cycles that the
compiler estimates, times a constant, over the clock. Attention kernels, of which it estimates nothing, take the
operations of the tiles that they compute over a share of the peak. A collective takes the bytes that a device sends
over what its links carry, in the order of the schedule; what of that is not over when its result is needed is
exposed, and only that is counted. Loops count as often as they run.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt4jax.model import parts, patterns, tiles
from gpt4jax.model.config import Config
from gpt4jax.model.kernels import tiling, tpu
from gpt4jax.parallel.hlo import Collective, Compute, Done, Kernel, Loop, Schedule, Start
from gpt4jax.parallel.topology import DCN_BANDWIDTH, Topology


class Constants(NamedTuple):
    """What is not on a data sheet.

    Attributes:
        cycles: seconds of arithmetic over those that the compiler's cycles stand for.
        kernels: share of what a matrix unit can do with heads of their width that attention kernels reach on the tiles
            that they compute.
        links: share of their bandwidth that links carry.
    """

    cycles: float
    kernels: float
    links: float


# cycles and links: fitted by `python -m tests.bench.cost_model` on the rows that it says. kernels: what splash
# attention reaches on Ironwood at 8k to 128k, forward (24.9 to 34.3% of the peak at heads of 128, 44.9 to 63.4% at 256,
# of half the square), over the tiles of 2048 that it computes; ours have been run on no TPU.
CONSTANTS = Constants(cycles=0.85, kernels=0.63, links=0.8)


class Placement:
    """A mesh on a slice: which of its axes a collective goes along, and what its links carry there."""

    def __init__(self, topology: Topology, axes: Mapping[str, int], devices: Sequence[Any]) -> None:
        """`devices` in the order of the mesh, whose axes and sizes `axes` are."""
        self._topology = topology
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

    def seconds(self, collective: Collective, constants: Constants) -> float:
        """How long the links are busy with it."""
        if collective.kind == "collective-permute":
            pairs = np.array(collective.groups)
            if (self._slices[pairs[:, 0]] != self._slices[pairs[:, 1]]).any():
                return collective.size / DCN_BANDWIDTH
            link = self._topology.device.link_bandwidth * constants.links
            return collective.size * self._hops(pairs) / link
        group = list(collective.groups[0])
        slices = len(set(self._slices[group]))
        if slices == 1:
            return collective.sent / (self._bandwidth(group) * constants.links)
        inner = [device for device in group if self._slices[device] == self._slices[group[0]]]
        within = 0.0
        if len(inner) > 1:  # first in every slice, then what is left of it between slices
            within = collective.sent / (self._bandwidth(inner) * constants.links)
        return within + collective.sent / len(inner) / DCN_BANDWIDTH

    def _hops(self, pairs: np.ndarray) -> float:
        """How many links a message passes on average: every link then carries so many."""
        apart = np.abs(self._chips[pairs[:, 0]] - self._chips[pairs[:, 1]])
        for side, size in enumerate(self._topology.sides):
            if self._topology.links(side) == 2:
                apart[:, side] = np.minimum(apart[:, side], size - apart[:, side])
        return max(float(apart.sum(axis=1).mean()), 0.25)  # within a chip: not over links, but not for nothing

    def _bandwidth(self, group: list[int]) -> float:
        """Bytes/s that a device of a group sends: both ways along a side that the group closes, else one way."""
        topology, ways = self._topology, 0.0
        for side, size in enumerate(topology.sides):
            taken = np.unique(self._chips[group, side])
            if len(taken) > 1:
                apart = int(np.diff(taken).min())
                ways += (topology.links(side) if len(taken) * apart == size else 1) / apart
        cores = len(set(self._cores[group]))
        return topology.device.link_bandwidth * max(ways, 1.0) * cores  # both cores of a chip get the same bytes once


def tile_areas(config: Config, seq_len: int) -> dict[tuple[int, int], int]:
    """Pairs in a tile of the attention kernels, by the tiles in a row and the row's length in whole tiles."""
    areas: dict[tuple[int, int], int] = {}
    group = config.num_heads // config.num_kv_heads
    for pattern in dict.fromkeys(config.attention):
        for _, mask, indices in parts.head_groups(patterns.from_pattern(pattern, config.num_kv_heads)):
            for part in parts.without_windows(parts.split(mask, indices, False, 0, seq_len, seq_len)):
                _, queries, keys = tiles.shape(part, seq_len)
                q_size, k_size = (tpu._size(part, group, length) for length in (queries, keys))
                kinds = tiling._kinds(part.plan, part.offset, queries, keys, q_size, k_size, True)
                for of in (kinds, kinds.T):
                    areas[len(tpu._tiles(of)[0]), -(-queries // q_size) * q_size] = q_size * k_size
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


@dataclasses.dataclass
class Cost:
    """What a program costs a device.

    Attributes:
        seconds: all of it.
        arithmetic, attention: seconds of fusions, and of kernels.
        exposed: seconds that it waits for collectives, by mesh axis.
        bytes: that it sends, by kind of collective and mesh axis.
        kernel_flops: operations of attention kernels.
    """

    seconds: float = 0.0
    arithmetic: float = 0.0
    attention: float = 0.0
    kernel_flops: float = 0.0
    exposed: dict[str, float] = dataclasses.field(default_factory=lambda: defaultdict(float))
    bytes: dict[tuple[str, str], float] = dataclasses.field(default_factory=lambda: defaultdict(float))

    def add(self, other: "Cost", times: int) -> None:
        """Adds what another costs so many times."""
        for name in ("seconds", "arithmetic", "attention", "kernel_flops"):
            setattr(self, name, getattr(self, name) + times * getattr(other, name))
        for name in ("exposed", "bytes"):
            for key, value in getattr(other, name).items():
                getattr(self, name)[key] += times * value

    @property
    def bound_by(self) -> str:
        """What takes most of the time."""
        kinds = {"arithmetic": self.arithmetic, "attention": self.attention}
        kinds |= {f"collectives over {axis}": seconds for axis, seconds in self.exposed.items()}
        return max(kinds, key=lambda kind: kinds[kind])


def cost(
    schedule: Schedule, placement: Placement, areas: Mapping[tuple[int, int], int], constants: Constants = CONSTANTS
) -> Cost:
    """What a device spends on a schedule; collectives that are in flight at once along one axis wait for each other."""
    device = placement._topology.device
    total, now, seconds = Cost(), 0.0, 0.0
    busy: dict[Any, float] = {}
    arrives: dict[str, tuple[str, float]] = {}
    for step in schedule:
        if isinstance(step, Compute):
            seconds = step.size / device.hbm_bandwidth
            if step.cycles is not None:
                seconds = constants.cycles * step.cycles / device.clock
            total.arithmetic += seconds
            now += seconds
        elif isinstance(step, Kernel):
            flops = kernel_flops(step, areas)
            seconds = flops / (device.peak_flops * constants.kernels * min(1.0, step.operands[3][1][-1] / device.mxu))
            total.kernel_flops += flops
            total.attention += seconds
            now += seconds
        elif isinstance(step, Start):
            axis = placement.axes(step.collective)
            total.bytes[step.collective.kind, axis] += step.collective.sent
            lane = (axis, step.collective.groups[0]) if step.collective.kind == "collective-permute" else axis
            busy[lane] = max(now, busy.get(lane, 0.0)) + placement.seconds(step.collective, constants)
            arrives[step.key] = axis, busy[lane]
        elif isinstance(step, Done):
            axis, arrival = arrives.get(step.key, ("", 0.0))
            if arrival > now:
                total.exposed[axis] += arrival - now
                now = arrival
        elif isinstance(step, Loop):
            inner = cost(step.steps, placement, areas, constants)
            total.add(dataclasses.replace(inner, seconds=0.0), step.trips)
            now += step.trips * inner.seconds
    total.seconds = now
    return total
