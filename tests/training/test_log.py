"""The lines of a run: one every so many steps, the first, and the last whatever its number."""

import jax.numpy as jnp
import pytest

from gpt4jax.errors import UserError
from gpt4jax.training import metrics
from gpt4jax.training.log import TrainLog


@pytest.fixture
def log(tmp_path):
    writer, progress = metrics.MetricWriter(tmp_path, 0), metrics.Progress(5, 0)
    yield TrainLog(writer, progress, every=2, flops_per_token=1.0, peak_flops=None, last_saved=lambda: None)
    writer.close()
    progress.close()


def scalars(loss):
    names = ("tokens", "bytes", "grad_norm", "learning_rate", "targets")
    return {"loss": jnp.float32(loss)} | {name: jnp.float32(10) for name in names}


def test_every_step_is_in_one_line(log, tmp_path):
    for step in range(1, 6):
        log.push(step, scalars(step), 0.0)
    log.flush()  # as an evaluation at the last step does
    log.flush(end=True)
    log.flush(end=True)
    lines = metrics.read(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 4, 5]
    assert [line["train/loss"] for line in lines] == [1, 2, 4, 5]
    # bits per byte is over all steps of a line, here with as many tokens as bytes
    means = [line["train/bits_per_byte"] * 0.6931471805599453 for line in lines]
    assert means == pytest.approx([1, 2, 3.5, 5])
    assert log.total_tokens == 40  # the first step's time was compilation


def test_a_loss_that_is_no_number_is_an_error_and_no_line(log, tmp_path):
    log.push(1, scalars(1.0), 0.0)
    log.push(2, scalars(float("nan")), 0.0)
    with pytest.raises(UserError, match="not finite at step 2 .loss nan.*finite up to step 1; nothing was saved yet"):
        log.flush()
    assert [line["step"] for line in metrics.read(tmp_path)] == [1]


def test_a_step_that_is_over_when_it_is_told_has_its_own_time(log, tmp_path, monkeypatch):
    """Rounds of PPO give numbers: a save right behind one must find nothing left to fetch in no time."""
    now = [100.0]
    monkeypatch.setattr("gpt4jax.training.log.time.monotonic", lambda: now[0])
    for step in range(1, 5):
        now[0] += 2
        log.push(step, {name: float(value) for name, value in scalars(step).items()}, 0.0)
        if step == 2:
            log.flush()
            with log.paused():
                now[0] += 7
    rates = [line.get("perf/tokens_per_second") for line in metrics.read(tmp_path)]
    assert rates == [None, 10 / 2, 20 / 4]
