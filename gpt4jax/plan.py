"""Compiles a run's train step for a TPU slice that is not there, and says whether it fits.

    python -m gpt4jax.plan --config configs/pod_vision_8b.py --topology v5p:4x4x4 [--out FILE.json]

Needs the extra `tpu`: libtpu compiles on any CPU. What is compiled is the step that `gpt4jax.train` runs, on the
config's mesh over the topology's chips, with the kernels for TPU. How fast it would be is not said yet.
"""

import argparse
import dataclasses
import importlib.metadata
import json
import os
import pathlib
import time
from collections.abc import Sequence
from typing import Any

from gpt4jax import config as configuration
from gpt4jax import files, job
from gpt4jax.errors import UserError

# HBM of one chip in bytes, by the beginning of a topology's name; the maker's data sheets (GB of 1e9 for v5p and
# tpu7x, GiB for the others).
HBM = {"v4": 32 * 2**30, "v5e": 16 * 2**30, "v5p": 95 * 10**9, "v6e": 32 * 2**30, "tpu7x": 192 * 10**9}
FITS = 0.92  # of it: what the runtime keeps for itself and what fragments stays free


def main(argv: Sequence[str]) -> int:
    """Reads the flags, compiles and reports; exit status 1 if the step does not fit."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.plan", description=__doc__.partition("\n")[0])
    parser.add_argument("--config", required=True, help="a file with get_config(), such as configs/pod_vision_8b.py")
    parser.add_argument("--topology", required=True, help=f"kind and chips a side, e.g. v5p:4x4x4; of {', '.join(HBM)}")
    parser.add_argument("--out", type=pathlib.Path, help="the plan as JSON")
    parser.epilog = "--config.GROUP.KEY=VALUE overrides any key of the config, e.g. --config.mesh.tensor=4"
    flags, overrides = job.parse(parser, argv)
    found = plan(configuration.load(flags.config, overrides), flags.topology)
    print(words(found))
    if flags.out is not None:
        files.replace(files.user_path(flags.out), (json.dumps(found, indent=2) + "\n").encode())
    return 0 if found["fits"] else 1


def plan(config, topology: str) -> dict[str, Any]:
    """Whether the train step of `config` fits a chip of `topology`; what is in it: `words`, and DESIGN's keys.

    Raises:
        UserError: an unknown topology, a config that does not divide over it, no libtpu, or a step that the compiler
            itself refuses for want of memory.
    """
    from gpt4jax.model import flops, parameters
    from gpt4jax.parallel import mesh as meshes
    from gpt4jax.parallel import partition
    from gpt4jax.training import objective, optimizer
    from gpt4jax.training import state as states

    devices = chips(topology)
    try:
        configuration.check_values(config)
        model_config = configuration.model_config(config)
        if model_config.attention_lowering == "auto":
            model_config = dataclasses.replace(model_config, attention_lowering="tpu")
        mesh = meshes.make_mesh(config.mesh, devices)
        partition.check(model_config, mesh, config.batch_size, config.optimizer.micro_batches)
        tx = optimizer.adamw(config.optimizer, model_config, config.num_steps)
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
    began = time.monotonic()
    memory, kernels = _compiled(step, state, rows, shardings, mesh, topology)
    seconds = time.monotonic() - began
    by_kind = {
        "parameters": held["params"],
        "moments": held["moments"],
        "batch": memory.argument_size_in_bytes - sum(held.values()),
        "temporaries": memory.temp_size_in_bytes,
        "program": memory.generated_code_size_in_bytes,
    }
    by_kind["total"] = sum(by_kind.values())
    return {
        "fits": fits(by_kind["total"], topology),
        "hbm_bytes_per_chip": by_kind,
        "hbm_bytes_of_a_chip": _hbm(topology),
        "compile_seconds": seconds,
        "parameters": parameters.count(model_config)["total"],
        "tokens_per_step": config.batch_size * config.data.seq_len,
        "flops_per_token": flops.flops_per_token(model_config, config.data.seq_len)["train"],
        "kernels": kernels,
        "mesh": dict(mesh.shape),
        "config": config.to_dict(),
        "topology": topology,
        "versions": {name: importlib.metadata.version(name) for name in ("jax", "libtpu")},
    }


def _compiled(step, state, rows, shardings, mesh, topology: str) -> tuple[Any, int]:
    """A chip's memory for the step, as the compiler has it, and how many kernels of ours are in the program."""
    import jax

    from gpt4jax.parallel import partition

    jitted = jax.jit(
        step, in_shardings=(shardings, partition.batch_sharding(mesh)),
        out_shardings=(shardings, partition.replicated(mesh)), donate_argnums=0,
    )  # fmt: skip
    with jax.set_mesh(mesh):
        lowered = jitted.lower(state, rows)
        try:
            memory = lowered.compile().memory_analysis()
        except jax.errors.JaxRuntimeError as error:
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            raise UserError(f"{topology}: the compiler found no room for the step: {str(error)[:1500]}") from error
    assert memory is not None  # which it is on back ends that cannot say
    return memory, lowered.as_text().count("tpu_custom_call")


def fits(total: int, topology: str) -> bool:
    """Whether so many bytes a chip leave free what must stay free."""
    return total <= FITS * _hbm(topology)


def _hbm(topology: str) -> int:
    return HBM[topology.partition(":")[0]]


def chips(topology: str) -> Sequence[Any]:
    """The devices of a topology such as "v5p:4x4x4", none of which is there; only for compiling.

    Raises:
        UserError: a kind or shape that does not exist, or no libtpu.
    """
    import importlib.util

    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # or libtpu waits for a metadata server
    from jax.experimental import topologies

    kind, _, shape = topology.partition(":")
    if kind not in HBM or not shape:
        raise UserError(f"--topology {topology!r}: it must be one of {', '.join(HBM)} and chips a side, as v5p:4x4x4")
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("plans are compiled by libtpu, which is not here: pip install -e '.[tpu]'")
    try:
        return topologies.get_topology_desc(topology_name=topology, platform="tpu").devices
    except Exception as error:  # whatever libtpu raises for what it doesn't know
        raise UserError(f"--topology {topology}: libtpu knows no such slice: {str(error)[:500]}") from error


def words(found: dict[str, Any]) -> str:
    """A plan for a person."""
    sizes, has = found["hbm_bytes_per_chip"], found["hbm_bytes_of_a_chip"]
    mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items())
    kinds = ", ".join(f"{kind} {size / 2**30:.2f}" for kind, size in sizes.items() if kind != "total")
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    return "\n".join(
        (
            f"{found['parameters']:,} parameters on {found['topology']} ({mesh})",
            f"{found['tokens_per_step']:,} tokens a step, {found['flops_per_token']:.3g} FLOPs a token in the decoder",
            f"HBM of a chip, GiB: {kinds}",
            f"together {sizes['total'] / 2**30:.2f} of {has / 2**30:.2f} GiB, {sizes['total'] / has:.0%}: "
            + ("it fits" if found["fits"] else f"it does not fit (at most {FITS:.0%} is to be taken)"),
            f"compiled in {found['compile_seconds']:.0f} s with {found['kernels']} kernels; {versions}",
        )
    )


if __name__ == "__main__":
    os.environ["JAX_PLATFORMS"] = "cpu"  # before jax is imported: the chips of this machine, if any, stay free
    job.main(main)
