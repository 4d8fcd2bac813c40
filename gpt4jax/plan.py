"""Compiles a run's train step for a TPU slice that is not there, and says whether it fits.

    python -m gpt4jax.plan --config configs/pod_vision_8b.py --topology v5p:4x4x4 [--sweep 6] [--out FILE.json]

Needs the extra `tpu`: libtpu compiles on any CPU. What is compiled is the step that `gpt4jax.train` runs, on the
config's mesh over the topology's chips, with the kernels for TPU and the compiler's flags of LIBTPU_INIT_ARGS. How fast
it is comes from a model of ours (`gpt4jax.parallel.cost`), not from a run. `--sweep N` compiles the N most promising
meshes, remat policies and batch sizes, and names the fastest that fits.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gpt4jax import config as configuration
from gpt4jax import files, job
from gpt4jax.errors import UserError
from gpt4jax.parallel import topology as topologies
from gpt4jax.parallel.topology import Topology
from gpt4jax.train import checked


def main(argv: Sequence[str]) -> int:
    """Reads the flags, compiles and reports; exit status 1 if the step does not fit."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.plan", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="a file with get_config(), such as configs/pod_vision_8b.py")
    parser.add_argument(
        "--topology", required=True, help=f"kind and chips a side, e.g. v5p:4x4x4; of {', '.join(topologies.DEVICES)}"
    )
    parser.add_argument("--sweep", type=int, default=0, metavar="N", help="compile up to N variants, name the best")
    parser.add_argument("--out", type=files.user_path, help="the plan as JSON")
    parser.epilog = "--config.GROUP.KEY=VALUE overrides any key of the config, e.g. --config.mesh.tensor=4"
    flags, overrides = job.parse(parser, argv)
    config = configuration.load(flags.config, overrides)
    try:
        found = sweep(config, flags.topology, flags.sweep) if flags.sweep else plan(config, flags.topology)
    except NoFitError as error:
        raise UserError(f"{error}\n{nearest(config, flags.topology, error.total)}") from error
    print(words(found))
    if not found["fits"]:
        print(nearest(config, flags.topology, found["hbm_bytes_per_chip"]["total"]))
    if flags.out is not None:
        files.replace(flags.out, (json.dumps(found, indent=2) + "\n").encode())
    return 0 if found["fits"] else 1


class NoFitError(UserError):
    """A step that the compiler itself refuses for want of memory: it takes `total` bytes a device (0: not known)."""

    def __init__(self, words: str, total: int):
        super().__init__(words)
        self.total = total


class Program(NamedTuple):
    """A train step for a slice that is not there: lowered, not compiled.

    Attributes:
        lowered: what jax can compile.
        mesh: over the slice's devices.
        model_config: the decoder's, with the attention that TPUs have.
        held: bytes a device of parameters and moments.
    """

    lowered: Any
    mesh: Any
    model_config: Any
    held: dict[str, int]


def program(config, topology: Topology) -> Program:
    """The step that `gpt4jax.train` would run for `config` on a slice.

    Raises:
        UserError: an unknown shape, a config that does not divide over it, or no libtpu.
    """
    import jax

    from gpt4jax.parallel import partition
    from gpt4jax.training import objective, optimizer
    from gpt4jax.training import state as states

    devices = topologies.devices(topology)
    configuration.check_values(config)
    model_config, mesh, tx = checked(config, devices)
    if model_config.attention_lowering == "auto":
        model_config = dataclasses.replace(model_config, attention_lowering="tpu")
    try:
        rows = objective.abstract_batch(config, model_config)
    except ValueError as error:
        raise UserError(str(error)) from error
    made = optimizer.schedule(config.optimizer, config.num_steps)
    step = objective.language_step(config, model_config, tx, made)
    shardings = states.state_shardings(model_config, tx, mesh)
    state = states.abstract_state(model_config, tx, config.batch_size)
    held = {
        name: partition.bytes_per_device(getattr(state, name), getattr(shardings, name))
        for name in ("params", "moments")
    }
    jitted = jax.jit(
        step, in_shardings=(shardings, partition.batch_sharding(mesh)),
        out_shardings=(shardings, partition.replicated(mesh)), donate_argnums=0,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        return Program(jitted.lower(state, rows), mesh, model_config, held)


def plan(config, name: str, flags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Whether the train step of `config` fits a chip of the topology `name`; what is in it: `words`, and DESIGN's keys.

    `flags` are the compiler's, beside those of LIBTPU_INIT_ARGS.

    Raises:
        UserError: an unknown topology, a config that does not divide over it, or no libtpu.
        NoFitError: a step that the compiler itself refuses for want of memory.
    """
    from gpt4jax.model import flops, parameters

    topology = topologies.parse(name)
    step = program(config, topology)
    began = time.monotonic()
    try:
        memory, text = topologies.compiled(step.lowered, topology, flags)
    except topologies.NoRoomError as error:
        total = error.temporaries + sum(step.held.values()) if error.temporaries else 0
        raise NoFitError(str(error), total) from error
    seconds = time.monotonic() - began
    by_kind = {
        "parameters": step.held["params"],
        "moments": step.held["moments"],
        "batch": memory.argument_size_in_bytes - sum(step.held.values()),
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    by_kind["total"] = sum(by_kind.values())
    tokens = config.batch_size * config.data.seq_len
    of_token = flops.flops_per_token(step.model_config, config.data.seq_len)["train"]
    return {
        "fits": by_kind["total"] <= topologies.FITS * topology.device.hbm_bytes,
        "hbm_bytes_per_chip": by_kind,
        "hbm_bytes_of_a_chip": topology.device.hbm_bytes,
        "compile_seconds": seconds,
        "parameters": parameters.count(step.model_config)["total"],
        "tokens_per_step": tokens,
        "flops_per_token": of_token,
        "flops_per_step": of_token * tokens,
        **speed(step, topology, text, config),
        "kernels": text.count("tpu_custom_call"),
        "mesh": dict(step.mesh.shape),
        "config": config.to_dict(),
        "topology": topology.name,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }


_OF_SPEED = ("step_seconds", "seconds_by_kind", "tokens_per_second", "mfu", "bound_by", "collective_bytes")


def sweep(config, name: str, most: int, flags: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The plan of the fastest variant that fits, of up to `most` that are compiled; `tried` has what each gave.

    `flags` as in `plan`.

    Raises:
        UserError: as `plan` does, or no variant fits.
    """
    topology = topologies.parse(name)
    if config.mesh.context != 1:
        raise UserError(
            f"mesh.context is {config.mesh.context}: steps over it have no modelled time to compare; only 1"
        )
    likely = [one for one in _candidates(config, topology, config.optimizer.micro_batches) if one.fits(topology)]
    if not likely:
        raise UserError(f"{name}: no variant fits, by arithmetic. {nearest(config, name, 0)}")
    own = _variant(config, topology)  # always looked at, so that what is named is no slower
    likely.sort(key=lambda one: _key(one) != own)
    plans: list[dict[str, Any]] = []
    tried: list[dict[str, Any]] = []
    for one in likely[:most]:
        variant = config.copy_and_resolve_references()
        variant.mesh.update(dict(one.mesh))
        variant.model.remat, variant.batch_size = one.remat, one.batch_size
        job.say(" ".join(f"--config.{override}" for override in one.overrides()))
        try:
            plans.append(plan(variant, name, flags))
        except UserError as error:
            job.say(f"  {str(error)[:200]}")
            tried.append({"overrides": one.overrides(), "fits": False})
            continue
        if plans[-1]["tokens_per_second"] is None:
            raise UserError(f"there is no modelled time to compare: {plans[-1]['not_modelled']}")
        keys = ("fits", "step_seconds", "tokens_per_second", "mfu", "bound_by")
        tried.append({"overrides": one.overrides()} | {key: plans[-1][key] for key in keys})
        job.say(f"  {plans[-1]['tokens_per_second']:,.0f} tokens/s" + ("" if plans[-1]["fits"] else ", does not fit"))
    fitting = [found for found in plans if found["fits"]]
    if not fitting:
        raise UserError(f"{name}: none of {len(tried)} compiled variants fits; --sweep with a larger number tries more")
    return max(fitting, key=lambda found: found["tokens_per_second"]) | {"tried": tried}


def _candidates(config, topology: Topology, micro_batches: int) -> list[Any]:
    from gpt4jax.parallel import candidates

    model_config = configuration.model_config(config)
    count = len(topologies.devices(topology))
    return candidates.candidates(model_config, config.batch_size, config.data.seq_len, topology, count, micro_batches)


def _key(one: Any) -> tuple[Any, ...]:
    return dict(one.mesh), one.remat, one.batch_size


def _variant(config, topology: Topology) -> tuple[Any, ...]:
    """What the config itself is among its variants."""
    from gpt4jax.parallel import mesh as meshes

    sizes = meshes.mesh_shape(config.mesh, len(topologies.devices(topology)))
    return dict(zip(meshes.MESH_AXES, sizes, strict=True)), config.model.remat, config.batch_size


def nearest(config, name: str, total: int) -> str:
    """In words, by how much a step of `total` bytes a device (0: not known) is too large, and which variant fits.

    That is arithmetic; by how much it was wrong of the step itself, it is taken to be wrong of the others.
    """
    topology = topologies.parse(name)
    room, own = topologies.FITS * topology.device.hbm_bytes, _variant(config, topology)
    wrong = max(1.0, (total or room) / _arithmetic(config, topology))
    micro = config.optimizer.micro_batches
    known = [one for times in (1, 2, 4, 8, 16, 32) for one in _candidates(config, topology, micro * times)]
    fitting = [one for one in known if one.bytes * wrong <= room and (_key(one) != own or one.micro_batches != micro)]
    over = f"{(total - room) / 2**30:.2f} GiB a device too much. " if total else ""
    if not fitting:
        state = 4 * 4 if config.model.param_dtype == "float32" else 4 * 2
        return (
            f"{over}Nothing fits {name} by arithmetic: a parameter, its moments and its gradient take {state} bytes "
            "on all devices together"
        )
    near = min(fitting, key=lambda one: (abs(one.batch_size - config.batch_size), one.micro_batches, one.bytes))
    flags = " ".join(f"--config.{override}" for override in near.overrides())
    return f"{over}The nearest that fits by arithmetic, with {near.bytes * wrong / 2**30:.1f} GiB: {flags}"


def _arithmetic(config, topology: Topology) -> float:
    """Bytes a device of the config's own step, as its variants' are worked out."""
    from gpt4jax.parallel import candidates

    mesh, _, rows = _variant(config, topology)
    micro = config.optimizer.micro_batches
    return candidates.device_bytes(configuration.model_config(config), mesh, rows, config.data.seq_len, micro)


def speed(step: Program, topology: Topology, text: str, config) -> dict[str, Any]:
    """How fast a compiled step is by the model of `gpt4jax.parallel.cost`, and what bounds it.

    What the model does not know is None, and `not_modelled` says why.
    """
    from gpt4jax.data import multimodal
    from gpt4jax.model import flops
    from gpt4jax.parallel import cost, hlo, schedule

    devices, data = list(step.mesh.devices.flat), config.data
    if step.mesh.shape["context"] > 1:  # each device runs a branch of its own
        return dict.fromkeys(_OF_SPEED) | {"not_modelled": "rows lie over mesh.context"}
    placement = cost.Placement(topology, dict(step.mesh.shape), devices)
    try:
        areas = cost.tile_areas(step.model_config, *multimodal.room(data))
        priced = cost.priced(schedule.schedule(hlo.parse(text)), placement, areas)
    except ValueError as error:  # whether the step fits is known all the same
        return dict.fromkeys(_OF_SPEED) | {"not_modelled": str(error)}
    found = cost.cost(priced, cost.constants(topology.kind))
    tokens = config.batch_size * data.seq_len
    of_kinds: dict[str, dict[str, float]] = {}
    for (kind, axis), sent in sorted(found.bytes.items()):
        of_kinds.setdefault(kind, {})[axis] = sent
    per_second, of_token = tokens / found.seconds, flops.flops_per_token(step.model_config, data.seq_len)["train"]
    return {
        "not_modelled": None,
        "step_seconds": found.seconds,
        "seconds_by_kind": found.by_kind,
        "tokens_per_second": per_second,
        "mfu": flops.mfu(per_second, of_token, len(devices), topology.device.peak_flops),
        "bound_by": found.bound_by,
        "collective_bytes": of_kinds,
    }


def words(found: dict[str, Any]) -> str:
    """A plan for a person."""
    sizes, has = found["hbm_bytes_per_chip"], found["hbm_bytes_of_a_chip"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    kinds = ", ".join(f"{kind} {size / 2**30:.2f}" for kind, size in sizes.items() if kind != "total")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join(
        (
            f"{found['parameters']:,} parameters on {found['topology']} ({mesh})",
            f"{found['tokens_per_step']:,} tokens a step, {found['flops_per_token']:.3g} FLOPs a token, "
            f"{found['flops_per_step']:.3g} a step in the decoder",
            f"HBM of a device, GiB: {kinds}",
            f"together {sizes['total'] / 2**30:.2f} of {has / 2**30:.2f} GiB, {sizes['total'] / has:.0%}: "
            + ("it fits" if found["fits"] else f"it does not fit (at most {topologies.FITS:.0%} is to be taken)"),
            *_words_of_speed(found),
            f"compiled in {found['compile_seconds']:.0f} s with {found['kernels']} kernels; {versions}",
        )
    )


def _words_of_speed(found: dict[str, Any]) -> tuple[str, ...]:
    if found["step_seconds"] is None:
        return (f"the time of a step is not modelled: {found['not_modelled']}",)
    parts = ", ".join(f"{kind} {seconds:.3g}" for kind, seconds in found["seconds_by_kind"].items())
    sent = ", ".join(
        f"{kind} over {axis} {count / 2**30:.3g}"
        for kind, of_axes in found["collective_bytes"].items()
        for axis, count in of_axes.items()
    )
    return (
        f"sent by a device in a step, GiB: {sent or 'nothing'}",
        f"by a model, not measured: {found['step_seconds']:.3g} s a step, {found['tokens_per_second']:,.0f} tokens/s, "
        f"{found['mfu']:.1%} MFU, bound by {found['bound_by']} (seconds: {parts})",
    )


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: the chips of this machine, if any, stay free
    job.main(main)
