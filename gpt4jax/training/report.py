"""What a run says before its first step and after its last."""

import pathlib

import jax

from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request
from gpt4jax.model.axes import RULES
from gpt4jax.model.parameters import count
from gpt4jax.training.evaluation import words
from gpt4jax.training.loop import Loop
from gpt4jax.training.metrics import duration, peak_memory_bytes


def describe(model_config, mesh, config) -> str:
    """The run's arithmetic: parameters, mesh, rows and tokens of a step."""
    shards = 1
    for axis in RULES["act_batch"]:
        shards *= mesh.shape[axis]
    micro = config.optimizer.micro_batches
    shape = " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
    return (
        f"{count(model_config)['total']:,} parameters on {mesh.size} {jax.devices()[0].device_kind} ({shape})\n"
        f"a step: {config.batch_size} rows of {config.data.seq_len} = "
        f"{config.batch_size * config.data.seq_len:,} tokens, "
        f"{config.batch_size // shards // micro} rows a shard"
        + (f" in each of {micro} micro-batches" if micro > 1 else "")
    )


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
