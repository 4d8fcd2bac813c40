"""Aligns a decoder: `python -m gpt4jax.align --config configs/align_quickstart.py --workdir DIR`.

The same command resumes what was interrupted. Each stage of the config has its own folder, DIR/sft, DIR/reward, ...:
a run as `gpt4jax.train` has them, and in `export` its decoder as `gpt4jax.sample --weights` takes it. DIR/report.html
shows what they did.
"""

import argparse
from collections.abc import Sequence

from gpt4jax import files, job
from gpt4jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Reads the flags and runs the stages; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.align", description=__doc__.partition("\n")[0])
    job.config_flags(parser)
    flags, overrides = job.parse(parser, argv)
    from gpt4jax.align import config as align_config
    from gpt4jax.align import stages
    from gpt4jax.parallel import processes

    config = align_config.load(flags.config, overrides)
    workdir = files.absolute(files.user_path(flags.workdir))
    processes.join(config.mesh, workdir, job.say)
    if processes.joined():
        raise UserError("alignment runs in one process, on all devices of its host: start it on one host alone")
    return stages.align(config, workdir)


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
