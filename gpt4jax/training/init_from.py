"""Starting a run from weights, or from another run's parameters."""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

from gpt4jax import config as configuration
from gpt4jax import files, model, weights
from gpt4jax.data import foreign, tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.parameters import Params
from gpt4jax.training import checkpoint
from gpt4jax.weights import layout

# How a decoder is computed or trained, not which function of its parameters it is.
_COMPUTED = ("attention_lowering", "context_method", "layers", "remat", "loss_chunk_len", "dtype", "param_dtype")
_FREE = (*_COMPUTED, "memory_len", "dropout", "init_std")

_POSITIONS = (
    "rope_theta", "rope_scaling", "rope_factor", "rope_original_max_len", "rope_low_freq_factor",
    "rope_high_freq_factor", "rope_beta_fast", "rope_beta_slow", "rope_attention_factor",
)  # fmt: skip


class Start(NamedTuple):
    """Where a run's parameters come from: `place(shardings)` gives them, None stands for the seed or a checkpoint.

    `tokenizer` is that of the weights, where the run uses it.
    """

    place: Callable[[Any], Params] | None
    tokenizer: tokenizer.Tokenizer | None


def find(
    config: Any, model_config: model.Config, workdir: files.Path, cache_dir: files.Path, say: Callable[[str], None]
) -> Start:
    """What `init_from` and `data.tokenizer` ask for, checked; a run that has a checkpoint needs only what it kept.

    Raises:
        UserError: there is nothing of that name, or a decoder of another shape than the run's.
    """
    if checkpoint.saved_steps(workdir):
        return Start(None, foreign.read(workdir) if config.data.tokenizer == tokenizer.WEIGHTS else None)
    return named(config, model_config, cache_dir, say)


def named(config: Any, model_config: model.Config, cache_dir: files.Path, say: Callable[[str], None]) -> Start:
    """What `init_from` and `data.tokenizer` ask for, checked.

    Raises:
        UserError: as `find`.
    """
    own = config.data.tokenizer == tokenizer.WEIGHTS
    if not config.init_from:
        if own:
            raise UserError("data.tokenizer=weights needs --config.init_from, the weights whose tokenizer it is")
        return Start(None, None)
    place: Callable[[Any], Params]
    source = files.user_path(config.init_from)
    if files.is_folder(source / "checkpoints"):
        old = _config_of_run(source)
        check(config.init_from, model_config, _shape_of_run(old, source))
        tok = _as_foreign(tokenizer.of_run(old.data.tokenizer, source, cache_dir)) if own else None

        def place(shardings: Any) -> Params:
            return checkpoint.load_params(source, model_config, say, shardings)[1]
    elif {"model", "data"} <= files.read_json(source / "config.json").keys():
        raise UserError(f"init_from {source} is a run that holds no sound checkpoint: it has no checkpoints/")
    else:
        opened = weights.open_weights(config.init_from, cache_dir=files.on_disk(cache_dir), say=say)
        check(config.init_from, model_config, opened.config)
        tok = opened.tokenizer if own else None
        if own and tok is None:
            raise UserError(f"data.tokenizer=weights, but {opened.source} has no {foreign.FILE}")

        def place(shardings: Any) -> Params:
            return layout.place(model_config, opened.tensors, shardings)

    say(f"parameters from {config.init_from}")
    return Start(place, tok)


def _config_of_run(source: files.Path) -> Any:
    path = source / "config.json"
    if not path.is_file():
        raise UserError(f"init_from {source} has checkpoints/ but no config.json, so it is no whole run")
    return configuration.from_json(path)


def _shape_of_run(config: Any, source: files.Path) -> model.Config:
    try:
        return configuration.model_config(config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source / 'config.json'} describes no decoder: {error}") from error


def _as_foreign(tok: tokenizer.Tokenizer) -> tokenizer.Tokenizer:
    """A tokenizer as it will be when it is read from the run's workdir."""
    if tok.name == tokenizer.WEIGHTS:
        return tok
    return foreign.from_json(tok.json(), tok.roles, tok.stops, add_bos=None, template=None, where=tok.name)


def like(found: model.Config, ours: model.Config) -> model.Config:
    """A decoder of other weights, computed as ours is."""
    return dataclasses.replace(found, **{name: getattr(ours, name) for name in _COMPUTED})


def check(name: str, wanted: model.Config, found: model.Config) -> None:
    """Whether a run of shape `wanted` can start from parameters of shape `found`.

    Raises:
        UserError: a field that differs, or rows longer than those parameters know, with unchanged positions.
    """
    wrong = []
    longer = wanted.position == found.position == "rope" and wanted.max_seq_len > found.max_seq_len
    stretch = {one: 1.0 if one.rope_scaling == "none" else one.rope_factor for one in (wanted, found)}
    if longer and wanted.rope_theta <= found.rope_theta and stretch[wanted] <= stretch[found]:
        raise UserError(
            f"rows of {wanted.max_seq_len} tokens are longer than the {found.max_seq_len} of init_from {name}, and the "
            "rotary positions turn no slower: it has never seen such distances. Scale them "
            f"(--config.model.rope_scaling=yarn --config.model.rope_factor={wanted.max_seq_len / found.max_seq_len:g} "
            f"--config.model.rope_original_max_len={found.max_seq_len}) or raise --config.model.rope_theta"
        )
    for field in dataclasses.fields(model.Config):
        if longer and field.name in ("max_seq_len", *_POSITIONS):
            continue  # training goes on with longer rows
        ours, theirs = getattr(wanted, field.name), getattr(found, field.name)
        if field.name == "max_seq_len" and wanted.position != "learned" and ours <= theirs:
            continue  # without a table of positions rows may be shorter
        if field.name.startswith("base_") and wanted.parametrization == found.parametrization == "standard":
            continue
        if field.name not in _FREE and ours != theirs:
            wrong.append(f"model.{field.name} is {ours} and theirs {theirs} (--config.model.{field.name}={theirs})")
    if wrong:
        raise UserError(f"the weights of init_from {name} do not fit the config: " + "; ".join(wrong))
