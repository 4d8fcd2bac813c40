"""Where training runs side by side are placed."""

import os

import pytest

from gpt4jax import config as configuration
from gpt4jax.errors import UserError
from gpt4jax.scaling import ladder, pool
from tests.runs import ROOT


def test_every_accelerator_has_a_worker_that_sees_no_other(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    gpus = pool.places(0, "gpu", 3)
    assert [place.environment for place in gpus] == [{"CUDA_VISIBLE_DEVICES": str(i)} for i in range(3)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,GPU-8932f937")  # what the user left to this job
    assert [p.environment["CUDA_VISIBLE_DEVICES"] for p in pool.places(2, "gpu", 3)] == ["2", "5"]
    tpus = pool.places(0, "tpu", 4)
    assert [p.environment["TPU_VISIBLE_CHIPS"] for p in tpus] == list("0123")
    assert all(p.environment["TPU_PROCESS_BOUNDS"] == "1,1,1" for p in tpus)
    with pytest.raises(UserError, match="4, and there are 3 devices of kind gpu"):
        pool.places(4, "gpu", 3)


def test_workers_on_a_cpu_share_its_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {1, 4, 6, 7, 9}, raising=False)
    cores = [place.cores for place in pool.places(0, "cpu", 1)]
    assert sorted(sum(cores, ())) == [1, 4, 6, 7, 9] and sorted(map(len, cores)) == [2, 3]
    assert [len(place.cores) for place in pool.places(5, "cpu", 1)] == [1] * 5
    with pytest.raises(UserError, match="6, and there are 5 cores"):
        pool.places(6, "cpu", 1)


def test_a_targets_seeds_share_a_cpu_and_take_turns_on_accelerators(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    assert [place.cores for place in pool.places_of_targets(2, "cpu")] == [(0, 2), (1, 3)]
    assert len(pool.places_of_targets(3, "cpu")) == 2
    for seeds, platform in ((1, "cpu"), (2, "gpu"), (2, "tpu")):
        assert pool.places_of_targets(seeds, platform) == [pool.Place({}, ())]


def _note_where_programs_are_kept(config, workdir) -> int:
    """A job for a worker: compiles a program, and writes where programs are kept and how many."""
    import jax

    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: x * 17 + 4)(1.0)
    kept = str(jax.config.values["jax_compilation_cache_dir"])
    (workdir / "kept.txt").write_text(f"{kept} {len(os.listdir(kept))}")
    return 0


def test_runs_share_their_compiled_programs_and_leave_none(tmp_path, monkeypatch):
    plan = ladder.plan(configuration.load(str(ROOT / "tests" / "configs" / "tiny_ladder.py"), (), ladder.default))
    runs = plan.runs[:2]

    def kept(folder):
        with pool._Workers([pool.Place({}, ())] * 2, len(runs)) as workers:
            assert [status for _, status in workers.train(runs, folder, _note_where_programs_are_kept)] == [0, 0]
        (one, some), (other, _) = ((folder / run.name / "kept.txt").read_text().split() for run in runs)
        assert one == other and int(some) > 0
        return one

    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))  # the user's own
    assert kept(tmp_path / "a") == str(tmp_path)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    assert not os.path.exists(kept(tmp_path / "b"))
