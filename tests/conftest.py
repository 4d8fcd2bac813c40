"""Eight virtual CPU devices for every test, and one tiny decoder of each shape."""

import atexit
import os
import shutil
import tempfile

# Most of the suite's time is compilation of programs that run for milliseconds: compile them without
# LLVM's optimisations, here and in the jobs that tests start. With `XLA_FLAGS= python -m pytest` all is as
# users have it, and the benchmarks always are.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

# The jobs that tests start are mostly the same run again: what one has compiled, the next ones load.
os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.model import cached, parts, tiles
from gpt4jax.model.kernels import gpu, tpu
from gpt4jax.model.parameters import tree

atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_enable_compilation_cache", False)  # the tests themselves compile each program once
tiles.MIN_BLOCK = 12  # rows here are short: let them have several blocks and parts, as long rows do
parts.SPLIT_ABOVE, parts.MIN_WINDOW_BLOCK = 16, 4
tpu.MIN_BLOCK = 8
tpu.MAX_BLOCK = gpu.MAX_BLOCK = 16
cached.CACHE_BLOCK = 16  # caches too

LONG = ("test_predict", "test_train", "test_notebooks", "test_pods", "test_files", "test_step", "test_export")


def pytest_collection_modifyitems(items):
    """Files that take long come first: of two processes none is left alone with one at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


GPT = dict(
    vocab_size=96, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=4, head_dim=8, mlp_dim=64, max_seq_len=32
)
LLAMA = dict(
    GPT, num_kv_heads=2, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False
)
# Wider than GPT-2's 0.02, so that attention is far from uniform and biases and scales matter.
SHAPES = {"gpt": dict(GPT, init_std=0.3), "llama": dict(LLAMA, init_std=0.3)}


@pytest.fixture(params=list(SHAPES))
def shape(request) -> dict:
    """The fields of a tiny decoder, GPT's shape and Llama's in turn."""
    return SHAPES[request.param]


def perturbed(config: model.Config, seed: int = 0):
    """Initial parameters with noise on all of them: zeros and ones would hide a bias or a scale left out."""
    rng = np.random.default_rng(seed)
    dtype = jnp.dtype(config.param_dtype)

    def draw(row):
        return jnp.asarray(row.fill + rng.normal(0, max(row.std, 0.1), row.shape), dtype)

    return tree(config, draw)


apply = jax.jit(model.apply, static_argnums=0)
