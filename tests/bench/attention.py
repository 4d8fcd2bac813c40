"""What attention patterns cost, on the CPU: `python -m tests.bench.attention work|cost|peer`.

work: pairs computed over pairs visible, and over the least that the lowering's own tiles could do with.
cost: time and peak memory of forward and backward over 1k to 32k tokens, each in a process of its own.
peer: dense attention beside torch.nn.functional.scaled_dot_product_attention, in turn (`pip install -e '.[peers]'`).
"""

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import jax
import numpy as np

from gpt4jax.model import attention, masks, parts, tiles

HEADS, HEAD_DIM = 4, 64


def pattern(name: str, stride: int, count: int = 8) -> masks.Mask:
    """The four patterns; `count` summaries of a fixed one (Child et al. 2019 have 8 to 32)."""
    causal = masks.causal()
    if name == "banded":
        return causal & masks.banded(1024)
    if name == "strided":
        return causal & (masks.banded(stride) | masks.strided(stride))
    return causal & masks.fixed(stride, count) if name == "fixed" else causal


NAMES = ("dense", "banded", "strided", "fixed")


def least(part: parts.Part, length: int) -> int:
    """The pairs of the fewest key tiles that hold what each block of queries sees, wherever these keys may lie."""
    rows, q_len, k_len = tiles.shape(part, length)
    if part.kind == "window":
        seen = (part.mask(np.arange(part.block)[:, None] + part.before, np.arange(k_len)[None])).any(0).sum()
        return rows * part.block * int(seen)
    found = tiles.cover(part.plan, part.offset, q_len, k_len, rows)
    if found.unrolled is None:
        blocks, tile = [(start, min(start + found.size, q_len)) for start in range(0, q_len, found.size)], found.size
    else:
        blocks, tile = [(start, end) for start, end, _ in found.unrolled], tiles.MIN_BLOCK
    key = np.arange(k_len)
    apart = part.stride if part.kind == "residue" else 1
    k_pos = key * apart
    if part.kind == "summary":
        k_pos = key // part.count * part.stride + part.stride - part.count + key % part.count
    pairs = 0
    for start, end in blocks:
        seen = np.count_nonzero(part.mask(np.arange(start, end)[:, None] * apart, k_pos[None]).any(0))
        height = found.size if found.unrolled is None else end - start
        width = tile if found.unrolled is None else min(tile, k_len)
        pairs += rows * height * min(-(-seen // width) * width, k_len if found.unrolled is not None else 2**62)
    return pairs


def work() -> int:
    bad = False
    print("pattern      tokens stride | pairs a query: visible, computed | over visible | over the least of its tiles")
    for length in (8192, 32768):
        for stride in (128, round(math.sqrt(length))):
            for name in NAMES:
                mask = pattern(name, stride, 32 if stride == 128 else 8)
                seen, done = mask.pairs(length, length), tiles.work(mask, length)
                fewest = sum(least(part, length) for part in parts.split(mask, (), True, 0, length, length))
                bad |= done > 1.1 * fewest
                packed = tiles.work(mask, length, plain=False)
                pairs = f"{seen / length:8.1f} {done / length:8.1f} | {done / seen:5.2f} | {done / fewest:.3f}"
                print(f"{name:12} {length:6} {stride:6} | {pairs} (in packed rows {packed / seen:.2f} over visible)")
    return int(bad)


def inputs(length: int) -> list[jax.Array]:
    """Queries, keys, values and the result's gradient."""
    return [jax.random.normal(jax.random.key(i), (1, length, HEADS, HEAD_DIM)) for i in range(4)]


def timed(run: Callable[[], object], rounds: int) -> list[float]:
    """Seconds of each round."""
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - began)
    return times


def program(mask: masks.Mask) -> Callable[..., object]:
    """Forward and backward, jitted."""

    def run(q, k, v, dy):
        y, backward = jax.vjp(lambda *qkv: attention.attend(*qkv, mask, lowering="blockwise"), q, k, v)
        return y, backward(dy)

    return jax.jit(run)


def one(name: str, length: int, stride: int, rounds: int) -> None:
    """A figure in a process of its own: {"seconds", "mib": what the program needs beyond its inputs}."""
    arrays = inputs(length)
    jax.block_until_ready(arrays)
    run = program(pattern(name, stride))
    compiled = run.lower(*arrays).compile()  # type: ignore[attr-defined]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    timed(lambda: compiled(*arrays), 1)
    times = timed(lambda: compiled(*arrays), rounds)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    results = [float(np.abs(np.asarray(x)).sum()) for x in jax.tree.leaves(compiled(*arrays))]
    print(json.dumps(dict(seconds=statistics.median(times), mib=(peak - before) / 1024, results=results)))


def cost(rounds: int, lengths: list[int]) -> int:
    found: dict[str, list[tuple[int, float, float, int]]] = {name: [] for name in NAMES}
    for length in lengths:
        stride = round(math.sqrt(length))
        for name in NAMES:
            command = [sys.executable, "-m", "tests.bench.attention", "one", "--name", name, "--length", str(length)]
            command += ["--stride", str(stride), "--rounds", str(rounds if length < 32768 else max(1, rounds // 2))]
            figures = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            pairs = pattern(name, stride).pairs(length, length)
            found[name].append((length, figures["seconds"], figures["mib"], pairs))
            seconds, mib = figures["seconds"], figures["mib"]
            print(f"{name:8} {length:6} stride {stride:4}: {seconds:8.4f} s {mib:7.0f} MiB", flush=True)
    print("growth exponents of time, of memory, and of the pairs that are visible (all lengths; from 4k on)")
    for name, rows in found.items():
        slopes = []
        for some in (rows, [row for row in rows if row[0] >= 4096]):
            if len(some) > 1:
                logs = np.log(np.array(some, float))
                slopes.append([float(np.polyfit(logs[:, 0], logs[:, i], 1)[0]) for i in (1, 2, 3)])
        print(f"  {name:8}", "; ".join(" ".join(f"{slope:.2f}" for slope in three) for three in slopes))
    for dense, band in zip(found["dense"], found["banded"], strict=True):
        print(f"banded(1024) over dense at {dense[0]}: {dense[1] / band[1]:.2f}x (ideal {dense[3] / band[3]:.1f}x)")
    return 0


def theirs(length: int, rounds: int) -> None:
    """PyTorch's figure in a process of its own, and its results for the inputs that ours has too."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    q, k, v, dy = (torch.tensor(np.asarray(a)).transpose(1, 2).contiguous().requires_grad_() for a in inputs(length))

    def run():
        q.grad = k.grad = v.grad = None
        y = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        y.backward(dy.detach())
        return y

    y = run()
    results = [float(x.detach().abs().sum()) for x in (y, q.grad, k.grad, v.grad)]
    print(json.dumps(dict(seconds=statistics.median(timed(run, rounds)), results=results)))


def peer(rounds: int) -> int:
    """Processes in turn: in one process the threads of each would go on spinning while the other runs."""
    command = [sys.executable, "-m", "tests.bench.attention"]
    for length in (2048, 4096, 8192):
        times: dict[str, list[float]] = {"one": [], "theirs": []}
        sums: dict[str, list[float]] = {}
        for _ in range(rounds):
            for what, kept in times.items():
                flags = [what, "--length", str(length), "--rounds", "5"]
                figures = json.loads(subprocess.run(command + flags, check=True, capture_output=True, text=True).stdout)
                kept.append(figures["seconds"])
                sums[what] = figures["results"]
        off = max(abs(a / b - 1) for a, b in zip(sums["one"], sums["theirs"], strict=True))
        a, b = (statistics.median(kept) for kept in times.values())
        print(
            f"{length}: {a:.3f} s, PyTorch {b:.3f} s: {b / a:.2f}x; sums of magnitudes differ by {off:.0e}", flush=True
        )
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("work", "cost", "peer", "one", "theirs"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--lengths", default="1024,2048,4096,8192,16384,32768")
    parser.add_argument("--name", default="dense")
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--stride", type=int, default=32)
    flags = parser.parse_args()
    if flags.what == "one":
        one(flags.name, flags.length, flags.stride, flags.rounds)
        return 0
    if flags.what == "theirs":
        theirs(flags.length, flags.rounds)
        return 0
    if flags.what == "cost":
        return cost(flags.rounds, [int(length) for length in flags.lengths.split(",")])
    return work() if flags.what == "work" else peer(flags.rounds)


if __name__ == "__main__":
    sys.exit(main())
