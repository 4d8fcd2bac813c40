"""Random masks, shapes, heads, documents and offsets against float64 NumPy: `python -m tests.bench.attention_random`.

Each program is a random mask and shape; several draws of arrays and documents go through it. The sizes of blocks are
small, so that short rows have many of them, and change from program to program: tiles unrolled, tiles scanned, and rows
in many chunks; of kernels, which are interpreted on a CPU, blocks of several sizes.
"""

import argparse
import os
import random
import sys

os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")  # it compiles far longer than it runs

import jax
import jax.numpy as jnp

from gpt4jax.model import parts, tiles
from gpt4jax.model.kernels import gpu, tpu
from tests.model import attention_cases as cases

KERNEL_BLOCKS = (8, 16, 24)  # the largest of kernels, in turn
SIZES = {  # blocks unrolled, scanned, and in chunks of few scores
    "unrolled": dict(MIN_BLOCK=12, MAX_UNROLLED=8, MAX_BLOCK=512, SCORES=2**20),
    "scanned": dict(MIN_BLOCK=8, MAX_UNROLLED=0, MAX_BLOCK=16, SCORES=2**20),
    "chunked": dict(MIN_BLOCK=12, MAX_UNROLLED=8, MAX_BLOCK=512, SCORES=600),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lowering", default="blockwise")
    parser.add_argument("--programs", type=int, default=1000)
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--dtype", default="float32")
    flags = parser.parse_args()
    dtype = jnp.dtype(flags.dtype)
    bound = 2e-6 if dtype == jnp.float32 else 2e-2
    parts.SPLIT_ABOVE, parts.MIN_WINDOW_BLOCK = 8, 4
    worst, terms, bad = 0.0, 0.0, 0
    for number in range(flags.first, flags.first + flags.programs):
        name = list(SIZES)[number % len(SIZES)]
        for constant, value in SIZES[name].items():
            setattr(tiles, constant, value)
        tiles.cover.cache_clear()
        tpu.MIN_BLOCK, tpu.MAX_BLOCK = 8, KERNEL_BLOCKS[number % len(KERNEL_BLOCKS)]
        gpu.MAX_BLOCK = 16 * (1 + number % 2)
        case = cases.draw_case(random.Random(number))
        off, of_terms = cases.worst_errors(case, flags.lowering, flags.draws, number, dtype)
        worst, terms = max(worst, off), max(terms, of_terms)
        if off > bound:
            bad += 1
            print(f"program {number} ({name}): error {off:.1e}, {of_terms:.1e} of the terms: {case}", flush=True)
        if number % 50 == 49:
            print(f"{number + 1 - flags.first} programs, worst error {worst:.2e}", flush=True)
            jax.clear_caches()
    draws = flags.programs * flags.draws
    print(f"{flags.lowering}, {flags.dtype}: {draws} problems, {bad} programs above {bound:g}, worst {worst:.2e}")
    print(f"relative to the terms that are added up, where a gradient nearly cancels: worst {terms:.2e}")
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
