"""What a run says before its first step and after its last."""

import math
import pathlib
from typing import Any

import jax

from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request
from gpt4jax.model import context
from gpt4jax.model.axes import RULES
from gpt4jax.model.parameters import count
from gpt4jax.parallel import partition
from gpt4jax.training.evaluation import words
from gpt4jax.training.loop import Loop
from gpt4jax.training.metrics import duration, peak_memory_bytes
from gpt4jax.training.state import TrainState


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


def memory(state: TrainState, shardings: Any, temporaries: int | None = None) -> str:
    """What a device holds between steps, by kind, and what a step takes beside that, if it is known.

    `temporaries` is `memory_analysis().temp_size_in_bytes` of the compiled step.
    """
    kinds = {"parameters": "params", "moments": "moments"} | ({"memory": "memory"} if state.memory is not None else {})
    held = {
        kind: partition.bytes_per_device(getattr(state, name), getattr(shardings, name)) for kind, name in kinds.items()
    }
    told = ", ".join(f"{kind} {size / 2**20:,.1f} MiB" for kind, size in held.items())
    more = "" if temporaries is None else f"; activations and gradients of a step {temporaries / 2**20:,.1f} MiB"
    return f"a device: {told}{more}"


def sample(model_config, params, tokenizer, config) -> str:
    """The prompt of the config and a continuation by the parameters as they are, as far as the model reaches."""
    prompt = tokenizer.prompt(config.eval.sample_prompt)[: model_config.max_seq_len - 1]
    max_tokens = min(config.eval.sample_tokens, model_config.max_seq_len - len(prompt))
    params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    engine = Engine(model_config, params, tokenizer=tokenizer, rows=1, max_len=len(prompt) + max_tokens, consume=True)
    request = Request(prompt, max_tokens, temperature=0.8, top_p=0.95, seed=config.seed)
    return f"--- a sample\n{config.eval.sample_prompt}{engine.generate([request])[0].text}\n---"


def summary(config, parameters: int, loop: Loop, log, seconds: float, workdir: pathlib.Path) -> str:
    """A few lines for a person: what was trained, how well and how fast."""
    where, peak = peak_memory_bytes()
    lines = [f"{config.num_steps} steps of {parameters:,} parameters in {duration(seconds)}"]
    if loop.evaluation:
        lines.append(words(loop.evaluation))
    if log.total_seconds:
        lines.append(f"{log.total_tokens / log.total_seconds:,.0f} tokens/s of steps after the first")
    lines += [f"peak memory of the {where} {peak / 2**30:.2f} GiB", f"workdir {workdir}"]
    return "\n".join(lines)
