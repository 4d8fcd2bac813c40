"""Plans: the shapes they compile are those that training makes, and topologies that are none are refused in words."""

import subprocess
import sys

import jax
import pytest

from gpt4jax import config as configuration
from gpt4jax import plan
from gpt4jax.errors import UserError
from gpt4jax.training import objective, step
from tests import runs


@pytest.mark.parametrize("name", ["vision_quickstart", "quickstart"])
def test_the_batch_of_a_plan_has_the_shapes_that_the_loader_makes(name, tmp_path):
    """A row of the run's own data, read as training reads it, beside the abstract one."""
    corpus = runs.write_corpus(tmp_path / "corpus")
    own = ["rendered:20"] if "vision" in name else [f"folder:{corpus}", "data.tokenizer=bpe:360"]
    config = configuration.load(f"configs/{name}.py", ["data.dataset=" + own[0], *own[1:]])
    model_config = configuration.model_config(config)
    planned = objective.abstract_batch(config, model_config)
    row = objective.of(config, model_config, tmp_path / "cache", lambda line: None).rows[0]
    canonical = jax.dtypes.canonicalize_dtype  # as they come onto a device: 32 bits
    read = step.Batch.of({each: jax.ShapeDtypeStruct(row[each].shape, canonical(row[each].dtype)) for each in row})
    expected = jax.tree.map(lambda leaf: ((config.batch_size, *leaf.shape), leaf.dtype), read)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), planned) == expected


@pytest.mark.parametrize("topology", ["v5p", "v9:2x2", "", "4x4x4"])
def test_a_topology_that_does_not_exist_is_refused_in_words(topology):
    with pytest.raises(UserError, match="must be one of v4, v5e, v5p"):
        plan.chips(topology)


def test_help_answers_and_a_contrastive_run_is_refused():
    done = subprocess.run([sys.executable, "-m", "gpt4jax.plan", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--topology" in done.stdout
    config = configuration.load("configs/clip_emoji.py")
    with pytest.raises(ValueError, match="not planned"):
        objective.abstract_batch(config, configuration.model_config(config))


def test_what_takes_more_than_its_share_of_a_chip_does_not_fit():
    assert plan.fits(int(0.91 * 16 * 2**30), "v5e:2x2") and not plan.fits(int(0.93 * 16 * 2**30), "v5e:2x2")
    assert plan.fits(int(0.93 * 16 * 2**30), "v6e:8x8") and not plan.fits(90 * 10**9, "v5p:4x4x4")
    kinds = {"parameters": 2**30, "temporaries": 15 * 2**30, "total": 16 * 2**30}
    found = {
        "fits": plan.fits(kinds["total"], "v5e:2x2"),
        "hbm_bytes_per_chip": kinds, "hbm_bytes_of_a_chip": plan.HBM["v5e"], "compile_seconds": 1.0,
        "parameters": 10, "tokens_per_step": 8, "flops_per_token": 60.0, "kernels": 0, "mesh": {"data": 4},
        "topology": "v5e:2x2", "versions": {"jax": "0"},
    }  # fmt: skip
    assert "100%: it does not fit" in plan.words(found)
