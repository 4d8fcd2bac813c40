"""What every job does around its work: flags, the config, errors in words, exit status."""

import argparse
import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence

from gpt4jax import files
from gpt4jax.errors import MishapError, UserError
from gpt4jax.signals import INTERRUPTED, TERMINATED, Terminated

FAILED = 1  # what a program ends with that is not the user's doing, and may not happen again
BROKEN_PIPE = 141  # ... for a reader that has gone
_OF_THE_USER = {  # no space, no permission, no such kind of path
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR,
}  # fmt: skip
_OF_THE_STORE = ("aiohttp", "fsspec", "gcsfs", "google", "requests", "urllib3")  # network, credentials, permissions


def config_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --config and --workdir."""
    parser.add_argument("--config", required=True, help="a file with get_config(), such as configs/quickstart.py")
    parser.add_argument(
        "--workdir", required=True, type=files.user_path, help="where the run lives; an old one resumes"
    )
    parser.epilog = "--config.GROUP.KEY=VALUE overrides any key of the config, e.g. --config.model.num_layers=4"


def model_flags(parser: argparse.ArgumentParser) -> None:
    """Adds --workdir and --weights, of which one must be given."""
    one = parser.add_mutually_exclusive_group(required=True)
    one.add_argument("--workdir", type=files.user_path, help="a run of gpt4jax.train")
    one.add_argument(
        "--weights",
        help="a folder of safetensors, a .gguf file, an id of the Hugging Face hub, smollm2-135m-instruct",
    )


def load_model(flags: argparse.Namespace, dtype: str = "", mesh=None):
    """The decoder, tokenizer and parameters that --workdir or --weights names: a `weights.Loaded`.

    Of a run: those of its newest sound checkpoint. `dtype` and `mesh` as in `weights.load`; a run's type is as it was
    trained.

    Raises:
        UserError: there is no such run or there are no such weights, or they don't divide over the mesh.
    """
    from gpt4jax import config as configuration
    from gpt4jax import weights
    from gpt4jax.data import tokenizer
    from gpt4jax.training.checkpoint import load_params

    if flags.weights is not None:
        return weights.load(flags.weights, dtype=dtype, mesh=mesh, say=say)
    workdir = flags.workdir
    if not (workdir / "config.json").is_file():
        raise UserError(f"{workdir} is no run of gpt4jax: it has no config.json")
    config = configuration.from_json(workdir / "config.json")
    model_config = configuration.model_config(config)
    tok = tokenizer.of_run(config.data.tokenizer, workdir, files.shared_cache(config.data.cache_dir))
    tok = tok if model_config.vision is None else tokenizer.with_images(tok)
    shardings = weights.shardings(model_config, mesh, str(workdir))
    step, params = load_params(workdir, model_config, say, shardings)
    say(f"step {step} of {workdir}")
    return weights.Loaded(model_config, params, tok, workdir)


def parse(parser: argparse.ArgumentParser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the config overrides as KEY=VALUE. A flag that does not exist exits with status 2."""
    rest: list[str] = []
    overrides: list[str] = []
    words = iter(argv)
    for word in words:
        if not word.startswith("--config."):
            rest.append(word)
        elif "=" in word:
            overrides.append(word.removeprefix("--config."))
        else:  # --config.KEY VALUE
            overrides.append(f"{word.removeprefix('--config.')}={next(words, '')}")
    return parser.parse_args(rest), overrides


def use_huge_pages() -> None:
    """Restarts this program once, on Linux, with glibc allocating huge pages.

    XLA on a CPU takes the memory of a step from malloc and gives it back after the step, and the kernel
    hands it out again page by page: 180,000 page faults a step of 10.7M parameters, 15% of its time, and
    20% of a decoding step at 124M. glibc reads this setting at the start of a program only. A setting of
    your own is left as it is.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def say(line: str) -> None:
    """A line for the person at the terminal; stdout is for results."""
    if sys.stderr is not None:
        sys.stderr.write(f"{line}\n")  # at once: other threads write there too
        sys.stderr.flush()


def silent(line: str) -> None:
    """In place of `say` where another process says it."""


def quiet() -> None:
    """Keeps libraries' own words out of this process's.

    Orbax, TFDS and the client of an object store log the whole story of each file, and of one failed write some
    hundred lines from every thread; we raise the error itself, in words, and it shall be what is seen.
    """
    for name in ("absl", "asyncio", "gcsfs", "google"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def main(run: Callable[[Sequence[str]], int]) -> None:
    """Runs a job and exits: 0 if it did its work; an error of the user's in words, without a traceback."""
    quiet()
    ended = False
    try:
        status, ended = run(sys.argv[1:]), True
    except UserError as error:
        say(f"error: {error}")
        status = FAILED if isinstance(error, MishapError) else 2
    except BrokenPipeError:  # `... | head`: the reader has had enough
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        status = BROKEN_PIPE
    except KeyboardInterrupt as stop:
        say("interrupted; nothing that was saved is lost")
        status = TERMINATED if isinstance(stop, Terminated) else INTERRUPTED
    except Exception as error:
        if isinstance(error, OSError) and error.errno in _OF_THE_USER:
            say(f"error: {error}; nothing that was saved is lost: mend it and run the same command again")
            status = 2
        elif _of_the_store(error):
            say(f"error: the object store: {type(error).__name__}: {error}; nothing that was saved is lost")
            status = FAILED
        elif not _one_of_several():
            raise
        else:
            traceback.print_exc()
            say("error: this process cannot go on; if another one of the run ended before it, that is why")
            status = FAILED
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if not ended and _one_of_several():
        os._exit(status)  # an ordinary exit would wait for the others, and they for this one
    sys.exit(status)


def _of_the_store(error: Exception) -> bool:
    """Whether an object store's client raised it: gcsfs makes an OSError without a number of what it is told."""
    unnumbered = isinstance(error, OSError) and error.errno is None and "gcsfs" in sys.modules
    return unnumbered or type(error).__module__.partition(".")[0] in _OF_THE_STORE


def _one_of_several() -> bool:
    processes = sys.modules.get("gpt4jax.parallel.processes")
    return processes is not None and processes.joined()
