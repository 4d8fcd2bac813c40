"""Trains a decoder: `python -m gpt4jax.train --config configs/quickstart.py --workdir DIR`.

The same command resumes what was interrupted. DIR gets config.json, data.json, metrics.jsonl,
checkpoints/<step>/, TensorBoard events and, for a trained tokenizer, tokenizer.json.
"""

import argparse
import contextlib
import pathlib
import time
from collections.abc import Sequence
from functools import partial

from gpt4jax import config as configuration
from gpt4jax import job
from gpt4jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Reads the flags and trains; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.train", description=__doc__.partition("\n")[0])
    job.config_flags(parser)
    parser.add_argument("--profile", action="store_true", help="write a trace of five steps to WORKDIR/profile")
    flags, overrides = job.parse(parser, argv)
    return train(configuration.load(flags.config, overrides), flags.workdir, profile=flags.profile)


def train(config, workdir: pathlib.Path, *, profile: bool = False) -> int:
    """Runs (or resumes) the training that `config` describes; returns the exit status.

    Raises:
        UserError: what is wrong with the config, the data, the workdir or the state, in words.
    """
    import jax

    from gpt4jax.data import text, tokenizer
    from gpt4jax.model import flops, parameters
    from gpt4jax.parallel import mesh as meshes
    from gpt4jax.parallel import partition
    from gpt4jax.training import checkpoint, metrics, optimizer, signals, step
    from gpt4jax.training import state as states
    from gpt4jax.training import workdir as workdirs
    from gpt4jax.training.log import TrainLog

    start = time.monotonic()
    workdir = workdir.expanduser().absolute()

    # --- What is asked for, checked before anything is written.
    try:
        model_config = configuration.model_config(config)
        if config.data.seq_len > model_config.max_seq_len:
            raise UserError(f"data.seq_len {config.data.seq_len} is above model.max_seq_len {model_config.max_seq_len}")
        mesh = meshes.make_mesh(config.mesh)
        partition.check(model_config, mesh, config.batch_size, config.optimizer.micro_batches)
        partition.check(model_config, mesh, config.eval.batch_size or config.batch_size)
        tx = optimizer.adamw(config.optimizer, model_config, config.num_steps)
    except ValueError as error:
        raise UserError(str(error)) from error
    workdirs.open_workdir(workdir, config)
    job.say(f"{describe(model_config, mesh, config)}\nworkdir {workdir}")

    # --- Data: tokenized once, then cached.
    data = text.load(config.data, model_config.vocab_size, job.cache_dir(config.data.cache_dir), job.say)
    workdirs.check_data(workdir, data.facts)
    tokenizer.keep(data.tokenizer, workdir)

    # --- Programs. The state is donated: a step updates it in place.
    shardings = states.state_shardings(model_config, tx, mesh)
    rows, everywhere = partition.batch_sharding(mesh), partition.replicated(mesh)
    train_step = jax.jit(
        partial(
            step.train_step, model_config, tx, optimizer.schedule(config.optimizer, config.num_steps),
            seed=config.seed, micro_batches=config.optimizer.micro_batches, z_loss=config.optimizer.z_loss,
        ),
        in_shardings=(shardings, rows), out_shardings=(shardings, everywhere), donate_argnums=0,
    )  # fmt: skip
    eval_step = jax.jit(
        partial(step.eval_step, model_config), in_shardings=(shardings.params, rows), out_shardings=everywhere
    )

    # --- State: restored in the order that checkpoint.py writes down, or drawn from the seed.
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        states.abstract_state(model_config, tx), shardings,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:  # whatever happens, a save that has begun is finished
        checkpoints = stack.enter_context(contextlib.closing(checkpoint.Checkpoints(workdir, config.checkpoint.keep)))
        state = checkpoints.restore(abstract, job.say)
        if state is None:
            state = jax.jit(partial(states.new_state, model_config, tx, config.seed), out_shardings=shardings)()
        first_step = int(state.step)
        if first_step:
            job.say(f"resumed at step {first_step}")
        if first_step > config.num_steps:
            raise UserError(f"{workdir} is at step {first_step}, past num_steps {config.num_steps}")
        history = metrics.rewind(workdir, first_step)

        # --- Steps.
        writer = stack.enter_context(contextlib.closing(metrics.MetricWriter(workdir)))
        progress = stack.enter_context(contextlib.closing(metrics.Progress(config.num_steps, first_step)))
        log = TrainLog(
            writer, progress, every=config.eval.log_every_steps,
            flops_per_token=flops.flops_per_token(model_config, config.data.seq_len)["train"],
            peak_flops=flops.peak_flops(jax.devices()[0].device_kind), last_saved=checkpoints.last_saved,
        )  # fmt: skip
        loop = Loop(config, mesh, data, train_step, eval_step, checkpoints, log, writer, progress)
        with jax.set_mesh(mesh), signals.StopRequest() as stop:
            state = loop.run(state, history, stop, workdir / "profile" if profile else None)
            checkpoints.wait()

    # --- The end: a short sample and a summary.
    if stop.received is not None and not loop.finished:
        job.say(f"{stop.received.name}: saved step {int(state.step)} of {config.num_steps}; the same command resumes")
        return job.INTERRUPTED if stop.received.name == "SIGINT" else job.TERMINATED
    if config.eval.sample_prompt and jax.process_count() == 1:
        print(sample(model_config, state.params, data.tokenizer, config), flush=True)
    print(summary(config, parameters.count(model_config)["total"], loop, log, time.monotonic() - start, workdir))
    return 0


class Loop:
    """The steps of a run with its evaluations and saves, and what stops it."""

    def __init__(self, config, mesh, data, train_step, eval_step, checkpoints, log, writer, progress):
        self.config, self.mesh, self.data = config, mesh, data
        self.train_step, self.eval_step = train_step, eval_step
        self.checkpoints, self.log, self.writer, self.progress = checkpoints, log, writer, progress
        self.finished = False
        self.evaluation: dict[str, float] = {}  # the newest

    def run(self, state, history, stop, profile_dir):
        """Trains from `state` to the last step, or until asked to stop; the returned state is saved."""
        from gpt4jax.data import loader
        from gpt4jax.parallel import partition
        from gpt4jax.training.step import Batch

        config, first_step = self.config, int(state.step)
        batches = loader.train_batches(
            self.data.rows["train"], seed=config.seed, batch_size=config.batch_size, first_step=first_step,
            num_steps=config.num_steps, sharding=partition.batch_sharding(self.mesh), prefetch=config.data.prefetch,
        )  # fmt: skip
        saved = self.checkpoints.latest()
        evaluated = {line["step"]: line for line in history if "eval/heldout/loss" in line}
        self.evaluation = evaluated.get(first_step, {})
        tracer = Tracer(profile_dir, first_step)
        for step in range(first_step, config.num_steps + 1):
            # Step `step` is done; a resumed run may have been stopped just here.
            last = step == config.num_steps
            if _due(step, config.eval.eval_every_steps, last) and step not in evaluated:
                self.evaluate(state.params, step, stop)
            due = _due(step, config.checkpoint.checkpoint_every_steps, last) or stop.received is not None
            if due and step != saved:
                self.save(state)
            if last or stop.received is not None:
                break
            waiting = time.monotonic()
            batch = next(batches)
            waited = time.monotonic() - waiting
            tracer.before(step)
            state, scalars = self.train_step(state, Batch(**{f"{name}_bt": array for name, array in batch.items()}))
            tracer.after(step, scalars)
            self.log.push(step + 1, scalars, waited)
        self.log.flush()
        self.finished = step == config.num_steps and (stop.received is None or bool(self.evaluation))
        return state

    def save(self, state):
        """Starts to write a checkpoint, of a state whose loss is known to be finite."""
        self.log.flush()
        with self.log.paused():
            self.checkpoints.save(state)

    def evaluate(self, params, step, stop):
        """One pass over the held-out rows; given up if asked to stop, to be done on resuming."""
        from gpt4jax.data import loader
        from gpt4jax.parallel import partition
        from gpt4jax.training.step import Batch, bits_per_byte

        self.log.flush()
        batches = loader.eval_batches(
            self.data.rows["eval"], batch_size=self.config.eval.batch_size or self.config.batch_size,
            sharding=partition.batch_sharding(self.mesh), prefetch=self.config.data.prefetch,
        )  # fmt: skip
        sums = [0.0, 0.0, 0.0]
        with self.log.paused():
            for batch in batches:
                if stop.received is not None:
                    return
                totals = self.eval_step(params, Batch(**{f"{name}_bt": array for name, array in batch.items()}))
                sums = [total + float(part) for total, part in zip(sums, totals, strict=True)]
        nll, tokens, num_bytes = sums
        self.evaluation = {
            "eval/heldout/loss": nll / tokens,
            "eval/heldout/bits_per_byte": bits_per_byte(nll, num_bytes),
        }
        self.writer.write(step, self.evaluation)
        shown = self.evaluation
        self.progress.say(
            f"step {step}: held-out {shown['eval/heldout/loss']:.4f} nats/token, "
            f"{shown['eval/heldout/bits_per_byte']:.4f} bits/byte"
        )


def _due(step: int, every: int, last: bool) -> bool:
    return last or (every > 0 and step > 0 and step % every == 0)


class Tracer:
    """Traces steps 5 to 9 after the first, past compilation, into a folder (None: does nothing)."""

    def __init__(self, folder: pathlib.Path | None, first_step: int):
        self._folder, self._start, self._last = folder, first_step + 5, first_step + 9

    def before(self, step: int) -> None:
        """Starts the trace if `step` is its first."""
        import jax

        if self._folder is not None and step == self._start:
            jax.profiler.start_trace(str(self._folder))

    def after(self, step: int, scalars) -> None:
        """Ends it after its last, once that has run."""
        import jax

        if self._folder is not None and step == self._last:
            jax.block_until_ready(scalars)
            jax.profiler.stop_trace()
            job.say(f"a trace of steps {self._start} to {self._last} is in {self._folder}")


def describe(model_config, mesh, config) -> str:
    """The run's arithmetic: parameters, mesh, rows and tokens of a step."""
    import jax

    from gpt4jax.model.axes import RULES
    from gpt4jax.model.parameters import count

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
    """The prompt and a greedy-free continuation of it, by the parameters as they are."""
    import jax

    from gpt4jax.inference.generate import generate

    prompt = [tokenizer.end, *tokenizer.encode(config.eval.sample_prompt)]
    room = model_config.max_seq_len - len(prompt)
    params = jax.device_put(jax.device_get(params), jax.local_devices()[0])
    ids = generate(
        model_config, params, prompt, min(config.eval.sample_tokens, room),
        temperature=0.8, top_p=0.95, seed=config.seed, stop=tokenizer.end,
    )  # fmt: skip
    return f"--- a sample\n{config.eval.sample_prompt}{tokenizer.decode(ids)}\n---"


def summary(config, parameters: int, loop: Loop, log, seconds: float, workdir: pathlib.Path) -> str:
    """A few lines for a person: what was trained, how well and how fast."""
    from gpt4jax.training.metrics import duration, peak_memory_bytes

    where, peak = peak_memory_bytes()
    lines = [f"{config.num_steps} steps of {parameters:,} parameters in {duration(seconds)}"]
    if loop.evaluation:
        loss, bits = (loop.evaluation[f"eval/heldout/{name}"] for name in ("loss", "bits_per_byte"))
        lines.append(f"held-out {loss:.4f} nats/token, {bits:.4f} bits/byte")
    if log.total_seconds:
        lines.append(f"{log.total_tokens / log.total_seconds:,.0f} tokens/s of steps after the first")
    lines += [f"peak memory of the {where} {peak / 2**30:.2f} GiB", f"workdir {workdir}"]
    return "\n".join(lines)


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
