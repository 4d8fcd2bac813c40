"""The scheduled program that XLA compiles for a TPU, read from its text: computations, shapes, groups, trip counts.

The compiler writes its own estimate of cycles behind each fusion, but not how often a loop runs: that is worked out
here.
`gpt4jax.parallel.schedule` makes of it what a device does, in which order.
"""

import dataclasses
import functools
import math
import re
from typing import Any

import numpy as np

BYTES = {"pred": 1, "bf16": 2, "f16": 2, "f32": 4, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "token": 0}
NAME = re.compile(r"%([\w.\-]+)")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,]*)\]")
_HEADER = re.compile(r"^(ENTRY )?%([\w.\-]+) \(.*\{$")


class HloError(ValueError):
    """A program that is not as this module knows them."""


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of a computation: `%name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    argument: str  # between the parentheses, for constants and parameters
    attributes: str
    root: bool

    @property
    def calls(self) -> str:
        """The computation that a fusion or an asynchronous instruction runs."""
        return attribute(self, "to_apply" if self.opcode == "call" else "calls")


def attribute(one: Instruction, name: str) -> str:
    """The computation that an attribute names, such as a loop's body.

    Raises:
        HloError: there is no such attribute.
    """
    found = re.search(rf"\b{name}=%([\w.\-]+)", one.attributes)
    if found is None:
        raise HloError(f"%{one.name}: a {one.opcode} without {name}")
    return found[1]


@dataclasses.dataclass
class Module:
    """A program: its computations by name, each its instructions by name in the order of the schedule."""

    computations: dict[str, dict[str, Instruction]]
    entry: str

    def root(self, computation: str) -> Instruction:
        """The instruction whose result is the computation's."""
        return next(one for one in self.computations[computation].values() if one.root)


def arrays(shape: str) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """The arrays of a shape such as `(bf16[2,8]{1,0}, s32[])`, as (type, sizes) each."""
    return tuple((kind, tuple(map(int, filter(None, sizes.split(","))))) for kind, sizes in _ARRAY.findall(shape))


def size(shape: str) -> int:
    """Bytes of a shape's arrays."""
    return sum(_width(kind) * math.prod(sizes) for kind, sizes in arrays(shape))


def _width(kind: str) -> int:
    return BYTES[kind] if kind in BYTES else max(1, int(re.sub(r"\D", "", kind) or 8) // 8)


def parse(text: str) -> Module:
    """The module of a text such as XLA's dumps have.

    Raises:
        HloError: there is no entry computation in it.
    """
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current = "", None
    for line in text.splitlines():
        header = _HEADER.match(line)
        if header:
            current = computations.setdefault(header[2], {})
            entry = header[2] if header[1] else entry
        elif line == "}":
            current = None
        elif current is not None and " = " in line:
            one = _instruction(line)
            current[one.name] = one
    if not entry:
        raise HloError("no scheduled program: it has no ENTRY")
    return Module(computations, entry)


def _instruction(line: str) -> Instruction:
    left, _, right = line.strip().partition(" = ")
    end = _closing(right, 0) + 1 if right.startswith("(") else right.index(" ")
    shape, rest = right[:end], right[end:].lstrip()
    opening = rest.index("(")
    closing = _closing(rest, opening)
    argument = rest[opening + 1 : closing]
    operands = tuple(NAME.findall(argument))
    name = left.removeprefix("ROOT ").removeprefix("%")
    return Instruction(name, shape, rest[:opening], operands, argument, rest[closing + 1 :], left.startswith("ROOT "))


def _closing(text: str, opening: int) -> int:
    depth = 0
    for match in re.compile(r"[()]").finditer(text, opening):
        depth += 1 if match[0] == "(" else -1
        if not depth:
            return match.start()
    raise HloError(f"a parenthesis that does not close: {text[:80]}")


def groups(attributes: str) -> tuple[tuple[int, ...], ...]:
    """The devices that take part in a collective, as its attributes have them; pairs (source, target) of a permute.

    Three notations: `{{0,1},{2,3}}`; `[2,2]<=[2,2]T(1,0)`, which is an iota, reshaped, transposed and reshaped again;
    `mesh['a'=2,'b'=2] {'b'}`, which are the groups along axes of a mesh. An axis may be cut: `'a':(2)2` is the part of
    size 2 that comes after a part of size 2.

    Raises:
        HloError: another notation.
    """
    found = re.search(
        r"(?:replica_groups|source_target_pairs)=(\{\{.*?\}\}|\{\}|\[[^ ]*|mesh\[.*?\}(?=[,)]|$| *$))", attributes
    )
    if found is None:
        raise HloError(f"a collective without groups: {attributes[:200]}")
    text = found[1]
    if text.startswith("{"):
        return tuple(tuple(map(int, one.split(","))) for one in re.findall(r"\{([\d,]+)\}", text))
    if text.startswith("["):
        shape, source, order = re.match(r"\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text).groups()  # type: ignore[union-attr]
        devices = _iota(source, order).reshape(_integers(shape))
        return tuple(tuple(map(int, row)) for row in devices.reshape(-1, devices.shape[-1]))
    return _mesh_groups(text)


def _integers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _iota(source: str, order: str | None) -> np.ndarray:
    sizes = _integers(source)
    devices = np.arange(math.prod(sizes)).reshape(sizes)
    return devices.transpose(_integers(order)) if order else devices


def _mesh_groups(text: str) -> tuple[tuple[int, ...], ...]:
    found = re.match(
        r"mesh\[([^\]]*)\](?:[^{]*?device_ids=\(?\[([\d,]+)\](?:T\(([\d,]+)\))?\)?[^{]*)? *\{([^}]*)\}", text
    )
    if found is None:
        raise HloError(f"replica groups of an unknown notation: {text[:200]}")
    axes = {name: int(n) for name, n in re.findall(r"'([^']+)'=(\d+)", found[1])}
    devices = (_iota(found[2], found[3]) if found[2] else np.arange(math.prod(axes.values()))).reshape(*axes.values())
    taken = {
        name: (int(before or 1), int(n or 0))
        for name, before, n in re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", found[4])
    }
    sizes: list[int] = []
    inner: list[int] = []
    for name, n in axes.items():
        before, length = taken.get(name, (n, 1))
        length = length or n
        inner.append(len(sizes) + 1)
        sizes += [before, length, n // before // length]
    apart = [i for i in range(len(sizes)) if i not in inner]
    split = devices.reshape(sizes).transpose(*apart, *inner)
    count = math.prod(sizes[i] for i in inner)
    return tuple(tuple(map(int, row)) for row in split.reshape(-1, count))


def trips(module: Module, computation: str, loop: Instruction) -> int:
    """How often a while-loop runs: from what it counts from, in which steps, and where it stops.

    Raises:
        HloError: a loop that does not count.
    """
    condition, body = (attribute(loop, what) for what in ("condition", "body"))
    init = module.computations[computation][loop.operands[0]]
    start = functools.lru_cache(None)(lambda i: _value(module, computation, init.operands[i], None))
    root = module.root(condition)
    test, operands = _comparison(module, condition, root)
    index = next((i for i in map(_Place.of, operands) if i is not None and _counts(module, body, i)), None)
    if index is None:
        raise HloError(f"%{loop.name}: a loop whose condition counts nothing")
    first = start(index)
    step = _value(module, body, module.root(body).operands[index], lambda i: first if i == index else start(i)) - first
    bound = next(one for one in operands if _Place.of(one) != index)
    last = bound if isinstance(bound, int) else start(bound.index)
    if step == 0 or test not in ("LT", "GT", "LE", "GE", "NE"):
        raise HloError(f"%{loop.name}: a loop that runs while {test}, by steps of {step}")
    span = (last - first) / step
    return max(0, math.floor(span) + 1 if test in ("LE", "GE") else math.ceil(span))


@dataclasses.dataclass(frozen=True)
class _Place:
    """An element of a loop's state."""

    index: int

    @classmethod
    def of(cls, operand: Any) -> int | None:
        return operand.index if isinstance(operand, cls) else None


def _comparison(module: Module, computation: str, root: Instruction) -> tuple[str, list[Any]]:
    """The direction of the comparison behind a condition's root, and its two sides: numbers or places of the state."""
    if root.opcode == "fusion":
        inner = module.root(root.calls)
        test, sides = _comparison(module, root.calls, inner)
        return test, [
            _side(module, computation, root.operands[side.index]) if isinstance(side, _Place) else side
            for side in sides
        ]
    if root.opcode in ("copy", "bitcast"):
        return _comparison(module, computation, module.computations[computation][root.operands[0]])
    found = re.search(r"direction=(\w+)", root.attributes)
    if root.opcode != "compare" or found is None:
        raise HloError(f"%{root.name}: a condition that is a {root.opcode}, no comparison")
    return found[1], [_side(module, computation, name) for name in root.operands]


def _side(module: Module, computation: str, name: str) -> Any:
    """A number, or a place in the state of the computation (in a fusion: its parameter)."""
    one = module.computations[computation][name]
    if one.opcode == "parameter":
        return _Place(int(one.argument))
    if one.opcode == "get-tuple-element":
        return _Place(_element(one))
    if one.opcode in ("copy", "bitcast", "convert"):
        return _side(module, computation, one.operands[0])
    return _value(module, computation, name, None)


def _element(one: Instruction) -> int:
    return int(re.search(r"index=(\d+)", one.attributes)[1])  # type: ignore[index]


def _counts(module: Module, body: str, index: int) -> bool:
    """Whether a loop's body changes an element of its state."""
    root = module.root(body)
    if root.opcode != "tuple":
        raise HloError(f"%{root.name}: a loop whose body gives no tuple")
    one = module.computations[body][root.operands[index]]
    while one.opcode in ("copy", "bitcast"):
        one = module.computations[body][one.operands[0]]
    return one.opcode != "get-tuple-element"


def _value(module: Module, computation: str, name: str, state: Any) -> int:
    """The integer that an instruction gives; `state(i)` is element i of the loop's state, or of a fusion's operands."""
    one = module.computations[computation][name]
    again = functools.partial(_value, module, computation)
    if one.opcode == "constant":
        return int(one.argument)
    if one.opcode in ("copy", "bitcast", "convert", "copy-done", "copy-start", "reshape"):
        return again(one.operands[0], state)
    if one.opcode == "parameter" and state is not None:
        return state(int(one.argument))
    if one.opcode == "get-tuple-element":
        inner = module.computations[computation][one.operands[0]]
        if inner.opcode == "tuple":
            return again(inner.operands[_element(one)], state)
        if state is not None and inner.opcode == "parameter":
            return state(_element(one))
    if one.opcode in ("add", "subtract", "multiply"):
        left, right = (again(operand, state) for operand in one.operands)
        return {"add": left + right, "subtract": left - right, "multiply": left * right}[one.opcode]
    if one.opcode == "fusion":
        return _value(module, one.calls, module.root(one.calls).name, lambda i: again(one.operands[i], state))
    raise HloError(f"%{name}: no number is known of a {one.opcode}")
