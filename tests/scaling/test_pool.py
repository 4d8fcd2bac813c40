"""Where training runs side by side are placed."""

import os

import pytest

from gpt4jax.errors import UserError
from gpt4jax.scaling import pool


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
