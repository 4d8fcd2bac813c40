"""The sample job: a text's continuation, and a chat over pipes as a person would have it at a terminal."""

import contextlib
import os
import shlex
import signal
import subprocess
import time

import pytest

from gpt4jax import config as configuration
from gpt4jax import sample
from gpt4jax.errors import UserError
from gpt4jax.training import optimizer
from gpt4jax.training.checkpoint import Checkpoints
from gpt4jax.training.state import new_state
from tests import runs
from tests.runs import ROOT, TINY, command, environment

TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with a run that has saved its initial state, and a chat template."""
    home = tmp_path_factory.mktemp("home")
    config = configuration.load(str(TINY), ["data.tokenizer=bytes", "model.max_seq_len=4096", "model.num_kv_heads=2"])
    model_config = configuration.model_config(config)
    tx = optimizer.adamw(config.optimizer, model_config, config.num_steps)
    with contextlib.closing(Checkpoints(home / "run", keep=2)) as checkpoints:
        checkpoints.save(new_state(model_config, tx, seed=0))
    (home / "run" / "config.json").write_text(configuration.to_json(config))
    (home / "template.jinja").write_text(TEMPLATE)
    return home


def flags(home, *more) -> list[str]:
    return ["--workdir", str(home / "run"), *map(str, more)]


def chat_flags(home, *more) -> list[str]:
    return flags(home, "--chat", "--chat_template", home / "template.jinja", *more)


def test_a_chat_answers_each_line_and_keeps_what_fits(home):
    done = subprocess.run(
        command("sample", *chat_flags(home, "--max_tokens", 5, "--temperature", 0, "--max_len", 70, "--system", "S")),
        input="hi\n\n" + "a much longer message than could ever be put into that little room, word by word\nhi\nhi\n",
        env=environment(home / "cache"), cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the last message take" in done.stderr and "say it shorter" in done.stderr
    assert "no longer fit the context of 70 tokens" in done.stderr
    assert "error" not in done.stdout and done.stdout.count("\n") >= 3


def test_no_two_answers_of_a_chat_have_the_same_draws(home):
    """The history is left out, so that each turn has the same prompt."""
    (home / "last.jinja").write_text("{{ messages[-1]['content'] }}")
    done = subprocess.run(
        command("sample", *flags(home, "--chat", "--chat_template", home / "last.jinja", "--max_tokens", 20)),
        input=b"hi\nhi\nhi\n\xff\n", env=environment(home / "cache") | {"PYTHONIOENCODING": "ascii:strict"}, cwd=ROOT,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr.decode()
    assert b"message 6 is no Unicode text" in done.stderr
    assert done.stdout.isascii() and len(set(done.stdout.split(b"\n"))) > 2


def test_without_standard_streams(home):
    for closed, job_flags, words in (
        (">&-", flags(home, "--prompt", "x"), "standard output is closed"),
        ("<&-", chat_flags(home), "a chat reads from standard input; it is closed"),
    ):
        line = f"{shlex.join(command('sample', *job_flags))} {closed}"
        done = subprocess.run(
            ["sh", "-c", line], env=environment(home / "cache"), cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and words in done.stderr, done.stderr


def test_ctrl_c_stops_the_answer_and_not_the_chat(home):
    with subprocess.Popen(
        command("sample", *chat_flags(home, "--max_tokens", 3000, "--top_k", 50)),
        env=environment(home / "cache"), cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    ) as chat:  # fmt: skip
        assert chat.stdin is not None and chat.stdout is not None
        chat.stdin.write(b"hi\n")
        chat.stdin.flush()
        first = chat.stdout.read(1)
        for _ in range(3):
            chat.send_signal(signal.SIGINT)
        chat.stdin.write(b"once more\n")
        chat.stdin.flush()
        time.sleep(1)
        chat.send_signal(signal.SIGINT)
        rest = chat.communicate(timeout=120)[0]
        assert chat.returncode == 0
    assert first and rest.count(b"\n") >= 2
    assert len((first + rest).decode(errors="replace")) < 3000  # of two answers of 3000 tokens, bytes here


def test_a_model_split_over_devices_says_the_same(home):
    def text(*more):
        done = runs.run("sample", *flags(home, "--prompt", "def ", "--temperature", 0, *more), cache=home, devices=2)
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert text() == text("--tensor", -1) != text("--seed", 1, "--temperature", 1)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--prompt", "x", "--temperature", 0, "--top_k", 5], "nothing for top_k to cut"),
        (["--prompt", "x", "--top_p", 1.5], "top_p is 1.5"),
        (["--prompt", "x", "--max_tokens", 100000], "exceed the model's max_seq_len 4096"),
        (["--prompt", "x", "--tensor", 9], "--tensor is 9; the devices here number 8"),
        (["--prompt", "x", "--tensor", 8], "run does not divide over the mesh: .*query_dnh: its heads axis of 2"),
        (["--chat"], "no chat template"),
        (["--chat", "--chat_template", "empty.jinja"], "the chat template .*empty.jinja is empty"),
        (["--chat", "--chat_template", "refuses.jinja"], "the chat template refuses this conversation: .user first"),
        (["--chat", "--chat_template", "nowhere.jinja"], "can't be read"),
        (["--chat", "--max_len", 64, "--max_tokens", 64], "no room for answers of 64"),
    ],
)
def test_contradictions_and_missing_templates_are_told(home, more, words, monkeypatch):
    monkeypatch.setitem(os.environ, "GPT4JAX_CACHE", str(home / "cache"))
    (home / "empty.jinja").touch()
    (home / "refuses.jinja").write_text("{{ raise_exception('user first') }}")
    if more[-1] in ("empty.jinja", "refuses.jinja"):
        more = [*more[:-1], home / more[-1]]
    if words.startswith("no room"):
        more = [*more, "--chat_template", home / "template.jinja"]
    with pytest.raises(UserError, match=words):
        sample.main(flags(home, *more))


@pytest.mark.parametrize("more", [["--prompt", "x", "--system", "s"], ["--prompt", "x", "--chat"], []])
def test_flags_that_exclude_each_other_exit_with_a_usage_line(home, more, capsys):
    with pytest.raises(SystemExit) as error:
        sample.main(flags(home, *more))
    assert error.value.code == 2 and "usage:" in capsys.readouterr().err
