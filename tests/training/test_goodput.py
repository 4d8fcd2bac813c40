"""Goodput: buckets that add up, and what is lost or down, by hand."""

import json

import jax
import jax.numpy as jnp
import pytest

from gpt4jax.errors import UserError
from gpt4jax.training import goodput


class Time:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def passes(self, seconds):
        self.now += seconds


def test_at_every_moment_one_bucket_runs():
    time = Time()
    clock = goodput.Clock(0.0, time)
    time.passes(3)  # start_up
    with clock("restore"):
        time.passes(2)
    clock.switch("step")
    time.passes(5)
    with clock("evaluation"):
        time.passes(1)
        with clock("save"):
            time.passes(0.5)
        time.passes(1)
    time.passes(0.25)
    found = clock.read()
    clock.close()
    expected = dict(start_up=3, restore=2, step=5.25, evaluation=2, save=0.5, compile=0, data_wait=0)
    assert found == expected and sum(found.values()) == time.now


def test_compiling_counts_as_such_wherever_it_happens():
    clock = goodput.Clock(0.0, Time())  # which stands still: what it counts comes from compiling alone
    with clock("evaluation"):
        jax.jit(lambda x: jnp.sin(x) * 3.25)(jnp.ones(7))
    found = clock.read()
    clock.close()
    assert 0 < found["compile"] < 60 and found["evaluation"] == pytest.approx(-found["compile"])
    jax.jit(lambda x: jnp.cos(x) * 4.25)(jnp.ones(7))
    assert clock.read() == found


def line(start, at, time, **seconds):
    return {"start": start, "step": at, "time": time, "seconds": dict.fromkeys(goodput.BUCKETS, 0.0) | seconds}


def test_what_a_later_start_does_again_is_lost():
    lines = [
        line(100, 0, 110, start_up=10),
        line(100, 4, 130, start_up=10, step=20),
        line(100, 6, 142, start_up=10, step=30, save=2),
        line(100, 9, 157, start_up=10, step=45, save=2),  # killed soon after
        line(170, 6, 180, start_up=6, restore=4),  # resumed at 6: the 15 s after it are lost
        line(170, 8, 190, start_up=6, restore=4, step=10),
        line(200, 4, 205, start_up=5),  # the checkpoint of 6 was damaged: resumed at 4
        line(200, 10, 235, start_up=5, step=30),
    ]
    found = goodput.account(lines)
    assert found.starts == 3 and found.wall == 135
    # The start-up of the second start stays: its first line stands at step 6 > 4, so it was for nothing too.
    assert found.seconds["lost"] == 15 + 12 + 20
    assert found.seconds["step"] == 20 + 30 and found.seconds["start_up"] == 15 and found.seconds["save"] == 0
    assert found.seconds["down"] == 13 + 10
    assert sum(found.seconds.values()) == found.wall


def test_a_journal_is_read_back_and_a_cut_line_is_left_out(tmp_path):
    time, wall = Time(), Time()
    clock = goodput.Clock(0.0, time)
    wall.now = 1000.0
    journal = goodput.Journal(clock, tmp_path, 3, wall)
    for step in range(4, 8):
        time.passes(0.6)
        wall.passes(0.6)
        journal.line(step, now=False)  # every second at most
    journal.close()
    with (tmp_path / goodput.FILE).open("a") as file:
        file.write('{"start": 1000.0, "st')
    found = goodput.read(tmp_path)
    assert [(each["step"], each["time"], each["seconds"]["start_up"]) for each in found] == [
        (3, 1000, 0),
        (5, 1001.2, 1.2),
        (7, 1002.4, 2.4),
    ]
    (tmp_path / goodput.FILE).write_text(json.dumps({"step": 1}) + "\n")
    with pytest.raises(UserError, match="holds no line yet"):
        goodput.read(tmp_path)
    with pytest.raises(UserError, match="has no goodput.jsonl"):
        goodput.read(tmp_path / "other")


def test_words_give_shares_of_the_wall_time():
    found = goodput.account([line(0, 0, 25, start_up=25), line(0, 9, 100, start_up=25, step=75)])
    assert "1 start, 100.0 s" in goodput.words(found)
    assert "75.00%" in goodput.words(found) and "100.00%" in goodput.words(found)
