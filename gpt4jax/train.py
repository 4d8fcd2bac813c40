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
from gpt4jax import files, job, signals
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

    from gpt4jax.data import tokenizer
    from gpt4jax.model import flops, parameters
    from gpt4jax.parallel import mesh as meshes
    from gpt4jax.parallel import partition
    from gpt4jax.training import checkpoint, init_from, metrics, objective, optimizer, report, step
    from gpt4jax.training import state as states
    from gpt4jax.training import workdir as workdirs
    from gpt4jax.training.log import TrainLog
    from gpt4jax.training.loop import Loop

    began = time.monotonic()
    if "://" in str(workdir) or ":/" in str(workdir):
        raise UserError(f"--workdir {workdir}: only local folders for now, no object store")
    workdir = files.user_path(workdir).absolute()

    # --- What is asked for, checked before anything is written.
    try:
        configuration.check_values(config)
        model_config = configuration.model_config(config)
        if config.data.seq_len > model_config.max_seq_len:
            raise UserError(f"data.seq_len {config.data.seq_len} is above model.max_seq_len {model_config.max_seq_len}")
        eval_rows = config.eval.batch_size or config.batch_size
        mesh = meshes.make_mesh(config.mesh)
        partition.check(model_config, mesh, config.batch_size, config.optimizer.micro_batches)
        partition.check(model_config, mesh, eval_rows)
        tx = optimizer.adamw(config.optimizer, model_config, config.num_steps)
        step.check_lowering(
            model_config, mesh, config.batch_size // config.optimizer.micro_batches, config.data.seq_len
        )
    except ValueError as error:
        raise UserError(str(error)) from error
    cache_dir = files.cache_dir(config.data.cache_dir)
    start = init_from.find(config, model_config, workdir, cache_dir, job.say)
    workdirs.open_workdir(workdir, config)
    job.say(f"{report.describe(model_config, mesh, config)}\nworkdir {workdir}")

    # --- Data: tokenized once, then cached.
    chosen = objective.of(config, model_config, cache_dir, job.say, start.tokenizer)
    if max(checkpoint.saved_steps(workdir), default=0) > config.num_steps:
        raise UserError(
            f"{workdir} is at step {checkpoint.saved_steps(workdir)[-1]}, past num_steps {config.num_steps}"
        )
    workdirs.record(workdir, config, chosen.facts)
    tokenizer.keep(chosen.tokenizer, workdir)

    # --- Programs. The state is donated: a step updates it in place.
    shardings = states.state_shardings(model_config, tx, mesh)
    everywhere = partition.replicated(mesh)
    train_step = jax.jit(
        chosen.step(tx, optimizer.schedule(config.optimizer, config.num_steps)),
        in_shardings=(shardings, partition.batch_sharding(mesh)), out_shardings=(shardings, everywhere),
        donate_argnums=0,
    )  # fmt: skip

    abstract_state = states.abstract_state(model_config, tx, config.batch_size)
    held = partition.bytes_per_device(abstract_state, shardings)
    kinds = "parameters, memory and moments" if model_config.memory_len else "parameters and moments"
    job.say(f"{kinds}: {held / 2**20:,.1f} MiB a device")

    # --- State: restored in the order that checkpoint.py writes down, or taken from weights, or drawn from the seed.
    abstract = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract_state, shardings,
    )  # fmt: skip
    with contextlib.ExitStack() as stack:  # whatever happens, a save that has begun is finished
        checkpoints = stack.enter_context(contextlib.closing(checkpoint.Checkpoints(workdir, config.checkpoint.keep)))
        state = checkpoints.restore(abstract, job.say)
        if state is None and start.place is not None:
            begin = partial(states.started_from, config=model_config, optimizer=tx, rows=config.batch_size)
            new_state = jax.jit(begin, out_shardings=shardings, donate_argnums=0)
            state = new_state(start.place(shardings.params))
        if state is None:
            begin = partial(states.new_state, model_config, tx, config.seed, config.batch_size)
            state = jax.jit(begin, out_shardings=shardings)()
        first_step = int(state.step)
        if first_step:
            job.say(f"resumed at step {first_step}")
        history = metrics.rewind(workdir, first_step)

        # --- Steps.
        writer = stack.enter_context(contextlib.closing(metrics.MetricWriter(workdir, first_step)))
        progress = stack.enter_context(contextlib.closing(metrics.Progress(config.num_steps, first_step)))
        log = TrainLog(
            writer, progress, every=config.eval.log_every_steps,
            flops_per_token=flops.flops_per_token(model_config, config.data.seq_len)["train"],
            peak_flops=flops.peak_flops(jax.devices()[0].device_kind), last_saved=checkpoints.last_saved,
        )  # fmt: skip
        measure = chosen.evaluation(mesh, shardings)
        loop = Loop(config, mesh, chosen.rows, chosen.batch_of, train_step, measure, checkpoints, log, writer, progress)
        with jax.set_mesh(mesh), signals.StopRequest() as stop:
            state = loop.run(state, history, stop, workdir / "profile" if profile else None)
            checkpoints.wait()

    # --- The end: a short sample and a summary.
    if stop.received is not None and not loop.finished:
        job.say(f"{stop.received.name}: saved step {int(state.step)} of {config.num_steps}; the same command resumes")
        return signals.INTERRUPTED if stop.received.name == "SIGINT" else signals.TERMINATED
    if config.eval.sample_prompt and model_config.position == "transformer_xl":
        job.say('no sample: the engine that decodes has no Transformer-XL memory (eval.sample_prompt="" asks for none)')
    elif config.eval.sample_prompt and jax.process_count() == 1:
        print(report.sample(model_config, state.params, chosen.tokenizer, config), flush=True)
    print(report.summary(config, parameters.count(model_config)["total"], loop, log, time.monotonic() - began, workdir))
    return 0


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
