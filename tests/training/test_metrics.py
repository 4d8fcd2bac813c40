"""Metrics files after a kill, and progress with and without a terminal."""

import io
import json
import pathlib
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from gpt4jax.training import metrics


def test_rewind_drops_what_will_be_written_again(tmp_path):
    writer = metrics.MetricWriter(tmp_path, 0)
    for step in range(1, 6):
        writer.write(step, {"train/loss": step / 2})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "train/lo')  # what a kill leaves
    assert [line["step"] for line in metrics.read(tmp_path)] == [1, 2, 3, 4, 5]
    kept = metrics.rewind(tmp_path, 3)
    assert kept == [{"step": step, "train/loss": step / 2} for step in (1, 2, 3)]
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == kept
    assert metrics.rewind(tmp_path / "nothing", 3) == []


def records(path):
    """The records of a TFRecord file: length (8 bytes), its checksum (4), data, its checksum (4)."""
    data = path.read_bytes()
    while data:
        (size,) = struct.unpack("<Q", data[:8])
        yield data[12 : 12 + size]
        data = data[16 + size :]


def test_tensorboard_gets_the_same_scalars(tmp_path):
    writer = metrics.MetricWriter(tmp_path, 7)
    writer.write(8, {"train/loss": 1.5, "perf/mfu": 0.25})
    (path,) = tmp_path.glob("events.out.tfevents.*")  # on disk before the writer is closed
    events = [Event.FromString(record) for record in records(path)]
    assert events[0].file_version == "brain.Event:2"
    assert (events[1].step, events[1].session_log.status) == (8, SessionLog.START)  # what was drawn from 8 on is void
    values = {(event.step, v.tag): v.simple_value for event in events for v in event.summary.value}
    assert values == {(8, "train/loss"): 1.5, (8, "perf/mfu"): 0.25}
    writer.close()


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere():
    for stream, bar in ((Terminal(), True), (io.StringIO(), False)):
        progress = metrics.Progress(10, 2, stream)
        progress.advance(4)
        progress.report(4, "loss 1.2345 · 99 tokens/s")
        progress.say("a line")
        progress.close()
        text = stream.getvalue()
        assert "loss 1.2345 · 99 tokens/s" in text and "a line" in text
        assert ("\r" in text and "4/10" in text) if bar else ("\r" not in text and "step 4/10 · loss" in text)


@pytest.mark.parametrize(("seconds", "words"), [(5.4, "5s"), (64, "1m 04s"), (3725, "1h 02m")])
def test_duration(seconds, words):
    assert metrics.duration(seconds) == words


@pytest.mark.skipif(not pathlib.Path("/proc/self/status").is_file(), reason="needs Linux's own account of memory")
def test_peak_memory_is_that_of_this_process():
    kind, peak = metrics.peak_memory_bytes()
    status = pathlib.Path("/proc/self/status").read_text()
    (high,) = [int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM")]
    assert kind == "process"
    assert peak == pytest.approx(high, rel=0.05)
