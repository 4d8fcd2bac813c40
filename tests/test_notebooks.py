"""The notebooks run from top to bottom; only the number of steps is made smaller."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("name", ["quickstart"])
def test_notebook_runs(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GPT4JAX_CACHE", str(tmp_path))
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    notebook = nbformat.read(ROOT / "colab" / f"{name}.ipynb", as_version=4)
    steps = [cell for cell in notebook.cells if "num_steps = 300" in cell.source]
    assert len(steps) == 1
    steps[0].source = (
        steps[0]
        .source.replace("num_steps = 300", "num_steps = 10")
        .replace('"eval.log_every_steps=5"', '"eval.log_every_steps=5", "eval.batch_size=64", "model.num_layers=1"')
    )
    assert "eval.batch_size=64" in steps[0].source
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(ROOT / "colab")}}).execute()
    text = "".join(out.get("text", "") for cell in notebook.cells for out in cell.get("outputs", []))
    assert "held-out bits per byte:" in text and "--- 'import '" in text
    pictures = [out for cell in notebook.cells for out in cell.get("outputs", []) if "image/png" in out.get("data", {})]
    assert len(pictures) == 1
