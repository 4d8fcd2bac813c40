"""What a run says before its first step and after its last."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from gpt4jax import files
from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request
from gpt4jax.model import context
from gpt4jax.model.axes import RULES
from gpt4jax.model.parameters import count
from gpt4jax.parallel import partition, processes
from gpt4jax.training.evaluation import words
from gpt4jax.training.loop import Loop
from gpt4jax.training.metrics import duration, peak_memory_bytes


def describe(model_config, mesh, config) -> str:
    """The run's arithmetic: parameters, mesh, rows and tokens of a step and of a device."""
    shards, micro = math.prod(mesh.shape[axis] for axis in RULES["act_batch"]), config.optimizer.micro_batches
    rows, length, parts = config.batch_size // shards // micro, config.data.seq_len, mesh.shape[context.AXIS]
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    by = f" ({length // parts:,} of each, by {model_config.context_method})" if parts > 1 else ""
    return (
        f"{count(model_config)['total']:,} parameters on {mesh.size} {jax.devices()[0].device_kind} ({shape})\n"
        f"a step: {config.batch_size} rows of {length} = {config.batch_size * length:,} tokens, "
        f"{rows} rows a shard"
        + (f" in each of {micro} micro-batches" if micro > 1 else "")
        + f", {rows * length // parts:,} tokens a device{by}"
    )


def held(abstract_state: Any) -> str:
    """What of the state a device holds; its leaves have shardings."""
    names = {"params": "parameters", "moments": "optimizer", "memory": "memory", "average": "average"}
    told = []
    for name, value in abstract_state._asdict().items():
        size = partition.bytes_per_device(value, jax.tree.map(lambda leaf: leaf.sharding, value)) / 2**20
        if name in names and size:
            told.append(f"{names[name]} {size:,.1f}")
    return f"a device holds, MiB: {', '.join(told)}"


def sample(model_config, params, tokenizer, config, say: Callable[[str], None]) -> str:
    """The prompt of the config and a continuation by the parameters as they are, as far as the model reaches.

    All processes must call this: their shards of the parameters come together in each. It is the first that decodes.
    """
    if not config.eval.sample_prompt:
        return ""
    if model_config.position == "transformer_xl":
        say('no sample: the engine that decodes has no Transformer-XL memory (eval.sample_prompt="" asks for none)')
        return ""
    room = processes.of_first(lambda: (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit"))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    if room is not None and size > room / 2:
        say(f"no sample: {size / 2**30:.1f} GiB of parameters do not fit one device (gpt4jax.sample --tensor splits)")
        return ""
    gathered = jax.tree.map(_on_host, params)
    if not processes.first():
        return ""
    prompt = tokenizer.prompt(config.eval.sample_prompt)[: model_config.max_seq_len - 1]
    max_tokens = min(config.eval.sample_tokens, model_config.max_seq_len - len(prompt))
    params = jax.device_put(gathered, jax.local_devices()[0])
    engine = Engine(model_config, params, tokenizer=tokenizer, rows=1, max_len=len(prompt) + max_tokens, consume=True)
    request = Request(prompt, max_tokens, temperature=0.8, top_p=0.95, seed=config.seed)
    return f"--- a sample\n{config.eval.sample_prompt}{engine.generate([request])[0].text}\n---"


def _on_host(leaf: jax.Array) -> np.ndarray:
    return multihost_utils.process_allgather(leaf, tiled=True) if processes.joined() else jax.device_get(leaf)


def summary(config, parameters: int, loop: Loop, log, seconds: float, workdir: files.Path) -> str:
    """A few lines for a person: what was trained, how well and how fast."""
    where, peak = peak_memory_bytes()
    lines = [f"{config.num_steps} steps of {parameters:,} parameters in {duration(seconds)}"]
    if loop.evaluation:
        lines.append(words(loop.evaluation))
    if log.total_seconds:
        lines.append(f"{log.total_tokens / log.total_seconds:,.0f} tokens/s of steps after the first")
    lines += [f"peak memory of the {where} {peak / 2**30:.2f} GiB", f"workdir {workdir}"]
    return "\n".join(lines)
