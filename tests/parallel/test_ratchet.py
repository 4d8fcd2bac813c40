"""HBM, collectives and modelled step time of five small plans may not get worse by more than 1%.

libtpu compiles them, in a process of its own: beside it JAX's CPU back end does not work as the other tests need it.

    pip install '.[tpu,test]'
    python -m pytest tests/parallel/test_ratchet.py
    python -m tests.parallel.test_ratchet     # after a change that is meant: writes tests/fixtures/plans.json anew
"""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys

import pytest

GOLDEN = pathlib.Path(__file__).parents[1] / "fixtures" / "plans.json"
ROOT = GOLDEN.parents[2]
MOST = 1.01
_HERE = importlib.util.find_spec("libtpu") is not None

SMALL = {
    "batch_size": 16, "model.vocab_size": 1024, "model.num_layers": 4, "model.embed_dim": 512, "model.num_heads": 4,
    "model.num_kv_heads": 4, "model.head_dim": 128, "model.mlp_dim": 1024, "model.max_seq_len": 512,
    "data.seq_len": 512, "model.dtype": "bfloat16", "model.remat": "full", "mesh.data": 1, "mesh.fsdp": -1,
}  # fmt: skip
WIDE = {"model.num_heads": 2, "model.num_kv_heads": 1, "model.head_dim": 256, "model.activation": "swiglu"}
EYES = {
    "vision.frontend": "resampler", "vision.image_token": 1023, "vision.patch_size": 8, "vision.max_patches": 64,
    "vision.num_layers": 2, "vision.embed_dim": 256, "vision.num_heads": 4, "vision.mlp_dim": 512,
    "vision.resampler_layers": 2, "vision.resampler_len": 16, "data.row_patches": 512, "data.row_images": 8,
}  # fmt: skip
SPARSE = {"model.attention": ("dense", "banded:128"), "model.remat": "dots"}
PAIRS = {
    "dense on v5e": ("v5e:4x4", {}),
    "tensor on v5p": ("v5p:2x2x2", {"mesh.tensor": 2}),
    "dense and banded, dots kept, on v6e": ("v6e:2x4", SPARSE),
    "grouped queries and heads of 256 on tpu7x": ("tpu7x:2x2x1", WIDE),
    "a ViT and a resampler on v5e": ("v5e:2x2", EYES),
}

MEASURE = """
import json, sys
from gpt4jax import config, plan
from tests.parallel import test_ratchet as ratchet
print(json.dumps({name: ratchet.measured(*pair) for name, pair in ratchet.PAIRS.items()}))
"""


SCAN = """
import json
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from gpt4jax.parallel import hlo, schedule, topology
where = topology.parse("v5e:2x2")
mesh = Mesh(np.array(topology.devices(where)), ("data",))
place = lambda *axes: NamedSharding(mesh, PartitionSpec(*axes))
x = jax.ShapeDtypeStruct((4 * 2048, 4096), jnp.bfloat16, sharding=place("data"))
w = jax.ShapeDtypeStruct((7, 4096, 4096), jnp.bfloat16, sharding=place())
run = jax.jit(lambda x, w: jax.lax.scan(lambda x, one: (x @ one, None), x, w)[0])
steps = schedule.schedule(hlo.parse(topology.compiled(run.lower(x, w), where)[1]))
loops = [(step.trips, max(s.cycles or 0 for s in step.steps)) for step in steps if isinstance(step, schedule.Loop)]
print(json.dumps(loops))
"""


def measured(topology, changes):
    """What is kept of a plan. Only in a process with libtpu."""
    from gpt4jax import config as configuration
    from gpt4jax import plan

    config = configuration.default()
    for key, value in (SMALL | changes).items():
        *groups, name = key.split(".")
        group = config
        for each in groups:
            group = group[each]
        group[name] = value
    found = plan.plan(config, topology)
    sent = {
        f"{kind} over {axis}": bytes_sent
        for kind, axes in found["collective_bytes"].items()
        for axis, bytes_sent in axes.items()
    }
    return {
        "hbm_bytes": found["hbm_bytes_per_chip"]["total"], "step_seconds": found["step_seconds"],
        "collective_bytes": sum(sent.values()), "kernels": found["kernels"], "of": sent,
        "libtpu": found["versions"]["libtpu"],
    }  # fmt: skip


def apart(code):
    """What a program prints last, in a process of its own."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def worse(now, golden):
    """What has got worse by more than the ratchet allows, in words."""
    return [
        f"{name}: {what} {golden[name][what]:.6g} -> {now[name][what]:.6g}"
        for name in golden
        for what in ("hbm_bytes", "collective_bytes", "step_seconds")
        if now[name][what] > MOST * golden[name][what]
    ]


def test_what_has_got_worse_is_told_from_what_has_not():
    golden = json.loads(GOLDEN.read_text())
    assert set(golden) == set(PAIRS)
    assert not worse(golden, golden)
    for name in golden:
        for what in ("hbm_bytes", "collective_bytes", "step_seconds"):
            for factor, count in ((1.02, 1), (1.005, 0), (0.5, 0)):
                changed = golden | {name: golden[name] | {what: golden[name][what] * factor}}
                assert len(worse(changed, golden)) == count, (name, what, factor)


@pytest.mark.skipif(not _HERE, reason="needs libtpu: pip install '.[tpu,test]'")
def test_plans_have_not_got_worse():
    now, golden = apart(MEASURE), json.loads(GOLDEN.read_text())
    compiler = {plan["libtpu"] for plan in (*now.values(), *golden.values())}
    found = worse(now, golden)
    assert not found, f"{found}; libtpu {sorted(compiler)}; if it is meant: python -m tests.parallel.test_ratchet"


@pytest.mark.skipif(not _HERE, reason="needs libtpu: pip install '.[tpu,test]'")
def test_cycles_of_a_real_product_are_near_the_peak_and_its_loop_is_counted():
    """Seven products of (2048, 4096) by (4096, 4096) a device, 131,072 operations a cycle at most."""
    (((trips, cycles),),) = (apart(SCAN),)
    assert trips == 7
    assert 1.0 < cycles / (2 * 2048 * 4096 * 4096 / 131_072) < 1.3


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(apart(MEASURE), indent=1) + "\n")
