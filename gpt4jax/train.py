"""Trains a decoder: `python -m gpt4jax.train --config configs/quickstart.py --workdir DIR`.

The same command resumes what was interrupted. DIR gets config.json, data.json, metrics.jsonl, goodput.jsonl,
checkpoints/<step>/, TensorBoard events and, for a trained tokenizer, tokenizer.json. On several hosts the same command
runs on each, and DIR is a folder that all of them see, such as gs://BUCKET/NAME.
"""

import argparse
import time
from collections.abc import Sequence
from functools import partial

from gpt4jax import config as configuration
from gpt4jax import files, job
from gpt4jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Reads the flags and trains; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.train", description=__doc__.partition("\n")[0])
    job.config_flags(parser)
    parser.add_argument("--profile", action="store_true", help="write a trace of five steps to WORKDIR/profile")
    flags, overrides = job.parse(parser, argv)
    return train(configuration.load(flags.config, overrides), flags.workdir, profile=flags.profile)


def train(config, workdir: files.Path, *, profile: bool = False) -> int:
    """Runs (or resumes) the training that `config` describes; returns the exit status.

    Raises:
        UserError: what is wrong with the config, the data, the workdir or the state, in words.
    """
    began = time.monotonic()
    import jax

    from gpt4jax.model import flops, parameters
    from gpt4jax.parallel import partition, processes
    from gpt4jax.training import corruption, goodput, init_from, objective, optimizer, report
    from gpt4jax.training import run as runs
    from gpt4jax.training import state as states
    from gpt4jax.training import workdir as workdirs

    workdir = files.absolute(files.user_path(workdir))
    clock = goodput.Clock(began)

    # --- What is asked for, checked before anything is written; by all processes, if there are several.
    configuration.check_values(config)
    processes.join(config.mesh, workdir, job.say)
    say = job.say if processes.first() else job.silent
    if processes.joined():
        from gpt4jax.scaling.forecast import provenance

        processes.check_same(configuration.flat(config) | {"code and versions": provenance()})
    model_config, mesh, tx = checked(config)
    cache_dir = files.shared_cache(config.data.cache_dir)
    start = init_from.find(config, model_config, workdir, cache_dir, say)
    processes.of_first(lambda: workdirs.open_workdir(workdir, config))
    if processes.joined() and not processes.see_the_same(workdir):
        raise UserError(f"--workdir {workdir} is not one folder for all processes: each host sees its own")
    say(f"{report.describe(model_config, mesh, config)}\nworkdir {workdir}")

    # --- Data: tokenized once, then cached.
    chosen = objective.of(config, model_config, cache_dir, say, start.tokenizer)
    processes.of_first(lambda: workdirs.record(workdir, config, chosen.facts, chosen.tokenizer))

    # --- The run. The state is donated: a step updates it in place.
    shardings = states.state_shardings(model_config, tx, mesh)
    step, rows = chosen.step(tx, optimizer.schedule(config.optimizer, config.num_steps)), partition.batch_sharding(mesh)
    train_step = jax.jit(
        step, in_shardings=(shardings, rows), out_shardings=(shardings, partition.replicated(mesh)), donate_argnums=0
    )
    program = runs.Program(
        chosen.rows, chosen.batch_of, train_step, chosen.evaluation(mesh, shardings),
        states.laid_out(states.abstract_state(model_config, tx, config.batch_size), shardings),
        partial(_first_state, config, model_config, tx, shardings, start),
        flops_per_token=flops.flops_per_token(model_config, config.data.seq_len)["train"],
        peak_flops=flops.peak_flops(jax.devices()[0].device_kind),
        from_foreign=bool(config.init_from),
        check=corruption.Check(step, (shardings, rows), mesh) if config.mesh.verify_every_steps else None,
    )  # fmt: skip
    ended = runs.run(config, mesh, workdir, program, clock, profile=profile)
    if ended.stopped is not None:
        return ended.stopped

    # --- The end: a short sample and a summary.
    sample = report.sample(model_config, ended.state.params, chosen.tokenizer, config, say)
    if processes.first():
        seconds = time.monotonic() - began
        summary = report.summary(
            config, parameters.count(model_config)["total"], ended.loop, ended.log, seconds, workdir
        )
        print(sample, summary, sep="\n" if sample else "", flush=True)
    processes.wait()  # for the sample: at the exit they would not wait long enough
    return 0


def checked(config, devices=None):
    """(decoder's config, mesh, optimizer) of a run's config, on JAX's devices; or on those of a plan.

    Raises:
        UserError: what does not fit together.
    """
    from gpt4jax.parallel import mesh as meshes
    from gpt4jax.parallel import partition
    from gpt4jax.training import optimizer, step

    try:
        model_config = configuration.model_config(config)
        if config.data.seq_len > model_config.max_seq_len:
            raise UserError(f"data.seq_len {config.data.seq_len} is above model.max_seq_len {model_config.max_seq_len}")
        mesh = meshes.make_mesh(config.mesh, devices)
        micro_batches, seq_len = config.optimizer.micro_batches, config.data.seq_len
        partition.check(model_config, mesh, config.batch_size, micro_batches, seq_len)
        partition.check(model_config, mesh, config.eval.batch_size or config.batch_size, seq_len=seq_len)
        tx = optimizer.adamw(config.optimizer, model_config, config.num_steps)
        if devices is None:  # a plan lowers the step itself
            step.check_lowering(model_config, mesh, config.batch_size // micro_batches, seq_len)
    except ValueError as error:
        raise UserError(str(error)) from error
    return model_config, mesh, tx


def _first_state(config, model_config, tx, shardings, start):
    """The state before the first step: from the weights that the config names, or drawn from its seed."""
    import jax

    from gpt4jax.training import state as states

    if start.place is None:
        begin = partial(states.new_state, model_config, tx, config.seed, config.batch_size)
        return jax.jit(begin, out_shardings=shardings)()
    begin = partial(states.started_from, config=model_config, optimizer=tx, rows=config.batch_size)
    return jax.jit(begin, out_shardings=shardings, donate_argnums=0)(start.place(shardings.params))


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
