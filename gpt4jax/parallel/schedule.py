"""What a device does in a scheduled program, in its order: what costs something, and nothing else.

Neither what a kernel nor what a collective costs is in the program's text. Here they have their shapes, bytes and
groups; what that takes is `gpt4jax.parallel.cost`.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gpt4jax.parallel.hlo import NAME, Instruction, Module, arrays, attribute, groups, size, trips

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "copy-start", "copy-done", "after-all",
    "partition-id", "replica-id", "iota", "async-update", "optimization-barrier", "domain",
}  # fmt: skip
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Collective:
    """What devices send each other.

    Attributes:
        kind: one of `COLLECTIVES`.
        size: bytes on a device: of the gathered result of an all-gather, else of the operands.
        groups: devices (their places in the mesh, flattened) that take part with each other; of a permute, the pairs
            (source, target).
    """

    kind: str
    size: int
    groups: tuple[tuple[int, ...], ...]

    @property
    def sent(self) -> float:
        """Bytes that a device sends at least: (n - 1) / n of the whole in groups of n, twice for an all-reduce."""
        if self.kind == "collective-permute":
            return float(self.size)
        n = len(self.groups[0])
        return self.size * (n - 1) / n * (2 if self.kind == "all-reduce" else 1)


@dataclasses.dataclass(frozen=True)
class Compute:
    """Cycles by the compiler's estimate; where it has none (None), bytes that are read and written.

    `product`: whether a product of matrices is in it.
    """

    cycles: int | None
    size: int = 0
    product: bool = False


@dataclasses.dataclass(frozen=True)
class Kernel:
    """A Pallas kernel: the shapes of operands and results, as (type, sizes) each."""

    operands: tuple[tuple[str, tuple[int, ...]], ...]
    results: tuple[tuple[str, tuple[int, ...]], ...]


@dataclasses.dataclass(frozen=True)
class Start:
    """A collective begins; `key` is that of its `Done`."""

    key: str
    collective: Collective


@dataclasses.dataclass(frozen=True)
class Done:
    """What follows needs the collective's result."""

    key: str


@dataclasses.dataclass(frozen=True)
class Loop:
    """Steps that run `trips` times."""

    trips: int
    steps: "Schedule"


Schedule = tuple[Compute | Kernel | Start | Done | Loop, ...]


def schedule(module: Module) -> Schedule:
    """The steps of a program that cost something, in their order."""
    return _steps(module, module.entry)


def _steps(module: Module, computation: str) -> Schedule:
    steps: list[Any] = []
    for one in module.computations[computation].values():
        steps += _step(module, computation, one)
    return tuple(steps)


def _step(module: Module, computation: str, one: Instruction) -> Sequence[Any]:
    if one.opcode in _FREE:
        return ()
    if one.opcode == "while":
        return (Loop(trips(module, computation, one), _steps(module, attribute(one, "body"))),)
    if one.opcode == "conditional":  # the dearer branch is not known here: all, as if each ran
        names = re.search(r"branch_computations=\{([^}]*)\}", one.attributes)
        branches = (
            NAME.findall(names[1]) if names else re.findall(r"(?:true|false)_computation=%([\w.\-]+)", one.attributes)
        )
        return [step for name in branches for step in _steps(module, name)]
    if one.opcode == "call":
        return _steps(module, one.calls)
    if one.opcode == "custom-call":
        return _custom_call(module, computation, one)
    kind = _collective_kind(one.opcode)
    if kind is not None:
        return _collective(module, computation, one, kind)
    if one.opcode in ("fusion", "async-start"):
        return _fusion(module, computation, one)
    if one.opcode == "async-done":
        return (Done(one.operands[0]),)
    if not any(sizes for _, sizes in arrays(one.shape)):
        return ()  # scalars: counters and offsets
    return (_compute(module, computation, one),)


def _collective_kind(opcode: str) -> str | None:
    return next((k for k in COLLECTIVES if opcode in (k, f"{k}-start", f"{k}-done")), None)


def _collective(module: Module, computation: str, one: Instruction, kind: str) -> Sequence[Any]:
    if one.opcode.endswith("-done"):
        return (Done(one.operands[0]),)
    start = Start(one.name, _as_collective(module, computation, one, kind))
    if len(start.collective.groups[0]) == 1:
        return ()
    return (start,) if one.opcode.endswith("-start") else (start, Done(one.name))


def _as_collective(module: Module, computation: str, one: Instruction, kind: str) -> Collective:
    sizes = sum(size(module.computations[computation][name].shape) for name in one.operands)
    found = groups(one.attributes)
    if kind == "all-gather":
        sizes *= len(found[0])
    return Collective(kind, sizes, found)


def _fusion(module: Module, computation: str, one: Instruction) -> Sequence[Any]:
    """A fusion's cycles, and what of a collective begins, ends or happens in it.

    A collective fused with what runs beside it ("async collective fusion") is a chain of fusions in which it appears
    again and again: it begins where AsyncCollectiveStart is called, and ends where AsyncCollectiveDone is.
    """
    inner = list(_within(module, one.calls))
    found = [(place, each, kind) for place, each in inner if (kind := _collective_kind(each.opcode))]
    targets = {
        target
        for _, each in inner
        for target in re.findall(r'custom_call_target="(AsyncCollective\w+)"', each.attributes)
    }
    own: list[Any] = []
    if one.opcode == "fusion" and not (found and not _CYCLES.search(one.attributes)):
        own = [_compute(module, computation, one)]
    if not found:
        return own
    place, each, kind = found[0]
    channel = re.search(r"channel_id=\d+", each.attributes)
    key = channel[0] if channel and (targets or _in_chain(each)) else one.name
    if "AsyncCollectiveDone" in targets:
        return [*own, Done(key)]
    if _in_chain(each) and "AsyncCollectiveStart" not in targets:
        return own
    if kind == "all-reduce" and "scatter" in one.calls:
        kind = "reduce-scatter"
    start = Start(key, _as_collective(module, place, each, kind))
    if len(start.collective.groups[0]) == 1:
        return own
    return [*own, start] if targets or one.opcode == "async-start" else [*own, start, Done(key)]


def _within(module: Module, computation: str) -> Iterator[tuple[str, Instruction]]:
    """All instructions of a computation and of those that it calls, with where they are.

    What a sparse core does (tpu7x) is asynchronous and two calls deep.
    """
    for one in module.computations[computation].values():
        yield computation, one
        if one.opcode in ("call", "fusion", "async-start"):
            yield from _within(module, one.calls)


def _in_chain(one: Instruction) -> bool:
    return "chain_id=" in one.attributes


def _custom_call(module: Module, computation: str, one: Instruction) -> Sequence[Any]:
    if 'custom_call_target="tpu_custom_call"' not in one.attributes:
        return ()  # AllocateBuffer and the like: they do nothing
    shapes = tuple(arrays(module.computations[computation][name].shape)[0] for name in one.operands)
    return (Kernel(shapes, arrays(one.shape)),)


def _compute(module: Module, computation: str, one: Instruction) -> Compute:
    cycles = _CYCLES.search(one.attributes)
    if cycles:
        inner = _within(module, one.calls) if one.opcode in ("fusion", "async-start") else [("", one)]
        return Compute(int(cycles[1]), product=any(each.opcode in ("convolution", "dot") for _, each in inner))
    lines: Mapping[str, Instruction] = module.computations[computation]
    return Compute(None, size(one.shape) + sum(size(lines[name].shape) for name in one.operands if name in lines))
