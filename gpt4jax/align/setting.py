"""What every stage has found before it builds its program, and what it builds."""

import hashlib
import json
from collections.abc import Callable
from typing import Any, NamedTuple

from jax.sharding import Mesh

from gpt4jax import files, model
from gpt4jax.align import examples
from gpt4jax.align.form import Form
from gpt4jax.model.parameters import Params
from gpt4jax.training import run as runs


class Setting(NamedTuple):
    """What every stage has found before it builds its program."""

    config: Any  # of the stage (`align_config.stage`)
    model_config: model.Config
    form: Form
    mesh: Mesh
    job_workdir: files.Path  # in which each stage has a folder
    cache_dir: files.Path
    encoder: examples.Encoder
    base: Params  # what the stage starts from, on the mesh


class Built(NamedTuple):
    """A stage's program, the facts of its data, and what makes of its state the (decoder, head) that is exported."""

    program: runs.Program
    facts: dict[str, Any]
    exported: Callable[[Any], tuple[Params, Any]]


def facts(setting: Setting, name: str, fingerprint: str) -> dict[str, Any]:
    """What identifies the data of a stage, as `data.json` has it."""
    tok = setting.encoder.tokenizer
    return {
        "dataset": name, "fingerprint": fingerprint, "tokenizer": tok.name, "tokenizer_fingerprint": tok.fingerprint,
    }  # fmt: skip


def digest(rows: Any) -> str:
    """A short hash of rows, as JSON has them."""
    return hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()[:16]
