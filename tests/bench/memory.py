"""The held-out loss of a Transformer-XL behind memories of several lengths, none and longer than trained among them.

python -m tests.bench.memory RUN [RUN ...] [--memory 0,64,128,256,512] [--batch_size 16] [--clamp_len 127]

RUN is a workdir of gpt4jax.train with model.position=transformer_xl and data.layout=stream. The held-out documents are
read once through, in `batch_size` streams: as evaluation in training does it, with eval.memory_len. A clamp makes
distances that training never had look like one that it had; the paper's authors evaluate so.
"""

import argparse
import dataclasses
import pathlib
import sys
from functools import partial

import jax

from gpt4jax import config as configuration
from gpt4jax import files, model
from gpt4jax.data import loader, text
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from gpt4jax.training import checkpoint
from gpt4jax.training.step import Batch, bits_per_byte, eval_step


def evaluate(shape: model.Config, params, documents, length: int, batch_size: int) -> tuple[float, float]:
    """Nats per token and bits per byte behind a memory of `length` tokens."""
    config = dataclasses.replace(shape, memory_len=length)
    mesh = meshes.make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1])
    one = jax.jit(partial(eval_step, config), donate_argnums=2)
    memory = model.init_memory(config, batch_size) if length else None
    batches = loader.eval_batches(documents, batch_size=batch_size, sharding=partition.batch_sharding(mesh), prefetch=2)
    totals = []
    with jax.set_mesh(mesh):
        for batch in batches:
            sums, memory = one(params, Batch.of(batch), memory)
            totals.append(jax.device_get(sums))
    nll, tokens, num_bytes = (sum(map(float, sums)) for sums in zip(*totals, strict=True))
    return nll / tokens, bits_per_byte(nll, num_bytes)


def main() -> None:
    """Prints a line for each run and length."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=pathlib.Path)
    parser.add_argument("--memory", default="0,64,128,256,512", help="lengths in tokens")
    parser.add_argument("--batch_size", type=int, default=16, help="streams that the held-out documents are cut into")
    parser.add_argument("--clamp_len", type=int, help="longer distances count as this one (default: as trained)")
    flags = parser.parse_args()
    for workdir in flags.runs:
        config = configuration.from_json(workdir / "config.json")
        shape = configuration.model_config(config)
        if flags.clamp_len is not None:
            shape = dataclasses.replace(shape, xl_clamp_len=flags.clamp_len)
        data = text.load(config.data, shape.vocab_size, files.shared_cache(config.data.cache_dir), lambda line: None)
        step, params = checkpoint.load_params(workdir, shape, lambda line: print(line, file=sys.stderr))
        for length in map(int, flags.memory.split(",")):
            nats, bits = evaluate(shape, params, data.of("eval"), length, flags.batch_size)
            print(
                f"{workdir.name}, step {step}, trained with a memory of {shape.memory_len}: behind {length} "
                f"{nats:.4f} nats/token, {bits:.4f} bits/byte",
                flush=True,
            )


if __name__ == "__main__":
    main()
