"""TPU slices that are not there: what a chip of each kind has, and compiling for them ahead of time.

A device is what jax calls one. On v4, v5e, v5p and v6e that is a chip; a chip of tpu7x is two devices, each with half
of its memory, of its speed and of its links.
"""

import dataclasses
import importlib.util
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from gpt4jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Device:
    """What one device of a kind of TPU has. Makers' data sheets, except where an attribute says otherwise.

    Attributes:
        hbm_bytes: GB of 1e9 for v5p and tpu7x, GiB for the others.
        hbm_bandwidth: bytes/s.
        peak_flops: dense bf16, FLOP/s.
        clock: Hz. No data sheet has it: the peak over 2 x 128 x 128 x 4 (x 2 with both cores of a v4 or v5p chip; x 4
            where the arrays are 256 x 256) operations a cycle.
        link_bandwidth: of one link of the torus, one way, bytes/s.
        mxu: rows and columns of a matrix unit: narrower heads leave some of it idle.
        per_chip: devices a chip.
        wraps: a side of the torus closes to a ring if it is a multiple of this.
        options: how libtpu is asked for such a slice, besides its name.
    """

    hbm_bytes: int
    hbm_bandwidth: float
    peak_flops: float
    clock: float
    link_bandwidth: float
    mxu: int = 128
    per_chip: int = 1
    wraps: int = 4
    options: tuple[tuple[str, str], ...] = ()


DEVICES = {
    "v4": Device(32 * 2**30, 1.2e12, 275e12, 1.05e9, 45e9, options=(("chip_config_name", "megacore"),)),
    "v5e": Device(16 * 2**30, 0.82e12, 197e12, 1.5e9, 45e9, wraps=16),
    "v5p": Device(95 * 10**9, 2.77e12, 459e12, 1.75e9, 90e9),
    "v6e": Device(32 * 2**30, 1.64e12, 918e12, 1.75e9, 90e9, mxu=256, wraps=16),
    "tpu7x": Device(96 * 10**9, 3.69e12, 2307e12 / 2, 2.2e9, 45e9, mxu=256, per_chip=2),
}
FITS = 0.92  # of the memory: what the runtime keeps for itself and what fragments stays free
DCN_BANDWIDTH = 6.25e9  # bytes/s of a chip to other slices, one way: a host's 200 Gbit/s over its four chips


class NoRoomError(UserError):
    """A program that needs more memory than a chip has.

    Attributes:
        temporaries: bytes that the compiler says they would take; 0 if it does not.
    """

    def __init__(self, words: str):
        super().__init__(words)
        said = re.search(r"temporaries \(([\d.]+)([KMGT])\)", words)
        self.temporaries = 0 if said is None else int(float(said[1]) * 1024 ** (1 + "KMGT".index(said[2])))


@dataclasses.dataclass(frozen=True)
class Topology:
    """A slice of TPU chips, or several that a data-centre network (DCN) joins.

    Attributes:
        name: such as "v5p:4x4x4", or "v5p:4x4x4*2" for two of them.
        kind: a key of `DEVICES`.
        sides: of a slice, in chips.
        slices: how many.
    """

    name: str
    kind: str
    sides: tuple[int, ...]
    slices: int = 1

    @property
    def device(self) -> Device:
        """What each of its devices has."""
        return DEVICES[self.kind]

    def links(self, side: int) -> int:
        """How many ways bytes can leave a chip along a side: two where it closes to a ring, else one."""
        size = self.sides[side]
        return 0 if size == 1 else 2 if size % self.device.wraps == 0 else 1


def parse(name: str) -> Topology:
    """The topology of a name: a kind, chips a side, and "*SLICES" for more than one.

    Raises:
        UserError: a kind that is unknown, or no shape.
    """
    kind, _, shape = name.partition(":")
    sides, star, slices = shape.partition("*")
    numbers = [*sides.split("x"), slices if star else "1"]
    if kind not in DEVICES or len(numbers) < 3 or not all(n.isdecimal() and int(n) > 0 for n in numbers):
        raise UserError(
            f"--topology {name!r}: it must be one of {', '.join(DEVICES)} and chips a side, as v5p:4x4x4 or v5e:16x16, "
            "with *2 behind it for two slices"
        )
    *chips, count = map(int, numbers)
    return Topology(name, kind, tuple(chips), count)


def devices(topology: Topology) -> Sequence[Any]:
    """Its devices, none of which is there; only for compiling.

    Raises:
        UserError: a shape that does not exist, or no libtpu.
    """
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu waits for a metadata server
    from jax.experimental import topologies

    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plans are compiled by libtpu, which is not here: pip install -e '.[tpu]'")
    options: dict[str, Any] = dict(topology.device.options)
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{topology.kind}:{'x'.join(map(str, topology.sides))}"
    try:
        return topologies.get_topology_desc(topology_name=name, platform="tpu", **options).devices
    except Exception as error:  # whatever libtpu raises for what it doesn't know
        raise UserError(f"--topology {topology.name}: libtpu knows no such slice: {str(error)[:500]}") from error


def compiled(lowered: Any, topology: Topology, flags: Mapping[str, str] | None = None) -> tuple[Any, str]:
    """A chip's memory for a lowered program as the compiler has it, and the scheduled program's text.

    The text is what the compiler writes into a folder: to ask the executable for it crashes on large programs. `flags`
    are XLA's, such as LIBTPU_INIT_ARGS takes them.

    Raises:
        NoRoomError: the compiler itself finds none.
    """
    import jax

    with tempfile.TemporaryDirectory() as folder:
        options = {**(flags or {}), "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        try:
            memory = lowered.compile(compiler_options=options).memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise NoRoomError(f"{topology.name}: no room for the step: {str(error)[:1500]}") from error
        written = sorted(pathlib.Path(folder).glob("*.after_codegen.txt"), key=lambda path: path.stat().st_size)
        text = written[-1].read_text()
    assert memory is not None  # which it is on back ends that cannot say
    return memory, text
