"""Rotary fields of a config.json.

transformers 5 writes "rope_parameters", 4 wrote "rope_theta" and "rope_scaling": both are read and written.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.weights.fields import checked

_KINDS = {"default": "none", "linear": "linear", "llama3": "llama3", "yarn": "yarn"}
# Keys of ours by theirs, for each kind; what else stands there is an error.
_SHARED = {"factor": "rope_factor", "original_max_position_embeddings": "rope_original_max_len"}
_KEYS = {
    "none": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        **_SHARED, "low_freq_factor": "rope_low_freq_factor", "high_freq_factor": "rope_high_freq_factor",
    },
    "yarn": {
        **_SHARED, "beta_fast": "rope_beta_fast", "beta_slow": "rope_beta_slow",
        "attention_factor": "rope_attention_factor",
    },
}  # fmt: skip
_LENGTH = "original_max_position_embeddings"
_NUMBERS = {"rope_theta", "mscale", "mscale_all_dim"}.union(*_KEYS.values())
_HARMLESS = {"type", "rope_type", "rope_theta", "factor", "original_max_position_embeddings"}


def from_hf(hf: Mapping[str, Any], max_seq_len: int) -> dict[str, Any]:
    """Our rotary fields of a config.json.

    Raises:
        UserError: a scaling that we do not implement, or one that lacks a number.
    """
    parameters = _section(hf, "rope_parameters")
    stated = _section(hf, "rope_scaling") or parameters
    _check(hf, ("rope_theta", _LENGTH), "")
    theta = stated.get("rope_theta") or hf.get("rope_theta") or parameters.get("rope_theta")
    fields: dict[str, Any] = {"rope_theta": float(theta or 10_000.0)}
    theirs = stated.get("rope_type") or stated.get("type") or "default"
    if theirs not in tuple(_KINDS):
        raise UserError(
            f"config.json: the rotary scaling {theirs!r} is not implemented; implemented are {', '.join(_KINDS)}"
        )
    kind = _KINDS[theirs]
    if kind in ("llama3", "yarn"):  # what transformers falls back on
        original = hf.get("original_max_position_embeddings") or max_seq_len
        stated.setdefault("original_max_position_embeddings", original)
    if kind == "yarn":
        stated = _yarn(stated, max_seq_len)
    for key, value in stated.items():
        if key in _KEYS[kind] and value is not None:
            ours = _KEYS[kind][key]
            fields[ours] = value if key == _LENGTH else float(value)
        elif key not in _HARMLESS and value is not None and not (key == "partial_rotary_factor" and value == 1):
            raise UserError(f"config.json: the rotary scaling {theirs!r} has {key} {value!r}, which is not implemented")
    missing = _KEYS[kind].keys() & {"factor", "low_freq_factor", "high_freq_factor"} - stated.keys()
    if missing:
        raise UserError(f"config.json: the rotary scaling {theirs!r} has no {sorted(missing)[0]}")
    return fields | {"rope_scaling": kind}


def _section(hf: Mapping[str, Any], field: str) -> dict[str, Any]:
    """A copy of one of the two fields that hold the others, its numbers checked and its nulls left out."""
    stated = hf.get(field) or {}
    if not isinstance(stated, dict):
        raise UserError(f"config.json: {field} is {stated!r}, not an object")
    _check(stated, _NUMBERS, f"{field}.")
    return {key: value for key, value in stated.items() if value is not None}


def _check(stated: Mapping[str, Any], fields: Iterable[str], prefix: str) -> None:
    for field in fields:
        if stated.get(field) is not None:
            checked(stated[field], int if field == _LENGTH else float, f"config.json: {prefix}{field}")


def _yarn(stated: dict[str, Any], max_seq_len: int) -> dict[str, Any]:
    """YaRN's fields with its attention factor worked out, as transformers does."""
    stated = dict(stated)
    if stated.get("factor") is None:
        stated["factor"] = max_seq_len / stated["original_max_position_embeddings"]
    mscale, all_dim = stated.pop("mscale", None), stated.pop("mscale_all_dim", None)
    if stated.get("attention_factor") is None and mscale and all_dim:
        log = math.log(max(stated["factor"], 1))
        stated["attention_factor"] = (0.1 * mscale * log + 1) / (0.1 * all_dim * log + 1)
    if stated.pop("truncate", True) is False:
        raise UserError("config.json: the rotary scaling 'yarn' has truncate false, which is not implemented")
    return stated


def to_hf(config: model.Config) -> dict[str, Any]:
    """The rotary fields of a config.json, in both spellings."""
    theirs = next(key for key, value in _KINDS.items() if value == config.rope_scaling)
    scaling = {key: getattr(config, ours) for key, ours in _KEYS[config.rope_scaling].items()}
    if not scaling.get("attention_factor", 1):  # 0 is ours for "as in the paper", which is theirs when it is absent
        del scaling["attention_factor"]
    kind = {"rope_type": theirs}
    return {
        "rope_parameters": {**kind, "rope_theta": config.rope_theta, **scaling},
        "rope_theta": config.rope_theta,
        "rope_scaling": {**kind, **scaling} if scaling else None,
    }
