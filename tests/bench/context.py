"""Context parallelism of every pattern against scores all at once: `python -m tests.bench.context [--lowering tpu]`.

Rows of 96 tokens over four shards of `context`, with two of `tensor` where a pattern's heads divide over them, in
float64; with `--lowering tpu` the kernels, interpreted, in float32. A row each: how far the result and the three
gradients are from those of the lowering "reference" on one device. Rows are one document, packed documents with
positions of their own, or documents whose positions go on.

jax 0.10.2: 37 of the 84 rows, in the order of PATTERNS, differ by at most 4.4e-15; the rest did not run yet.
"""

import argparse
import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax.model import attention, context, patterns
from gpt4jax.model.arrangement import Where
from gpt4jax.model.decoder import _before
from gpt4jax.parallel import mesh as meshes
from tests import conftest  # noqa: F401 # eight devices, and small tiles

PATTERNS = (
    "dense", "banded:5", "banded:40", "strided:5", "strided:12", "column:7", "fixed:6:2", "fixed:5:2", "fixed:40:5",
    "summary:6:2", "block:6", "fixed:12:3|banded:20", "banded:5/column:3", "induction",
)  # fmt: skip
T, SHARDS = 96, 4


def rows(rng) -> tuple[np.ndarray, np.ndarray]:
    """Segments and positions of documents packed into two rows."""
    segment, position = np.zeros((2, 2, T), np.int32)
    for row in range(2):
        cuts = sorted(rng.choice(np.arange(1, T), 3, replace=False))
        for i, (start, end) in enumerate(zip([0, *cuts], [*cuts, T], strict=True)):
            segment[row, start:end], position[row, start:end] = i + 1, np.arange(end - start)
    return segment, position


def difference(pattern: str, method: str, lowering: str, packing: str) -> float:
    """The largest of the result and the gradients."""
    rng, of_heads = np.random.default_rng(0), patterns.from_pattern(pattern, 4)
    segment, position = rows(rng)
    where = {"plain": Where(), "packed": Where(position, segment), "going on": Where(None, segment)}[packing]
    if pattern == patterns.INDUCTION:
        tokens = jnp.asarray(rng.integers(0, 4, (2, T)))
        where = where._replace(token_bs=tokens, before_bs=_before(tokens, where.segment_bs))
    dtype = jnp.float32 if lowering == "tpu" else jnp.float64
    q, dy = jnp.asarray(rng.normal(size=(2, 2, T, 8, 4)), dtype)
    k, v = jnp.asarray(rng.normal(size=(2, 2, T, 4, 4)), dtype)

    def both(q, k, v, dy, where, **options):
        y, backward = jax.vjp(lambda *a: attention.attend(*a, of_heads, where, soft_cap=3.0, **options), q, k, v)
        return y, *backward(dy)

    true = jax.jit(lambda *a: both(*a, lowering="reference"))(q, k, v, dy, where)
    to = context.order(T, SHARDS)
    apart = "/" in pattern or pattern.startswith("summary")  # heads of which one stands alone
    with jax.set_mesh(meshes.make_mesh({"data": 1 + apart, "tensor": 2 - apart, "context": SHARDS})):
        run = jax.jit(lambda *a: both(*a, lowering=lowering, over=method))
        ours = run(*(a[:, to] for a in (q, k, v, dy)), where)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)[:, to]).max()) for a, b in zip(ours, true, strict=True))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--lowering", default="blockwise", choices=("blockwise", "tpu"))
    parser.add_argument("--patterns", nargs="*", default=PATTERNS)
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", flags.lowering == "blockwise")
    worst = 0.0
    for pattern, method, packing in itertools.product(flags.patterns, context.METHODS, ("plain", "packed", "going on")):
        found = difference(pattern, method, flags.lowering, packing)
        worst = max(worst, found)
        print(f"{pattern} {method} {packing}: {found:.1e}", flush=True)
        jax.clear_caches()
    print(f"worst {worst:.1e}")
    return int(worst > (1e-13 if flags.lowering == "blockwise" else 1e-5))


if __name__ == "__main__":
    sys.exit(main())
