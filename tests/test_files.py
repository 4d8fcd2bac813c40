"""Files on a disk and in an object store, which is an emulator of Google's (`tests/object_store.py`)."""

import argparse
import hashlib
import json
import os
import pathlib
import re
import subprocess

import fsspec
import numpy as np
import pytest

from gpt4jax import config as configuration
from gpt4jax import files, job
from gpt4jax.data import cache, tokenizer
from gpt4jax.errors import UserError
from gpt4jax.evals import sources
from gpt4jax.training import checkpoint, goodput, metrics
from gpt4jax.training import workdir as workdirs
from tests import object_store
from tests.runs import ROOT, TINY, command, environment, write_corpus

STEPS = 8


@pytest.fixture(scope="module")
def store():
    """gs://bucket, for this process and those that it starts."""
    process, port = object_store.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in object_store.environ(port).items():
            patch.setenv(name, value)
        yield f"gs://{object_store.BUCKET}"
    process.kill()
    fsspec.filesystem("gcs").clear_instance_cache()


@pytest.fixture(params=["disk", "store"])
def folder(request, tmp_path, monkeypatch):
    """A new folder of each kind, and a cache of this machine's own."""
    monkeypatch.setenv("GPT4JAX_CACHE", str(tmp_path / "cache"))
    if request.param == "disk":
        return files.user_path(tmp_path / "folder")
    name = hashlib.sha256(str(tmp_path).encode()).hexdigest()[:8]
    return files.user_path(f"{request.getfixturevalue('store')}/{name}/")


def test_files_of_a_folder(folder):
    """Written whole, listed at any depth, moved, and known by what is in them."""
    files.replace(folder / "a" / "b.txt", "one")
    files.replace(folder / "a" / "b.txt", "two")
    files.replace(folder / "c", b"\x00")
    assert [path.relative_to(folder).as_posix() for path in files.below(folder)] == ["a/b.txt", "c"]
    assert (folder / "a" / "b.txt").read_text() == "two" and not files.below(folder / "nothing")
    (before,) = files.checksums(folder, ["a/b.txt"])
    files.move(folder / "a", folder / "d" / "1")
    assert [path.relative_to(folder).as_posix() for path in files.below(folder)] == ["c", "d/1/b.txt"]
    assert files.checksums(folder / "d", ["1/b.txt"]) == [before]
    files.replace(folder / "d" / "1" / "b.txt", "twp")  # one bit
    assert files.checksums(folder / "d", ["1/b.txt"]) != [before]
    assert files.text(folder / "c") == "\0" and files.text(folder / "nothing") is None
    assert files.is_folder(folder / "d") and not files.is_folder(folder / "a")
    assert files.modified(folder / "d" / "1" / "b.txt") >= files.modified(folder / "c") > 1.7e9
    assert files.read_json(folder / "nothing.json") == {}


def test_text_is_added_and_goes_on_after_a_restart(folder):
    files.replace(folder / "lines", "first\n")
    appender = files.Appender(folder / "lines")
    appender.write("second\n")
    assert files.in_store(folder) or (folder / "lines").read_text() == "first\nsecond\n"
    appender.flush()
    assert (folder / "lines").read_text() == "first\nsecond\n"
    appender.write("third\n")
    appender.close()
    again = files.Appender(folder / "lines")
    again.write("fourth\n")
    again.close()
    assert (folder / "lines").read_text() == "first\nsecond\nthird\nfourth\n"


def test_text_is_uploaded_before_long(store, monkeypatch):
    """What a killed run has said last must not be lost for more than half a minute."""
    now = [100.0]
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    path = files.user_path(f"{store}/slow/lines")
    appender = files.Appender(path)
    appender.write("a")
    assert not path.exists()
    now[0] += 31
    appender.write("b")
    assert path.read_text() == "ab"


def test_what_disks_alone_can_do_is_sent(folder):
    outbox = files.Outbox(folder)
    assert isinstance(outbox.folder, pathlib.Path)
    (outbox.folder / "sub").mkdir(parents=True)
    (outbox.folder / "sub" / "events").write_bytes(b"1")
    outbox.send()
    (outbox.folder / "sub" / "events").write_bytes(b"12")
    outbox.close()
    assert (folder / "sub" / "events").read_bytes() == b"12"


def test_a_local_copy_is_never_an_old_one(folder, tmp_path):
    files.replace(folder / "set" / "1.0" / "x", "old")
    copy = files.local_copy(folder / "set" / "1.0", folder)
    assert (copy / "x").read_text() == "old" and copy.parts[-2:] == ("set", "1.0")
    assert files.local_copy(folder / "set" / "1.0", folder) == copy
    files.replace(folder / "set" / "1.0" / "x", "new")
    assert (files.local_copy(folder / "set" / "1.0", folder) / "x").read_text() == "new"
    assert files.local_copy(folder / "set" / "1.0" / "x").read_text() == "new"
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_rows_are_the_same_from_a_store(folder, tmp_path):
    """Tokens cached there: each of two processes makes its own shards, all read all of them."""
    documents = [b"some text " * n for n in range(1, 30)]
    tok = tokenizer.from_bytes()
    with pytest.raises((UserError, FileNotFoundError)):  # the other's shards are not there yet
        cache.build(documents, tok, folder / "train", 1000, share=(1, 2))
    built = cache.build(documents, tok, folder / "train", 1000, share=(0, 2))
    rows = cache.PackedRows(built, tok, 64)
    alone = cache.PackedRows(cache.build(documents, tok, tmp_path / "alone", 1000), tok, 64)
    assert len(rows) == len(alone) > 20 and built.num_shards > 2
    for i in range(len(rows)):
        for name, array in rows[i].items():
            np.testing.assert_array_equal(array, alone[i][name])
    assert cache.build([], tok, folder / "train", 1000).totals == built.totals  # read, not made again


def test_questions_of_a_benchmark_from_a_store(store):
    files.replace(files.user_path(f"{store}/tasks/one.jsonl"), '{"q": "why?"}\n{"q": "how?"}\n')
    assert [row["q"] for _, row in sources.read(f"{store}/tasks/one.jsonl")] == ["why?", "how?"]


@pytest.mark.parametrize(
    ("path", "said"),
    [("s3://bucket/x", "or gs://BUCKET/NAME"), ("gs://", "or gs://BUCKET/NAME"), ("~nobody_has_this_name/x", "nobody")],
)
def test_paths_that_are_none(path, said):
    with pytest.raises(UserError, match=said):
        files.user_path(path)


def test_a_store_that_cannot_be_asked(store, monkeypatch):
    with pytest.raises(UserError, match=r"gs://no-such-bucket/x: \w+"):
        files.below(files.user_path("gs://no-such-bucket/x"))
    with pytest.raises(UserError, match="there is no gs://bucket/nothing"):
        files.local_copy(files.user_path(f"{store}/nothing"))
    with pytest.raises(UserError, match="only a local folder"):
        files.local_folder(f"{store}/x", "--out")
    monkeypatch.setattr(files.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'gpt4jax\[gs\]'"):
        files.user_path(f"{store}/x")


def test_what_stands_for_an_empty_folder_is_no_file(store, tmp_path, monkeypatch):
    """Consoles make such objects, whose names end in a slash."""
    monkeypatch.setenv("GPT4JAX_CACHE", str(tmp_path))
    fsspec.filesystem("gcs").pipe(f"{object_store.BUCKET}/made/", b"")
    made = files.user_path(f"{store}/made")
    assert not files.below(made) and not files.is_folder(made)
    workdirs.open_workdir(made, configuration.default())
    files.replace(made / "x", "1")
    assert (files.local_copy(made) / "x").read_text() == "1"


def test_a_list_comes_with_the_images_beside_it(store, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT4JAX_CACHE", str(tmp_path))
    files.replace(files.user_path(f"{store}/pictures/list.jsonl"), '{"image": "1.png"}')
    files.replace(files.user_path(f"{store}/pictures/1.png"), b"png")
    copy = files.local_copy(files.user_path(f"{store}/pictures/list.jsonl"), beside=True)
    assert (copy.parent / json.loads(copy.read_text())["image"]).read_bytes() == b"png"


class Forbidden:
    """A client that is not let in; what gcsfs makes of it has no number."""

    def __getattr__(self, name):
        def refuse(*args, **kwargs):
            raise OSError("Forbidden: no storage.objects.list access")

        return refuse


def test_a_store_that_gives_no_answer_is_neither_empty_nor_damaged(store, monkeypatch):
    """Or a run would begin again over what it had, and set sound checkpoints aside."""
    workdir = files.user_path(f"{store}/kept")
    step = workdir / "checkpoints" / "5"
    files.replace(step / "params" / "x", "1")
    files.replace(step / checkpoint.MANIFEST, json.dumps({"params/x": files.checksums(step, ["params/x"])[0]}))
    assert checkpoint.saved_steps(workdir) == []
    files.replace(step / "commit_success.txt", "")
    assert checkpoint.saved_steps(workdir) == [5] and checkpoint.damage(step) is None
    files.replace(step / "params" / "x", "2")
    assert checkpoint.damage(step) == "params/x does not match its checksum"
    monkeypatch.setattr(files, "_client", lambda path: Forbidden())
    monkeypatch.setattr(type(workdir), "read_text", lambda path: Forbidden().cat())
    for ask in (checkpoint.saved_steps, metrics.read, lambda workdir: checkpoint.damage(step)):
        with pytest.raises(UserError, match="Forbidden"):
            ask(workdir)


def test_a_failed_upload_of_what_was_said_is_tried_again(store, monkeypatch):
    now, path = [0.0], files.user_path(f"{store}/later/lines")
    monkeypatch.setattr(files.time, "monotonic", lambda: now[0])
    appender = files.Appender(path)
    with monkeypatch.context() as patch:
        patch.setattr(type(path), "write_bytes", lambda path, data: Forbidden().pipe())
        now[0] += 31
        appender.write("a")
        with pytest.raises(UserError, match="Forbidden"):
            appender.flush()
    assert not path.exists()
    now[0] += 31
    appender.write("b")
    assert path.read_text() == "ab"


# --- A run that keeps everything there.


def flags(home, workdir):
    return [
        "--config", TINY, "--workdir", workdir, f"--config.data.dataset=folder:{home}/corpus", "--config.mesh.fsdp=2",
        "--config.batch_size=8", f"--config.num_steps={STEPS}", "--config.eval.num_rows=16",
        "--config.checkpoint.checkpoint_every_steps=3",
    ]  # fmt: skip


def lines(workdir, key):
    return {line["step"]: line[key] for line in metrics.read(workdir) if key in line}


def start(tmp_path, *words):
    return subprocess.run(words, env=environment(tmp_path), cwd=ROOT, capture_output=True, text=True, timeout=300)


def test_two_processes_with_all_in_a_store_do_what_one_does_on_a_disk(store, tmp_path_factory):
    """Then the newest checkpoint is damaged, and one process goes on from the one before."""
    home = tmp_path_factory.mktemp("runs")
    write_corpus(home / "corpus")
    for path in files.below(home / "corpus"):
        files.replace(files.user_path(f"{store}/corpus/{path.name}"), path.read_bytes())
    workdir = files.user_path(f"{store}/run")
    cluster = ["--processes", 2, "--devices", 1, "--", *command("train", *flags(store, workdir))]
    cluster.append(f"--config.data.cache_dir={store}/cache")
    done = start(home / "one", *command("parallel.launch", *cluster))
    assert done.returncode == 0, done.stderr
    alone = subprocess.run(
        command("train", *flags(home, home / "alone")), env=environment(home / "two", devices=2), cwd=ROOT,
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    losses, theirs = lines(workdir, "train/loss"), lines(home / "alone", "train/loss")
    assert losses.keys() == theirs.keys() == set(range(1, STEPS + 1))
    assert max(abs(losses[step] - theirs[step]) for step in losses) < 1e-5
    ours, theirs = (json.loads((folder / "data.json").read_text()) for folder in (workdir, home / "alone"))
    assert {**ours, "dataset": ""} == {**theirs, "dataset": ""}
    assert "not one folder for all processes" not in done.stderr
    assert checkpoint.saved_steps(workdir) == checkpoint.saved_steps(home / "alone")
    assert any("events.out.tfevents" in path.name for path in files.below(workdir))
    assert any(path.name.endswith(".npy") for path in files.below(files.user_path(f"{store}/cache/tokens")))

    largest = max(files.below(workdir / "checkpoints" / str(STEPS)), key=lambda path: path.stat().length)
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    files.replace(largest, bytes(data))
    files.replace(workdir / "checkpoints" / "7" / "params" / "_METADATA", "{}")  # of a start that was killed
    again = start(home / "one", *command("train", *flags(store, workdir), "--config.mesh.fsdp=1"))
    assert again.returncode == 0, again.stderr
    assert re.search(rf"step {STEPS} is damaged .* moved to {workdir}/damaged/{STEPS}", again.stderr), again.stderr
    assert "resumed at step 6" in again.stderr and checkpoint.saved_steps(workdir) == [6, STEPS]
    assert not files.below(workdir / "checkpoints" / "7")
    after = lines(workdir, "train/loss")
    assert after.keys() == losses.keys() and max(abs(losses[step] - after[step]) for step in losses) < 1e-5
    account = goodput.account(goodput.read(workdir))
    assert account.starts == 2 and sum(account.seconds.values()) == pytest.approx(account.wall, rel=1e-2)
    loaded = job.load_model(argparse.Namespace(weights=None, workdir=workdir))
    assert loaded.tokenizer.vocab_size <= loaded.config.vocab_size
    assert os.environ["TENSORSTORE_GCS_HTTP_URL"].startswith("http://127.0.0.1")  # it was none of Google's
