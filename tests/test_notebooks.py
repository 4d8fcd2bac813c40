"""The notebooks run from top to bottom; only what takes long is made smaller."""

import re
import shutil

import nbformat
import pytest
from nbclient import NotebookClient

from tests import runs

COLAB = runs.ROOT / "colab"


def execute(name: str, smaller: dict[str, str], monkeypatch) -> tuple[str, int]:
    """What a notebook prints and how many pictures it draws, with each text of `smaller`, found once, replaced."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "1")
    notebook = nbformat.read(COLAB / f"{name}.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    for old, new in smaller.items():
        cells = [cell for cell in notebook.cells if old in cell.source]
        assert len(cells) == 1 and cells[0].source.count(old) == 1, old
        cells[0].source = cells[0].source.replace(old, new)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(COLAB)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    text = "".join(output.text for output in outputs if output.get("name") == "stdout")
    return text, sum("image/png" in output.get("data", {}) for output in outputs)


def test_quickstart(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT4JAX_CACHE", str(tmp_path))
    logged = '"eval.log_every_steps=5"'
    smaller = {"num_steps = 300": "num_steps = 10", logged: f'{logged}, "eval.batch_size=64", "model.num_layers=1"'}
    text, pictures = execute("quickstart", smaller, monkeypatch)
    assert "held-out bits per byte:" in text and "--- 'import '" in text
    assert pictures == 1


def test_real_model(tmp_path, monkeypatch):
    # The cache is everyone's: weights of 98 MB are in it. Corpus and rows are small, the model is the real one.
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    corpus = runs.write_corpus(tmp_path / "corpus")
    smaller = {
        "max_tokens = 64": "max_tokens = 12",
        "max_tokens=12": "max_tokens=4",
        '"def fibonacci(n):"), 48': '"def fibonacci(n):"), 5',
        "40, temperature=0.9, top_p=0.95, seed=1": "6, temperature=0.9, top_p=0.95, seed=1",
        "40, temperature=0.9, top_p=0.95, seed=2": "3, temperature=0.9, top_p=0.95, seed=2",
        "24, temperature=0.7": "4, temperature=0.7",
        "prompt, 32": "prompt, 3",
        '"Water boils at"), 24': '"Water boils at"), 5',
        "optimizer.warmup_steps=2": "optimizer.warmup_steps=1",
        "num_rows, seq_len = 8, 256": "num_rows, seq_len = 2, 32",
        '"eval.sample_prompt="': f'"eval.sample_prompt=", "data.dataset=folder:{corpus}"',
        "num_steps = 10": "num_steps = 2",
    }
    try:
        text, pictures = execute("real_model", smaller, monkeypatch)
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)  # 2 GB
    assert "total  134,515,008" in text
    assert "<|im_start|>user\nWhat is photosynthesis?<|im_end|>" in text
    assert "assistant  Photosynthesis is" in text
    assert "The largest planet in the solar system is Jupiter" in text and pictures == 1
    assert "likeliest: Paris" in text
    assert "6 requests, alone and together: the same tokens and log probabilities, bit for bit" in text
    before, after = re.search(r"held-out loss: (\S+) before, (\S+) after 2 steps", text).groups()
    assert before != after and f"held-out loss before: {before}" in text
    again = re.search(r"loaded back: all parameters equal, bit for bit; held-out loss (\S+)", text)[1]
    assert float(again) == pytest.approx(float(after), abs=2e-4)  # the run's own has two rows in a batch


def test_predictable_scaling(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT4JAX_CACHE", str(tmp_path / "cache"))
    corpus = runs.write_corpus(tmp_path / "corpus")
    smaller = {
        '"configs" / "ladder_cpu.py"': '"tests" / "configs" / "tiny_ladder.py"',
        '"data.dataset=python_stdlib"': f'"data.dataset=folder:{corpus}"',
        '"eval.num_rows=512",': "",
        '"ladder.max_compute=9e11",': '"ladder.levels=4", "ladder.target_seeds=1",',
        '"ladder.target_compute=1.2e13",': "",
    }
    text, pictures = execute("predictable_scaling", smaller, monkeypatch)
    assert "forecast registered" in text and "error of the mean" in text and "L(C) = " in text
    assert "90% of runs between" in text and pictures == 2


def test_sparse_attention(monkeypatch):
    smaller = {"[1024, 2048, 4096, 8192]": "[64, 128]", '"banded:256", "strided:64", ': ""}
    text, pictures = execute("sparse_attention", smaller, monkeypatch)
    # 64 blocks a side, and of a stride of 128 none below the diagonal is empty
    assert "strided:128 at 32768 tokens: 2080 of 2080 causal blocks of 512 are not empty" in text
    assert "dense: pairs grow as length^2.00" in text and "strided:128: pairs grow as length^" in text
    assert pictures == 3


def test_vision(tmp_path, monkeypatch):
    monkeypatch.setenv("GPT4JAX_CACHE", str(tmp_path))
    fewer = (
        "num_steps=4", "data.dataset=rendered:300", "eval.num_rows=16", "optimizer.warmup_steps=1",
        "checkpoint.keep=2",
    )  # fmt: skip
    text, pictures = execute("vision", {'["eval.eval_every_steps=1000"]': repr([*fewer])}, monkeypatch)
    assert "chart_value     What is" in text and "read_text       0." in text and text.count("is read as") == 6
    assert pictures == 2


def test_exams(monkeypatch):
    text, pictures = execute("exams", {"ITEMS = 60": "ITEMS = 12"}, monkeypatch)
    assert "piqa: accuracy" in text and "161 of 161 cells agree" in text and pictures == 1
    assert [line.split()[-1] for line in text.splitlines() if line.startswith("return 2 * n")] == ["passed"]
    assert text.count("passed") == 1 and "by_overlap" in text and "spread, in capitals" in text


def test_alignment(monkeypatch):
    fewer = [
        "sft.num_steps=40", "sft.warmup_steps=4", "sft.data=world:5000", "reward.num_steps=20",
        "reward.data=world:2000", "reward.demonstrations=world:360", "reward.warmup_steps=4", "ppo.num_steps=4",
        "ppo.eval_every_steps=0", "ppo.batch_size=36", "ppo.warmup_steps=2",
    ]  # fmt: skip
    smaller = {"shorter = []": f"shorter = {fewer}", "PAIRS = 4": "PAIRS = 1", "prompt, 40": "prompt, 4"}
    text, pictures = execute("alignment", smaller, monkeypatch)
    assert len(re.findall(r"^demonstration [a-f]{2} -> ", text, re.M)) == 4
    assert text.count("Gold gained") == 2 and pictures == 2
    assert len(re.findall(r"^(?:sft|ppo): be -> ", text, re.M)) == 2
    before, after = map(float, re.search(r"order: (\d+)% by length, (\d+)% with rules", text).groups())
    assert before < 50 and after > 80
    assert len(re.findall(r"^(?:refuses|answers) ", text, re.M)) == 2
    assert "which are [Calculator(17+26) -> 43] now." in text
