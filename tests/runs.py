"""Runs of the public command line, for tests and benchmarks."""

import contextlib
import importlib
import io
import os
import pathlib
import subprocess
import sys
import sysconfig
from unittest import mock

import numpy as np
import orbax.checkpoint as ocp

ROOT = pathlib.Path(__file__).parents[1]
TINY = ROOT / "tests" / "configs" / "tiny.py"


def write_corpus(folder: pathlib.Path) -> pathlib.Path:
    """60 small real documents: the beginnings of modules of the running Python."""
    folder.mkdir(parents=True)
    modules = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("[a-p]*.py"))
    for module in modules[:60]:
        (folder / module.name).write_text(module.read_text()[:3000])
    return folder


def command(job: str, *flags: object) -> list[str]:
    """`python -m gpt4jax.<job> flags...`"""
    return [sys.executable, "-m", f"gpt4jax.{job}", *map(str, flags)]


def environment(cache: pathlib.Path, devices: int = 1) -> dict[str, str]:
    """The environment of a run with a cache of its own; under pytest with its XLA_FLAGS (tests/conftest.py)."""
    own = {"GPT4JAX_CACHE": str(cache), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices)}
    return os.environ | own


def run(job: str, *flags: object, cache: pathlib.Path, devices: int = 1) -> subprocess.CompletedProcess:
    """Runs a job to its end."""
    environ = environment(cache, devices)
    return subprocess.run(command(job, *flags), env=environ, cwd=ROOT, capture_output=True, text=True, check=False)


@contextlib.contextmanager
def _compiled_once():
    """In here a program that an earlier job has compiled is loaded, as in jobs that are started (tests/conftest.py)."""
    import jax
    from jax.experimental.compilation_cache import compilation_cache

    before = jax.config.jax_enable_compilation_cache

    def use(cache: bool) -> None:
        jax.config.update("jax_enable_compilation_cache", cache)
        compilation_cache.reset_cache()  # it looks at the setting once

    use(True)
    try:
        yield
    finally:
        use(before)


def here(job: str, *flags: object, cache: pathlib.Path, devices: int = 1) -> subprocess.CompletedProcess:
    """Runs a job to its end in this process, which shows it some of its devices: what a start costs is saved."""
    import jax

    from gpt4jax import job as jobs

    argv, out, err = [job, *map(str, flags)], io.StringIO(), io.StringIO()
    shown = jax.local_devices()[:devices]
    with contextlib.ExitStack() as stack:
        stack.enter_context(_compiled_once())
        stack.enter_context(mock.patch.object(jax, "devices", return_value=shown))
        stack.enter_context(mock.patch.dict(os.environ, GPT4JAX_CACHE=str(cache), JAX_PLATFORMS="cpu"))
        stack.enter_context(mock.patch.object(sys, "argv", argv))
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        try:
            jobs.main(importlib.import_module(f"gpt4jax.{job}").main)
        except SystemExit as end:
            return subprocess.CompletedProcess(argv, end.code, out.getvalue(), err.getvalue())
    raise AssertionError("a job ends by exiting")


def final_state(workdir: pathlib.Path, step: int) -> dict[str, np.ndarray]:
    """Every array of a checkpoint by its path, read by Orbax alone."""
    import jax

    arrays = {}
    with ocp.PyTreeCheckpointer() as reader:
        for item in ("params", "rest"):
            folder = (workdir / "checkpoints" / str(step) / item).absolute()
            shapes = reader.metadata(folder).item_metadata.tree
            host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)  # whatever devices wrote it
            tree = reader.restore(folder, args=ocp.args.PyTreeRestore(restore_args=host))
            for path, leaf in jax.tree.leaves_with_path(tree):
                arrays[item + jax.tree_util.keystr(path)] = np.asarray(leaf)
    return arrays


def assert_same_state(ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]) -> None:
    """Equal to the last bit."""
    assert ours.keys() == theirs.keys() and len(ours) > 10
    for name, array in ours.items():
        assert array.dtype == theirs[name].dtype and array.tobytes() == theirs[name].tobytes(), name
