"""A whole forecast through the public command line: ladder, registration, target, report; and what is refused."""

import json
import math
import os
import shutil
import subprocess
import time

import pytest

from gpt4jax.model.flops import flops_per_token
from gpt4jax.scaling import forecast, laws
from tests.runs import ROOT, command, environment, here, run, write_corpus

CONFIG = ROOT / "tests" / "configs" / "tiny_ladder.py"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A corpus, a cache, and how to run the job on them."""
    root = tmp_path_factory.mktemp("predict")
    corpus = write_corpus(root / "corpus")

    def predict(workdir, *flags, start=here):
        dataset = f"--config.data.dataset=folder:{corpus}"
        return start("predict", "--config", CONFIG, "--workdir", workdir, dataset, *flags, cache=root / "cache")

    predict.root = root
    return predict


@pytest.fixture(scope="module")
def registered(place):
    """A workdir whose ladder has run and whose forecast is registered, and what the job said."""
    workdir = place.root / "registered"
    done = place(workdir, "--until", "forecast", start=run)  # as users start it, and so is the target
    assert done.returncode == 0, done.stderr
    return workdir, done


@pytest.fixture(scope="module")
def finished(place, registered):
    """The same command without --until, in a copy."""
    workdir = place.root / "finished"
    shutil.copytree(registered[0], workdir)
    done = place(workdir, start=run)
    assert done.returncode == 0, done.stderr
    return workdir, done


def copy_of(registered, tmp_path):
    return shutil.copytree(registered[0], tmp_path / "copy")


def test_the_registered_forecast(registered):
    workdir, done = registered
    document = json.loads((workdir / "forecast.json").read_text())
    forecast.check_seal(document, "forecast.json")
    assert document["sha256"][:16] in done.stdout and "from 1/" in done.stdout
    assert "WARNING" not in done.stderr  # libraries' words, from the workers too
    ladder = document["ladder"]
    computes = {row["compute"] for row in ladder}
    assert len(computes) >= 4 and not (workdir / "target").exists()
    for row in ladder:  # each run did what the table says
        kept = json.loads((workdir / "runs" / row["name"] / "config.json").read_text())
        assert kept["num_steps"] * kept["batch_size"] * 32 == row["num_tokens"]
        lines = map(json.loads, (workdir / "runs" / row["name"] / "metrics.jsonl").read_text().splitlines())
        last = [line for line in lines if "eval/heldout/loss" in line][-1]
        assert last["eval/heldout/loss"] == row["loss"] and last["step"] == kept["num_steps"]
    first = document["forecasts"][0]
    used = [row for row in ladder if row["name"] in first["runs"]]
    law = laws.fit(
        [row["compute"] for row in used], [row["loss"] for row in used], irreducible=first["choice"] == "a C^b + c"
    )
    assert first["loss"] == pytest.approx(law.predict(document["target"]["compute"]), rel=1e-9)
    assert max(row["compute"] for row in used) <= document["target"]["compute"] / 10
    assert document["code"] == forecast.code_digest() and not document["forced"]
    assert (
        document["corpus"]["fingerprint"]
        == json.loads((workdir / "runs" / used[0]["name"] / "data.json").read_text())["fingerprint"]
    )


def test_the_report(finished):
    workdir, done = finished
    report = json.loads((workdir / "report.json").read_text())
    document = json.loads((workdir / "forecast.json").read_text())
    assert report["forecast_sha256"] == document["sha256"]
    observed = [row["loss"] for row in report["targets"]]
    assert len(observed) == 2 and observed[0] != observed[1]
    for row, registered in zip(report["forecasts"], document["forecasts"], strict=True):
        assert row["errors"] == pytest.approx([registered["loss"] / loss - 1 for loss in observed])
    from gpt4jax import config as configuration

    target = configuration.model_config(document["target"]["config"])
    assert document["target"]["compute"] == document["target"]["num_tokens"] * flops_per_token(target, 32)["train"]
    for name in ("figure1", "residuals", "supercollapse"):
        assert (workdir / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "error of the mean" in done.stdout and "seed standard deviations" in done.stdout
    units = forecast.Units(**document["units"])
    words = units.bits_per_word(sum(observed) / 2)
    assert f"{words:.3f} bits/word" in done.stdout and math.isfinite(words)


def test_again_trains_nothing(place, finished):
    workdir, _ = finished
    before = (workdir / "forecast.json").read_bytes(), (workdir / "report.json").read_bytes()
    done = place(workdir)
    assert done.returncode == 0 and "1/" in done.stdout and "nats/token" not in done.stderr
    assert before == ((workdir / "forecast.json").read_bytes(), (workdir / "report.json").read_bytes())


@pytest.mark.parametrize("trace", ["metrics", "checkpoint", "code"])
def test_no_registration_once_the_target_was_begun(place, finished, tmp_path, trace):
    """Whatever is left of it: metrics, a checkpoint without metrics, or only the code that began it."""
    workdir = copy_of(finished, tmp_path)
    (workdir / "forecast.json").unlink()
    (workdir / "target" / "forecast.sha256").unlink()
    for folder in [path for path in (workdir / "target").iterdir() if path.is_dir()]:
        if trace != "metrics":
            (folder / "metrics.jsonl").unlink()
        if trace == "code":
            shutil.rmtree(folder)
    done = place(workdir)
    assert done.returncode == 2 and "the target was begun: a forecast of it now would be none" in done.stderr
    assert not (workdir / "forecast.json").exists()


def test_a_target_that_came_to_no_loss_is_said_and_the_forecast_stands(place, finished, tmp_path):
    """First one of its seeds, which is left out by name; then all."""
    workdir = copy_of(finished, tmp_path)
    before = (workdir / "forecast.json").read_bytes()
    one, other = sorted(path for path in (workdir / "target").iterdir() if path.is_dir())
    (one / "failed.txt").write_text("diverged: not finite at step 3\n")
    done = place(workdir)
    assert done.returncode == 0 and f"{one.name} came to no loss: diverged: not finite at step 3" in done.stdout
    report = json.loads((workdir / "report.json").read_text())
    assert [len(row["errors"]) for row in report["forecasts"]] == [1] * len(report["forecasts"])
    (other / "failed.txt").write_text("diverged: not finite at step 4\n")
    done = place(workdir)
    assert done.returncode == 2 and "the target came to no loss; the forecast stands" in done.stderr
    assert (workdir / "forecast.json").read_bytes() == before


def test_every_run_is_asked_to_solve_code_tasks(place, tmp_path):
    """In the workers, before the job looks; runs of a few dozen steps solve none, which it says, and goes on."""
    flags = ["data.dataset=named_tasks:1", "data.seq_len=256", "model.max_seq_len=256", "eval.num_rows=8"]
    flags += ["ladder.levels=2", "ladder.ratios=(10.0,)", "ladder.target_seeds=1", "ladder.problems_per_level=1"]
    flags += ["ladder.sample_budget=4", "ladder.successes=1", "ladder.buckets=1"]
    flags += ["ladder.least_solved=1"]
    done = place(tmp_path / "work", *(f"--config.{flag}" for flag in flags))
    assert done.returncode == 0, done.stderr
    document, report = (json.loads((tmp_path / "work" / f"{name}.json").read_text()) for name in ("forecast", "report"))
    (capability,) = document["capability"]
    assert "no problem of 3 is solved 1 times in 2 samples by every model" in capability["no_forecast"]
    assert capability["no_forecast"] in done.stdout and report["capability"] == [[]]
    before = (tmp_path / "work" / "ladder.json").stat().st_mtime_ns  # written when the workers have ended
    assert all(path.stat().st_mtime_ns < before for path in (tmp_path / "work" / "runs").glob("*/solved.json"))
    for folder in [*(tmp_path / "work" / "runs").iterdir(), *(tmp_path / "work" / "target").iterdir()]:
        if folder.is_dir():
            outcomes = json.loads((folder / "solved.json").read_text())["outcomes"]
            assert [len(row) for row in outcomes] == [4] * 3, folder  # of named tasks, as the text
    assert (tmp_path / "work" / "figure2.png").is_file() and "pass rates forecast from" in done.stdout


def test_a_forecast_that_was_mended_after_the_target_is_refused(place, finished, tmp_path):
    """Its own seal fits again, but the target was begun with another."""
    workdir = copy_of(finished, tmp_path)
    report = (workdir / "report.json").read_bytes()
    document = json.loads((workdir / "forecast.json").read_text())
    document["forecasts"][0]["loss"] *= 0.99
    (workdir / "forecast.json").write_text(json.dumps(forecast.seal(document)))
    done = place(workdir)
    assert done.returncode == 2 and "the target was begun with another forecast" in done.stderr
    assert (workdir / "report.json").read_bytes() == report


def test_another_target_than_the_registered_one_is_refused(place, registered, tmp_path):
    workdir = copy_of(registered, tmp_path)
    document = json.loads((workdir / "forecast.json").read_text())
    document["target"]["config"]["optimizer"]["learning_rate"] *= 2
    (workdir / "forecast.json").write_text(json.dumps(forecast.seal(document)))
    done = place(workdir)
    assert done.returncode == 2 and "is not the one that was registered: optimizer.learning_rate" in done.stderr


def test_a_target_of_other_code_is_said_in_the_report(place, finished, tmp_path):
    workdir = copy_of(finished, tmp_path)
    code = next((workdir / "target").glob("*.code.txt"))
    code.write_text("0" * 64 + "\n")
    done = place(workdir)
    assert done.returncode == 0, done.stderr
    words = f"{code.name.partition('.')[0]} was trained with other code or versions"
    assert json.loads((workdir / "report.json").read_text())["forced"] == [words] and f"forced: {words}" in done.stdout


def test_a_run_of_another_config_has_no_place_in_the_ladder(place, registered, tmp_path):
    workdir = copy_of(registered, tmp_path)
    (workdir / "forecast.json").unlink()
    path = next((workdir / "runs").glob("*/config.json"))
    fields = json.loads(path.read_text())
    fields["optimizer"]["learning_rate"] *= 2
    path.write_text(json.dumps(fields))
    done = place(workdir, "--until", "forecast")
    assert done.returncode == 2 and "is a run of another config: optimizer.learning_rate" in done.stderr


def test_a_changed_forecast_is_seen(place, registered, tmp_path):
    workdir = copy_of(registered, tmp_path)
    document = json.loads((workdir / "forecast.json").read_text())
    document["forecasts"][0]["loss"] *= 0.99
    (workdir / "forecast.json").write_text(json.dumps(document))
    done = place(workdir)
    assert done.returncode == 2 and "is not what was registered" in done.stderr and not (workdir / "target").exists()


def test_other_code_or_data_is_refused_unless_forced(place, registered, tmp_path):
    workdir = copy_of(registered, tmp_path)
    (workdir / "forecast.json").unlink()
    code = next((workdir / "runs").glob("*.code.txt"))
    code.write_text("0" * 64 + "\n")
    data = max((workdir / "runs").glob("*/data.json"))
    data.write_text(json.dumps(json.loads(data.read_text()) | {"fingerprint": "1" * 64}))
    done = place(workdir, "--until", "forecast")
    words = [f"{code.name.partition('.')[0]} was trained with other code or versions"]
    words.append(f"{data.parent.name} was trained with another fingerprint of the data")
    assert done.returncode == 2 and all(line in done.stderr for line in words)
    done = place(workdir, "--until", "forecast", "--force")
    assert done.returncode == 0, done.stderr
    document = json.loads((workdir / "forecast.json").read_text())
    assert document["forced"] == words and "forced: " in done.stdout
    document |= {"code": "0" * 64}
    (workdir / "forecast.json").write_text(json.dumps(forecast.seal(document)))
    done = place(workdir)
    assert done.returncode == 2 and "the code that trains is another" in done.stderr
    assert place(workdir, "--force").returncode == 0
    assert place(workdir).returncode == 0  # nothing is left to train, and what was forced is still said
    forced = json.loads((workdir / "report.json").read_text())["forced"]
    assert forced[:2] == words and "since the registration the code that trains is another" in forced


def test_a_run_of_unknown_making_is_refused(place, registered, tmp_path):
    workdir = copy_of(registered, tmp_path)
    (workdir / "forecast.json").unlink()
    next((workdir / "runs").glob("*.code.txt")).unlink()
    max((workdir / "runs").glob("*/data.json")).unlink()
    done = place(workdir, "--until", "forecast")
    assert done.returncode == 2 and "does not say by what code it was trained" in done.stderr
    assert "does not say what data it was trained on" in done.stderr


def test_a_run_that_failed_is_left_out_by_name(place, registered, tmp_path):
    workdir = copy_of(registered, tmp_path)
    (workdir / "forecast.json").unlink()
    folder = next((workdir / "runs").glob("run-8x1-0"))
    (folder / "failed.txt").write_text("diverged: not finite at step 3\n")
    done = place(workdir, "--until", "forecast")
    assert done.returncode == 0 and "left out run-8x1-0: diverged: not finite at step 3" in done.stdout
    document = json.loads((workdir / "forecast.json").read_text())
    assert "run-8x1-0" not in document["forecasts"][0]["runs"]
    row = next(row for row in document["ladder"] if row["name"] == "run-8x1-0")
    assert row["loss"] is None and row["reason"].startswith("diverged")


def test_a_missing_run_is_trained_again_and_comes_out_the_same(place, registered, tmp_path):
    workdir = copy_of(registered, tmp_path)
    before = json.loads((workdir / "ladder.json").read_text())
    (workdir / "forecast.json").unlink()
    shutil.rmtree(workdir / "runs" / before[0]["name"])
    done = place(workdir, "--until", "ladder")
    assert done.returncode == 0 and f"1/1 {before[0]['name']}" in done.stderr, done.stderr
    assert json.loads((workdir / "ladder.json").read_text()) == before


def test_a_run_that_diverges_is_a_result(place, tmp_path):
    """A learning rate without bounds: every run fails, and the job says so of each and of the law."""
    done = place(tmp_path / "wild", "--config.optimizer.learning_rate=1e30", "--config.ladder.levels=2", "--until",
                 "forecast")  # fmt: skip
    assert done.returncode == 2 and "diverged: not finite" in done.stderr and "is left to fit a law on" in done.stderr


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_stopped_ladder_resumes_and_leaves_no_process(place, tmp_path):
    """SIGTERM to the job alone: its workers save and end, and the same command trains the rest."""
    flags = ["--config", CONFIG, "--workdir", tmp_path / "work", "--config.ladder.tokens_per_parameter=40.0",
             f"--config.data.dataset=folder:{place.root / 'corpus'}", "--config.eval.log_every_steps=1",
             "--config.ladder.max_compute=2e9", "--config.ladder.target_compute=1e12",
             "--config.ladder.levels=2"]  # fmt: skip
    job = subprocess.Popen(
        command("predict", *flags, "--until", "ladder"), env=environment(place.root / "cache"), cwd=ROOT,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    runs = tmp_path / "work" / "runs"
    until = time.monotonic() + 120
    while not any(path.stat().st_size > 2000 for path in runs.glob("*/metrics.jsonl")):
        assert time.monotonic() < until and job.poll() is None
        time.sleep(0.05)
    job.terminate()
    _, words = job.communicate(timeout=60)
    assert job.returncode == 143 and "Traceback" not in words, words
    until = time.monotonic() + 20
    while _alive(job.pid):  # multiprocessing's own helper ends a moment later
        assert time.monotonic() < until, "a process is left"
        time.sleep(0.1)
    assert not (tmp_path / "work" / "ladder.json").exists()
    done = run("predict", *flags, "--until", "ladder", cache=place.root / "cache")
    assert done.returncode == 0, done.stderr
    assert all(row["loss"] for row in json.loads((tmp_path / "work" / "ladder.json").read_text()))
    assert any("resumed at step" in path.read_text() for path in runs.glob("*.log.txt"))


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--config.ladder.levels=1"], "one compute level"),
        (["--config.ladder.max_compute=4e9"], "more than 1/10 of the target's"),
        (["--config.ladder.seed=3"], "no key 'ladder.seed'; did you mean --config.ladder.seeds?"),
        (["--config.model.num_layers=0"], "num_layers"),
        (["--config.ladder.target_compute=0"], "target_compute is 0"),
        (['--config.model.attention=("dense", "banded:8")'], "does not divide num_layers"),
        (["--config.ladder.problems_per_level=100000"], "problems_per_level is 100000: level 1 gave"),
        (["--config.ladder.successes=0"], "ladder.successes is 0"),
        (["--config.ladder.successes=1"], "least_solved is 2, and samples end with 1 successes"),
    ],
)
def test_bad_configs(place, flags, words, tmp_path):
    done = place(tmp_path / "new", *flags)
    assert done.returncode == 2 and words in done.stderr
    assert not (tmp_path / "new").exists()


def test_another_config_or_another_jobs_folder(place, registered, tmp_path):
    done = place(registered[0], "--config.ladder.seeds=3")
    assert done.returncode == 2 and "ladder.seeds: 1 -> 3" in done.stderr
    (tmp_path / "x").write_text("something")
    done = place(tmp_path / "x")
    assert done.returncode == 2 and "is a file" in done.stderr
    done = place("gs://bucket/x")
    assert done.returncode == 2 and "no object store" in done.stderr
    done = place(tmp_path)
    assert done.returncode == 2 and "no forecast of gpt4jax" in done.stderr
