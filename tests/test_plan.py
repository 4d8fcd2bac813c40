"""Plans: the shapes they compile are those that training makes, and topologies that are none are refused in words."""

import subprocess
import sys

import jax
import pytest

from gpt4jax import config as configuration
from gpt4jax import plan
from gpt4jax.errors import UserError
from gpt4jax.parallel import topology as topologies
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


@pytest.mark.parametrize("topology", ["v5p", "v9:2x2", "", "4x4x4", "v5p:4xx4", "v5p:4x4x4*0", "v5e:16"])
def test_a_topology_that_does_not_exist_is_refused_in_words(topology):
    with pytest.raises(UserError, match="must be one of v4, v5e, v5p"):
        topologies.parse(topology)


def test_a_topology_of_two_slices_and_its_links():
    two = topologies.parse("v5p:4x4x8*2")
    assert (two.kind, two.sides, two.slices) == ("v5p", (4, 4, 8), 2)
    assert [two.links(side) for side in range(3)] == [2, 2, 2]
    flat = topologies.parse("v6e:8x16")  # of which only a side of 16 closes
    assert [flat.links(side) for side in range(2)] == [1, 2]
    assert topologies.parse("v5p:2x2x1").links(2) == 0


def test_help_answers_and_a_contrastive_run_is_refused():
    done = subprocess.run([sys.executable, "-m", "gpt4jax.plan", "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--topology" in done.stdout
    config = configuration.load("configs/clip_emoji.py")
    with pytest.raises(ValueError, match="not planned"):
        objective.abstract_batch(config, configuration.model_config(config))


def test_a_plan_in_words_says_whether_it_fits_how_fast_it_is_and_what_bounds_it():
    kinds = {"parameters": 2**30, "temporaries": 15 * 2**30, "total": 16 * 2**30}
    found = {
        "fits": False, "hbm_bytes_per_chip": kinds, "hbm_bytes_of_a_chip": topologies.DEVICES["v5e"].hbm_bytes,
        "compile_seconds": 1.0, "parameters": 10, "tokens_per_step": 8, "flops_per_token": 60.0,
        "flops_per_step": 480.0, "kernels": 0, "mesh": {"data": 4}, "topology": "v5e:2x2", "versions": {"jax": "0"},
        "step_seconds": 2.0, "tokens_per_second": 4.0, "mfu": 0.5, "bound_by": "arithmetic",
        "seconds_by_kind": {"arithmetic": 1.5, "collectives over fsdp": 0.5},
        "collective_bytes": {"all-gather": {"fsdp": 2**31}},
    }  # fmt: skip
    said = plan.words(found)
    assert "100%: it does not fit" in said and "all-gather over fsdp 2" in said
    assert "2 s a step, 4 tokens/s, 50.0% MFU, bound by arithmetic" in said
    assert "it fits" in plan.words(found | {"fits": True})


@pytest.mark.parametrize(
    ("change", "words"),
    [("eval.batch_size=3", "does not divide over"), ("data.seq_len=4096", "above model.max_seq_len")],
)
def test_a_plan_refuses_what_a_run_would(change, words, monkeypatch):
    monkeypatch.setattr(topologies, "devices", lambda topology: jax.devices())
    config = configuration.load("configs/quickstart.py", [change])
    with pytest.raises(UserError, match=words):
        plan.program(config, topologies.parse("v5e:2x4"))


class _Slice:
    """As many devices as a topology has, and no libtpu."""

    def __init__(self, monkeypatch, count):
        monkeypatch.setattr(topologies, "devices", lambda topology: [None] * count)


def large(**changes):
    """An 8B decoder on 16 chips of 16 GiB, whose state alone takes 6 GiB each."""
    config = configuration.load("configs/pod_vision_8b.py")
    config.vision.frontend = "none"
    config.data.dataset = "python_stdlib"
    config.batch_size = 64
    for name, value in changes.items():
        config.model[name] = value
    return config


def plans(config, name):
    """A stand-in for the compiler: slower with tensor, and small batches alone fit."""
    speed = 1e6 / config.mesh.tensor / (2 if config.model.remat == "full" else 1)
    kinds = {"parameters": 1, "total": 10**9 if config.batch_size <= 64 else 10**11}
    return {
        "fits": config.batch_size <= 64, "tokens_per_second": speed, "step_seconds": 1.0, "mfu": 0.5,
        "bound_by": "arithmetic", "hbm_bytes_per_chip": kinds, "config": config.to_dict(),
    }  # fmt: skip


@pytest.fixture
def asked(monkeypatch):
    """The configs that a sweep has compiled, by the stand-in."""
    found = []

    def one(config, name, flags):
        found.append(config.to_dict())
        return plans(config, name)

    monkeypatch.setattr(plan, "plan", one)
    return found


def test_a_sweep_compiles_no_more_than_it_may_and_names_the_fastest_that_fits(monkeypatch, asked):
    _Slice(monkeypatch, 16)
    found = plan.sweep(large(), "v5p:2x2x4", 4)
    assert len(asked) == len(found["tried"]) == 4 and found["fits"]
    fitting = [one for one in found["tried"] if one["fits"]]
    assert found["tokens_per_second"] == max(one["tokens_per_second"] for one in fitting)
    for config in asked:  # only what divides
        mesh = config["mesh"]
        assert config["batch_size"] % (mesh["data"] * mesh["fsdp"]) == 0 and 8 % mesh["tensor"] == 0
        assert mesh["data"] * mesh["fsdp"] * mesh["tensor"] == 16


def test_what_cannot_fit_is_said_with_how_much_and_the_nearest_that_does(monkeypatch):
    _Slice(monkeypatch, 16)
    said = plan.nearest(large(), "v5e:4x4", 20 * 2**30)
    assert said.startswith("5.28 GiB a device too much")  # 20 - 0.92 x 16
    assert "--config.mesh.fsdp=16" in said and "--config.batch_size=" in said
    _Slice(monkeypatch, 4)
    assert "Nothing fits v5e:2x2" in plan.nearest(large(), "v5e:2x2", 30 * 2**30)
    with pytest.raises(UserError, match="no variant fits"):
        plan.sweep(large(), "v5e:2x2", 3)


def test_the_nearest_is_not_the_step_that_was_found_too_large(monkeypatch):
    """It fits by arithmetic, which the compiler has shown to be wrong: then others are taken to be as much larger."""
    _Slice(monkeypatch, 16)
    config = large()
    config.batch_size = 16
    own = ["--config.mesh.fsdp=16", f"--config.model.remat={config.model.remat}", "--config.batch_size=16"]
    for total in (0, 15 * 2**30):  # 0: the compiler has not said how much it takes
        said = plan.nearest(config, "v5e:4x4", total)
        assert "The nearest that fits" in said and not set(own) <= set(said.split())
    said = topologies.NoRoomError(
        "RESOURCE_EXHAUSTED: ... for HLO temporaries (22.84G) exceeds available HBM (15.75G)."
    )
    assert said.temporaries == pytest.approx(22.84 * 2**30)


def test_a_sweep_looks_at_the_config_itself_and_its_micro_batches(monkeypatch, asked):
    """A step that fits in 16 micro-batches alone, under a remat policy that no other variant has."""
    _Slice(monkeypatch, 16)
    config = large(remat="none")
    config.optimizer.micro_batches = 4
    config.mesh.update(data=2, fsdp=8)
    plan.sweep(config, "v5p:2x2x4", 3)
    first = asked[0]
    assert (first["mesh"]["data"], first["mesh"]["fsdp"], first["model"]["remat"]) == (2, 8, "none")
    assert first["batch_size"] == 64 and len(asked) == 3
    config.optimizer.micro_batches = 1
    monkeypatch.setattr(plan, "plan", lambda config, name, flags: plans(config, name) | dict(
        tokens_per_second=None, not_modelled="a kernel of its own"))  # fmt: skip
    with pytest.raises(UserError, match="no modelled time to compare: a kernel of its own"):
        plan.sweep(large(), "v5p:2x2x4", 3)
