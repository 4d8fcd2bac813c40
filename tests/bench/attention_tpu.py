"""Compiles a train step with each attention pattern for TPUs that are not there: `python -m tests.bench.attention_tpu`.

The step is the real one, with kernels for TPU, at 32,768 tokens a row, layers scanned and recomputed, over a mesh of
data x fsdp x tensor. Needs the extra `tpu` (libtpu compiles on any CPU). What is printed: compile time, and the bytes
of HBM that a chip's arguments and temporaries take. A pattern such as A,B is one program whose layers alternate.

jax 0.10.2, libtpu 0.0.42.1, a busy CPU of two cores (compile times are of no use). One pattern in all layers: v5p:4x4x4
dense 2.53 GiB of arguments + 14.92 GiB of temporaries, strided:181 + 15.43; v6e:8x8 dense + 15.10, strided:128 + 15.35.
All eight patterns, in two cycles of four: v5p:4x4x4 + 13.25 and + 12.99, v6e:8x8 + 12.80 and + 12.91.
"""

import argparse
import os
import sys

os.environ["JAX_PLATFORMS"] = "cpu"

from gpt4jax import config as configs
from gpt4jax import plan

TOKENS = 32_768
PATTERNS = (
    "dense", "banded:1024", "strided:128", "strided:181", "fixed:128:32", "fixed:2048:128",
    "banded:1024/column:128", "banded:256|fixed:2048:128",
)  # fmt: skip
TOPOLOGIES = {"v5p:4x4x4": (2, 8, 4), "v6e:8x8": (2, 8, 4)}  # data, fsdp, tensor: 64 chips each


def get_config(topology: str, patterns: tuple[str, ...], layers: int):
    """Llama's shape at 8 billion parameters (for 32 layers), one row on each data x fsdp shard."""
    c = configs.default()
    c.batch_size, c.data.seq_len = 16, TOKENS
    shape = dict(
        vocab_size=32_768, num_layers=layers, embed_dim=4096, num_heads=32, num_kv_heads=8, head_dim=128,
        mlp_dim=14_336, max_seq_len=TOKENS, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False,
        tie_embeddings=False, attention=patterns, attention_lowering="tpu", layers="scan", remat="full",
        loss_chunk_len=2048, dtype="bfloat16", param_dtype="float32",
    )  # fmt: skip
    c.model.update(shape)
    c.mesh.data, c.mesh.fsdp, c.mesh.tensor = TOPOLOGIES[topology]
    return c


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--patterns", nargs="*", default=PATTERNS, help="one program each, of A,B: one with a cycle")
    parser.add_argument("--topologies", nargs="*", default=list(TOPOLOGIES))
    parser.add_argument("--layers", type=int, default=32)
    flags = parser.parse_args()
    bad = 0
    for topology in flags.topologies:
        for pattern in flags.patterns:
            try:
                found = plan.plan(get_config(topology, tuple(pattern.split(",")), flags.layers), topology)
            except Exception as error:
                bad += 1
                print(f"{topology} {pattern}: {type(error).__name__}: {str(error)[:2000]}", flush=True)
                continue
            sizes = found["hbm_bytes_per_chip"]
            arguments = sum(sizes[kind] for kind in ("parameters", "moments", "batch"))
            print(
                f"{topology} {pattern}: {found['kernels']} kernels compiled in {found['compile_seconds']:.0f} s; HBM "
                f"a chip {arguments / 2**30:.2f} GiB of arguments + {sizes['temporaries'] / 2**30:.2f} GiB of "
                "temporaries",
                flush=True,
            )
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
