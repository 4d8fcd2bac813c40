"""Eight virtual devices against one, over meshes of all four axes: `python -m tests.bench.meshes`.

Each row is a mesh, a lowering of layers, patterns, a method of context parallelism and a number of micro-batches. It
says how far the parameters are from those of one device after 20 steps in float64 (key biases aside: their true
gradient is zero, and Adam makes steps of its noise), and in float32 how far the first step's gradients, relative to
their norm, and the loss. One device runs layers scanned and batches whole. The last line is the worst of all.

jax 0.10.2, two cores: the 48 rows of dense and banded layers, on 14 meshes: parameters 2e-13, gradients 5.5e-7, loss
1.6e-6. Since the residual stream is divided over tensor, the 20 rows of the six meshes with tensor again: 1.9e-13,
5.2e-7 and 1.1e-6. Of strided and fixed layers the first 18 rows (7 meshes): 1.8e-15, 5.5e-7 and 5.3e-7. The rest did
not run.
"""

import argparse
import dataclasses
import itertools
import sys
import time
from functools import partial

import jax
import numpy as np
import optax

from gpt4jax import model
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from gpt4jax.training.step import gradients
from tests.conftest import SHAPES
from tests.training import test_step as steps

steps.ROWS, steps.T = 16, 32
MESHES = (
    (8, 1, 1, 1), (1, 8, 1, 1), (1, 4, 2, 1), (2, 2, 2, 1), (4, 1, 1, 2), (1, 4, 1, 2), (2, 2, 1, 2), (2, 1, 2, 2),
    (1, 2, 2, 2), (1, 1, 4, 2), (2, 1, 1, 4), (1, 2, 1, 4), (1, 1, 2, 4), (1, 1, 1, 8),
)  # fmt: skip
PATTERNS = (("dense", "banded:5"), ("strided:4", "fixed:4:2"), ("fixed:8:3|banded:5", "banded:5/column:3"))
LAYERS = (("scan", 1), ("unroll", 2))  # and micro-batches


def float32(config, mesh_sizes, micro_batches):
    """The first step's gradients and loss."""
    params, batch = model.init(config, jax.random.key(0)), steps.make_batch(0)
    mesh = meshes.make_mesh(dict(zip(meshes.MESH_AXES, mesh_sizes, strict=True)), jax.devices()[: np.prod(mesh_sizes)])
    with jax.set_mesh(mesh):
        params = jax.device_put(params, partition.param_shardings(config, mesh))
        batch = jax.device_put(batch, partition.batch_sharding(mesh))
        run = jax.jit(partial(gradients, config, micro_batches=micro_batches))
        grads, totals, _ = jax.device_get(run(params, batch))
    return grads, totals.nll / totals.targets


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--shape", default="gpt", choices=SHAPES)
    parser.add_argument("--patterns", type=int, nargs="*", default=range(len(PATTERNS)), help="which of PATTERNS")
    parser.add_argument("--meshes", nargs="*", default=[",".join(map(str, m)) for m in MESHES], help="such as 2,2,1,2")
    flags = parser.parse_args()
    worst = np.zeros(3)
    for number in flags.patterns:
        fields = SHAPES[flags.shape] | dict(attention=PATTERNS[number], init_std=0.3)
        config = model.Config(**fields)
        exact = dataclasses.replace(config, dtype="float64", param_dtype="float64")
        with jax.enable_x64(True):
            alone, _ = steps.run(exact)
        alone32, loss = float32(config, (1, 1, 1, 1), 1)
        for mesh, (layers, micro) in itertools.product(flags.meshes, LAYERS):
            sizes = tuple(map(int, mesh.split(",")))
            for method in ("gather", "ring") if sizes[3] > 1 else ("gather",):
                began, changes = time.monotonic(), dict(layers=layers, context_method=method)
                try:
                    with jax.enable_x64(True):
                        params, _ = steps.run(dataclasses.replace(exact, **changes), sizes, micro)
                    grads, its_loss = float32(dataclasses.replace(config, **changes), sizes, micro)
                except ValueError as error:
                    print(f"{mesh} {PATTERNS[number]} {method}: refused: {error}", flush=True)
                    continue
                away = optax.tree.norm(jax.tree.map(np.subtract, grads, alone32)) / optax.tree.norm(alone32)
                found = np.array([steps.farthest(params, alone), away, abs(its_loss - loss)])
                worst = np.maximum(worst, found)
                print(
                    f"{mesh} {' '.join(PATTERNS[number])} {layers} {method if sizes[3] > 1 else '-'} micro {micro}: "
                    f"parameters {found[0]:.1e}, float32 gradients {found[1]:.1e}, loss {found[2]:.1e} "
                    f"({time.monotonic() - began:.0f} s)",
                    flush=True,
                )
                jax.clear_caches()
    print(f"worst: parameters {worst[0]:.1e}, float32 gradients {worst[1]:.1e}, loss {worst[2]:.1e}")
    return int(worst[0] > 1e-9 or max(worst[1:]) > 1e-5)


if __name__ == "__main__":
    sys.exit(main())
