"""The evaluate job as a user runs it: results, a kill in the middle, a page, and errors in words."""

import contextlib
import json
import signal
import subprocess
import time

import pytest

from gpt4jax import config as configuration
from gpt4jax import evaluate
from gpt4jax.errors import UserError
from gpt4jax.evals import report
from gpt4jax.training import optimizer
from gpt4jax.training.checkpoint import Checkpoints
from gpt4jax.training.state import new_state
from tests import runs
from tests.runs import ROOT, TINY, command, environment


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A run that has saved its initial state, and questions of three kinds."""
    home = tmp_path_factory.mktemp("home")
    config = configuration.load(str(TINY), ["data.tokenizer=bytes", "model.max_seq_len=512"])
    model_config = configuration.model_config(config)
    tx = optimizer.adamw(config.optimizer, model_config, config.num_steps)
    with contextlib.closing(Checkpoints(home / "run", keep=2)) as checkpoints:
        checkpoints.save(new_state(model_config, tx, seed=0))
    (home / "run" / "config.json").write_text(configuration.to_json(config))
    piqa = [{"goal": f"Goal {i}", "sol1": "a" * (1 + i % 5), "sol2": "b c", "label": i % 2} for i in range(24)]
    rows = {
        "piqa": [*piqa, {"goal": "no solutions"}, {**piqa[0], "goal": "x" * 600}],
        "medqa": [
            {"question": f"Q{i}", "choices": {"text": list("wxyz"), "label": list("ABCD")}, "answerKey": "ABCD"[i % 4]}
            for i in range(40)
        ],
        "gsm8k": [{"question": f"{i} + 1?", "answer": f"#### {i + 1}"} for i in range(6)],
    }
    for name, lines in rows.items():
        (home / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    registry = home / "registry"
    for name, text in {
        "evals/echo.yaml": "echo:\n  class: evals.elsuite.basic.includes:Includes\n"
        "  args: {samples_jsonl: echo.jsonl, max_tokens: 4}\n",
        "data/echo.jsonl": json.dumps({"input": "say hi", "ideal": "hi"}) + "\n",
    }.items():
        (registry / name).parent.mkdir(parents=True)
        (registry / name).write_text(text)
    return home


def flags(home, out, *more):
    data = [flag for name in ("piqa", "medqa", "gsm8k") for flag in ("--data", f"{name}={home / f'{name}.jsonl'}")]
    return ["--workdir", home / "run", "--tasks", "piqa,medqa,gsm8k,oai:echo", *data, "--registry_path",
            home / "registry", "--shots", "0", "--max_len", "384", "--out", out, *more]  # fmt: skip


@pytest.fixture(scope="module")
def done(home):
    found = runs.run("evaluate", *flags(home, home / "out"), cache=home / "cache")
    assert found.returncode == 0, found.stderr
    return found


def test_results_items_log_and_page(home, done):
    results = json.loads((home / "out" / "results.json").read_text())
    piqa = results["tasks"]["piqa"]
    assert piqa["items"] == 25 and piqa["scored"] == 24 and piqa["unscored"]["count"] == 1 == piqa["malformed"]["count"]
    assert "do not fit the context window of 512" in piqa["unscored"]["first"][0]["reason"]
    items = [json.loads(line) for line in (home / "out" / "items-piqa.jsonl").read_text().splitlines()]
    right = [item["metrics"]["accuracy"] for item in items if "metrics" in item]
    assert piqa["metrics"]["accuracy"]["mean"] == pytest.approx(sum(right) / 24)
    assert results["tasks"]["gsm8k"]["unparsed"] == 1.0 and results["tasks"]["medqa"]["calibration"]["pairs"] == 160
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == ["piqa", "medqa", "gsm8k", "echo"]
    assert "1 unscored, 1 malformed" in done.stdout and "100.0% unparsed" in done.stdout
    (log,) = (home / "out" / "evallogs").iterdir()
    assert json.loads(log.read_text().splitlines()[-1])["final_report"]["accuracy"] in (0.0, 1.0)
    page = (home / "out" / "report.html").read_text()
    assert page.count("<h2>") == 4 and page.count("<img") >= 1 and "GPT-4" in page and "does not publish" in page


def test_killed_it_goes_on_and_ends_with_the_same_bytes(home, done):
    out = home / "killed"
    process = subprocess.Popen(
        command("evaluate", *flags(home, out)), env=environment(home / "cache"), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not (out / "answers.jsonl").is_file() or len((out / "answers.jsonl").read_bytes().splitlines()) < 12:
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert runs.run("evaluate", *flags(home, out, "--batch_size", "3"), cache=home / "cache").returncode == 0
    for name in ("items-piqa.jsonl", "items-medqa.jsonl", "items-gsm8k.jsonl"):
        assert (out / name).read_bytes() == (home / "out" / name).read_bytes()
    again, once = (json.loads((folder / "results.json").read_text()) for folder in (out, home / "out"))
    assert (
        0
        < sum(task["asked"] for task in again["tasks"].values())
        < sum(task["asked"] for task in once["tasks"].values())
    )


def test_on_eight_devices_the_choices_are_the_same(home, done):
    out = home / "eight"
    found = runs.run("evaluate", *flags(home, out, "--devices", "-1"), cache=home / "cache", devices=8)
    assert found.returncode == 0, found.stderr
    for name in ("piqa", "medqa", "gsm8k"):
        ours, theirs = (
            [json.loads(line) for line in (folder / f"items-{name}.jsonl").read_text().splitlines()]
            for folder in (out, home / "out")
        )
        assert [item.get("answer") for item in ours] == [item.get("answer") for item in theirs]
        for one, other in zip(ours, theirs, strict=True):
            if "logprobs" in one.get("detail", {}):
                assert one["detail"]["logprobs"] == pytest.approx(other["detail"]["logprobs"], abs=1e-5)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "mmmu"], "no tasks mmmu"),
        (["--tasks", "piqa", "--data", "piqa"], "must be NAME=PLACE"),
        (["--tasks", "piqa", "--batch_size", "17"], "from 1 to 16"),
        (["--tasks", "piqa", "--limit", "0"], "--limit is 0"),
        (["--tasks", "piqa", "--max_len", "513"], "this model's window has 512 tokens"),
        (["--tasks", "piqa", "--weights", "no/such"], "no/such"),
    ],
)
def test_what_can_not_be_is_said_and_nothing_written(home, more, message):
    where = [] if "--weights" in more else ["--workdir", str(home / "run")]
    with pytest.raises((UserError, SystemExit), match=message):
        evaluate.main([*where, "--out", str(home / "never"), *more])
    assert not (home / "never").exists()


def test_other_tasks_are_added_to_a_folder(home, done):
    before = json.loads((home / "out" / "results.json").read_text())["tasks"]
    assert before["piqa"]["shots"] == {"fewest": 0, "most": 0} and before["piqa"]["limit"] is None
    own = ["--tasks", "medqa", "--data", f"medqa={home / 'medqa.jsonl'}", "--shots", "2", "--max_len", "384"]
    assert evaluate.main(["--workdir", str(home / "run"), *own, "--limit", "8", "--out", str(home / "out")]) == 0
    after = json.loads((home / "out" / "results.json").read_text())["tasks"]
    assert after.keys() == before.keys() and after["piqa"] == before["piqa"]
    assert after["medqa"]["shots"] == {"fewest": 2, "most": 2} and after["medqa"]["limit"] == 8
    assert "2 shots" in (home / "out" / "report.html").read_text()


def test_more_shots_than_there_are_is_refused(home, done, capsys):
    own = ["--workdir", str(home / "run"), "--data", f"gsm8k={home / 'gsm8k.jsonl'}", "--max_len", "384"]
    with pytest.raises(UserError, match="gsm8k has at most 8 solved examples, and --shots wants 99"):
        evaluate.main([*own, "--tasks", "gsm8k", "--shots", "99", "--out", str(home / "many")])
    assert not (home / "many").exists()


def test_another_model_does_not_take_these_answers(home, done):
    with pytest.raises(UserError, match="another run's answers .seed differ.: use another --out"):
        evaluate.main([*map(str, flags(home, home / "out", "--seed", "1"))])


def test_tasks_are_listed(capsys):
    assert evaluate.main(["--weights", "x", "--tasks", "list"]) == 0
    listed = capsys.readouterr().out.split()
    assert {"mmlu", "humaneval", "exams", "drop", "gsm8k", "bbq", "hindsight_neglect"} <= set(listed)


def test_a_page_escapes_what_models_and_data_say(home, done):
    results = json.loads((home / "out" / "results.json").read_text())
    results["name"] = "<script>alert(1)</script>"
    results["tasks"]["piqa"]["malformed"]["first"][0]["reason"] = "<b>"
    page = report.of(results)
    assert "<script" not in page and "<b>" not in page
