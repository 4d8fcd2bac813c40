"""The configuration of a run: every key with its default and meaning, and how overrides are read.

A file in `configs/` starts from `default()` and sets what its run does differently; the config is
locked, so a misspelt key is an error. `--config.GROUP.KEY=VALUE` overrides one value.
"""

import ast
import dataclasses
import difflib
import importlib.util
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import ml_collections

from gpt4jax import files
from gpt4jax.errors import UserError


def default() -> ml_collections.ConfigDict:
    """Every key there is. The defaults are GPT-2's shape at a width for tests; the rest suits most runs."""
    c = ml_collections.ConfigDict()
    c.seed = 0  # of initial parameters, row order and dropout
    c.num_steps = 1000  # optimizer steps of the whole run
    c.init_from = ""  # parameters to start from: weights (as --weights takes them) or another run's workdir
    c.batch_size = 8  # rows of one optimizer step, over all devices and micro-batches

    c.model = m = ml_collections.ConfigDict()
    m.vocab_size = 4096  # at least the tokenizer's
    m.num_layers = 4  # decoder blocks
    m.embed_dim = 64  # width of the residual stream
    m.num_heads = 4  # query heads
    m.num_kv_heads = 4  # key and value heads; fewer than num_heads: grouped-query attention
    m.head_dim = 16  # width of one head
    m.mlp_dim = 256  # hidden width of the MLP
    m.max_seq_len = 256  # longest row, and the size of a learned position table
    m.norm = "layernorm"  # or "rmsnorm"
    m.norm_eps = 1e-5  # added to the variance
    m.position = "learned"  # or "rope": rotary; or "transformer_xl": relative, with a memory of earlier tokens
    m.rope_theta = 10_000.0  # base of the rotary frequencies
    m.rope_scaling = "none"  # of frequencies, for rows longer than trained on: "linear", "llama3", "yarn"
    m.rope_factor = 1.0  # how many times longer
    m.rope_original_max_len = 0  # tokens in a row before scaling (llama3, yarn)
    m.rope_low_freq_factor = 1.0  # llama3: below this many turns in rope_original_max_len, divided by the factor
    m.rope_high_freq_factor = 4.0  # llama3: above this many, left as they are
    m.rope_beta_fast = 32.0  # yarn: above this many turns, left as they are
    m.rope_beta_slow = 1.0  # yarn: below this many, divided by the factor
    m.rope_attention_factor = 0.0  # yarn: cosine and sine times this; 0: the paper's 0.1 ln(rope_factor) + 1
    m.memory_len = 0  # transformer_xl: tokens before a row whose hidden states it sees; needs data.layout=stream
    m.xl_clamp_len = 0  # transformer_xl: longer distances count as this one; 0: as they are
    m.xl_untie_biases = False  # transformer_xl: the two biases of queries are each layer's own, not one for all
    m.activation = "gelu"  # or "swiglu"
    m.use_bias = True  # biases of the linear layers
    m.tie_embeddings = True  # one matrix for token embedding and output
    m.qk_norm = False  # RMSNorm on each head's queries and keys
    m.attention = ("dense",)  # cycle of patterns over the layers: gpt4jax/model/patterns.py, "banded:256" for one
    m.attention_lowering = "auto"  # by backend; or "blockwise", "tpu", "gpu", "cudnn", "reference"
    m.context_method = "gather"  # over mesh.context: of all keys before, or "ring": keys go round (model/context.py)
    m.attention_soft_cap = 0.0  # attention scores are bounded to +- this; 0: unbounded
    m.logit_soft_cap = 0.0  # output logits are bounded to +- this; 0: unbounded
    m.dropout = 0.0  # on the embedding and on what each sub-layer adds to the residual stream
    m.init_std = 0.02  # of normal initializers; residual outputs: divided by sqrt(2 num_layers)
    m.parametrization = "standard"  # or "mup": one learning rate for all widths and depths (gpt4jax/model/mup.py)
    m.base_embed_dim = 256  # mup: the shape at which it is the standard parametrisation
    m.base_num_layers = 4  # ... its depth
    m.base_head_dim = 64  # ... and its heads
    m.layers = "scan"  # compile one cycle of layers and loop; "unroll": faster steps, slower compilation
    m.remat = "none"  # recompute in the backward pass: "dots" all but plain matrix products, "full" everything
    m.loss_chunk_len = 0  # positions of each row whose logits exist at once; 0: all
    m.dtype = "float32"  # of activations and matrix products
    m.param_dtype = "float32"  # of stored parameters and optimizer moments

    c.vision = v = ml_collections.ConfigDict()
    v.frontend = "none"  # of images: "linear" patches, a "vit", or a ViT with a perceiver "resampler"
    v.image_token = 0  # the id that stands for a patch in the text: the tokenizer's size + 1
    v.patch_size = 16  # pixels a side
    v.max_patches = 256  # of an image; a larger one is made smaller
    v.num_layers = 12  # of the ViT
    v.embed_dim = 768  # its width
    v.num_heads = 12  # its heads, and the resampler's
    v.mlp_dim = 3072  # hidden width of its MLP
    v.activation = "gelu"  # or "quick_gelu", as CLIP has it
    v.class_token = False  # a token for the whole image, as CLIP has it
    v.resampler_layers = 2  # of the resampler
    v.resampler_len = 64  # tokens that it makes of an image
    v.patch_norm = True  # patches are normalised before and after their projection; False: as CLIP has it
    v.frozen = False  # the ViT stays as it is
    v.clip_dim = 0  # contrastive training (CLIP) in so many dimensions, the decoder being the text's tower; 0: none

    c.data = d = ml_collections.ConfigDict()
    # With images (gpt4jax/data/multimodal.py): "rendered:COUNT", "emoji:VENDOR", "captioned:FOLDER",
    # "interleaved:FILE.jsonl", and any of these and of the others with "+" between them; else
    # "python_stdlib", "python_packages", "grammar:MEGABYTES", "code_tasks:MEGABYTES", "named_tasks:MEGABYTES",
    # "folder:PATH", "jsonl:PATH", or
    d.dataset = "python_stdlib"  # the name of a TFDS set that is prepared as ArrayRecord
    d.tokenizer = "bpe:4096"  # or "bytes", "characters:abc", "gpt2", "cl100k_base", "weights": that of init_from
    d.seq_len = 256  # tokens in a row
    d.row_patches = 0  # with images: patches in a row; 0: as many as tokens
    d.row_images = 0  # ... and images in a row; 0: one for every 32 tokens
    # "packed": each row holds whole documents or pieces, rows shuffled; "stream": documents shuffled, and row r of
    d.layout = "packed"  # a step goes on where row r of the step before ended
    d.train_split = "train"  # split names of a TFDS set
    d.eval_split = "eval"  # held out
    d.text_feature = "text"  # which feature of a TFDS set, or key of a JSONL object, is the text
    d.image_feature = ""  # with images: which feature of a TFDS set is the image
    d.shard_bytes = 2**25  # text in a logical shard of the token cache; a longer document is split
    d.cache_dir = ""  # prepared data sets, tokenizers and token caches; "": $GPT4JAX_CACHE or ~/.cache/gpt4jax
    d.prefetch = 4  # batches read ahead

    c.optimizer = o = ml_collections.ConfigDict()
    o.learning_rate = 1e-3  # the schedule's peak
    o.schedule = "warmup_cosine"  # or "warmup_stable_decay"
    o.warmup_steps = 100  # linear, from 0
    o.decay_steps = 0  # length of the linear decay of warmup_stable_decay
    o.final_fraction = 0.1  # last learning rate over the peak
    o.beta1 = 0.9  # decay of the first moment
    o.beta2 = 0.95  # decay of the second moment
    o.eps = 1e-8  # added to the root of the second moment
    o.weight_decay = 0.1  # on matrices and embeddings, not on norms and biases
    o.grad_clip_norm = 1.0  # on the global norm; 0: no clipping
    o.z_loss = 0.0  # weight of log(Z)^2, which keeps the softmax's normaliser near 1
    o.micro_batches = 1  # parts of a batch that are computed one after another

    c.mesh = s = ml_collections.ConfigDict()
    s.data = -1  # copies of the parameters; -1: all devices that the others leave
    s.fsdp = 1  # shards of parameters and batch
    s.tensor = 1  # shards of heads, MLP and vocabulary
    s.context = 1  # shards of each row's tokens, and of the parameters too
    s.slices = 0  # TPU slices that `data` lies over; 0: as many as there are
    s.join_seconds = 300.0  # that processes wait for each other at the start
    s.heartbeat_seconds = 30.0  # without a sign of life from a process, after which all end
    s.stall_seconds = 1800.0  # without a step, or a batch of an evaluation, after which a process ends; 0: it waits
    s.verify_every_steps = 0  # compares copies between devices (before each save, too) and a step with itself; 0: never

    c.checkpoint = k = ml_collections.ConfigDict()
    k.checkpoint_every_steps = 500  # the last step is always saved; 0: only the last
    k.keep = 2  # newest checkpoints to keep

    c.eval = e = ml_collections.ConfigDict()
    e.eval_every_steps = 500  # pass over the held-out set; the last step is always evaluated; 0: only the last
    e.batch_size = 0  # rows; 0: as in training
    e.num_rows = 0  # only so many held-out rows, evenly spaced; 0: all
    e.memory_len = 0  # tokens of memory (transformer_xl); 0: as many as in training, -1: none
    e.log_every_steps = 10  # lines of metrics.jsonl
    e.prompts = ("{}",)  # of contrastive training: texts around a name, whose vectors are averaged
    e.sample_prompt = "def "  # continued at the end of the run; "": no sample
    e.sample_tokens = 64  # of that continuation, at least 1
    return c.lock()


Start = Callable[[], ml_collections.ConfigDict]


def load(path: str, overrides: Iterable[str] = (), start: Start | None = None) -> ml_collections.ConfigDict:
    """The config of a file's `get_config()` with `KEY=VALUE` overrides (dotted keys), locked.

    `start` gives the keys that it must have: `default`, or that of a job which has more.

    Raises:
        UserError: a file without get_config(), a key that does not exist, a value of another type.
    """
    file = pathlib.Path(path)
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if not file.is_file() or spec is None or spec.loader is None:
        near = difflib.get_close_matches(file.name, [p.name for p in file.parent.glob("*.py")], n=1)
        raise UserError(
            f"there is no config file {path}" + (f"; did you mean {file.parent / near[0]}?" if near else "")
        )
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except Exception as error:  # a config is the user's own code: whatever it raises is theirs to mend
        words = error.args[0] if error.args else type(error).__name__
        raise UserError(f"{path}: {words}") from error
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(f"{path}: get_config() gives a {type(config).__name__}, not a ConfigDict")
    config = config.copy_and_resolve_references()
    start = start or default
    missing = set(_keys(start())) - set(_keys(config))
    if missing:
        raise UserError(f"{path} lacks {sorted(missing)[0]}; start it from {start.__module__}.default()")
    config.lock()
    for override in overrides:
        _override(config, override)
    return config


def _keys(config: ml_collections.ConfigDict, prefix: str = "") -> list[str]:
    keys: list[str] = []
    for name, value in config.items():
        inner = isinstance(value, ml_collections.ConfigDict)
        keys += _keys(value, f"{prefix}{name}.") if inner else [prefix + name]
    return keys


def _override(config: ml_collections.ConfigDict, override: str) -> None:
    key, equals, text = override.partition("=")
    keys = _keys(config)
    if key not in keys:
        last = {k: k.rpartition(".")[2] for k in keys}
        near = difflib.get_close_matches(key, keys, n=1) or [k for k in keys if last[k] == key.rpartition(".")[2]]
        hint = f"; did you mean --config.{near[0]}?" if near else ""
        raise UserError(f"the config has no key {key!r}{hint}")
    if not equals:
        raise UserError(f"--config.{key} needs a value: --config.{key}=VALUE")
    group, name = config, key
    while "." in name:
        head, _, name = name.partition(".")
        group = group[head]
    group[name] = _value(key, text, group[name])


def _value(key: str, text: str, old: Any) -> Any:
    """`text` read as a value of the type of `old`."""
    if isinstance(old, str):
        return text
    try:
        value = {"true": True, "false": False}[text.lower()] if isinstance(old, bool) else ast.literal_eval(text)
    except (KeyError, ValueError, SyntaxError):
        value = (text,) if isinstance(old, tuple) and text else None
    if isinstance(old, float) and type(value) is int:
        value = float(value)
    if isinstance(old, tuple) and isinstance(value, list | str):
        value = (value,) if isinstance(value, str) else tuple(value)
    if type(value) is not type(old):
        raise UserError(f"--config.{key}={text}: it must be of type {type(old).__name__}, such as {old!r}")
    return value


_AT_LEAST = {
    "seed": 0, "num_steps": 1, "batch_size": 1, "data.seq_len": 1, "data.shard_bytes": 4, "data.prefetch": 0,
    "data.row_patches": 0, "data.row_images": 0, "mesh.slices": 0, "mesh.join_seconds": 1, "mesh.heartbeat_seconds": 1,
    "mesh.stall_seconds": 0, "mesh.verify_every_steps": 0,
    "optimizer.micro_batches": 1, "optimizer.warmup_steps": 0, "checkpoint.checkpoint_every_steps": 0,
    "checkpoint.keep": 2, "eval.eval_every_steps": 0, "eval.batch_size": 0, "eval.num_rows": 0,
    "eval.memory_len": -1,
    "eval.log_every_steps": 0, "eval.sample_tokens": 1, "optimizer.learning_rate": 0, "optimizer.final_fraction": 0,
    "optimizer.eps": 0,
    "optimizer.weight_decay": 0, "optimizer.grad_clip_norm": 0, "optimizer.z_loss": 0, "optimizer.beta1": 0,
    "optimizer.beta2": 0, "optimizer.decay_steps": 0, "model.attention_soft_cap": 0, "model.logit_soft_cap": 0,
    "model.init_std": 0,
}  # fmt: skip
_BELOW = {"optimizer.beta1": 1, "optimizer.beta2": 1, "seed": 2**32}


def check_values(config: Mapping[str, Any]) -> None:
    """Checks the numbers that no other part of the package does.

    Raises:
        UserError: one that is too small, a memory where rows do not go on, or float64 without jax's x64 mode, where
            jax would take float32.
    """
    import jax

    values = flat(config)
    for key, least in _AT_LEAST.items():
        if not values[key] >= least:
            raise UserError(f"{key} is {values[key]}; it must be at least {least}")
    for key, bound in _BELOW.items():
        if not values[key] < bound:
            raise UserError(f"{key} is {values[key]}; it must be below {bound}")
    _check_layout(values)
    for key in ("model.dtype", "model.param_dtype"):
        if values[key] == "float64" and jax.dtypes.canonicalize_dtype("float64") != "float64":
            raise UserError(f"{key} is float64, which jax has only with the environment variable JAX_ENABLE_X64=1")


def _check_layout(values: Mapping[str, Any]) -> None:
    layout, position = values["data.layout"], values["model.position"]
    if layout not in ("packed", "stream"):
        raise UserError(f"data.layout is {layout!r}; it must be 'packed' or 'stream'")
    if layout == "packed" and (values["model.memory_len"] or values["eval.memory_len"]):
        raise UserError(
            "a memory (model.memory_len, eval.memory_len) goes on from row to row: it needs data.layout=stream"
        )
    if values["eval.memory_len"] and position != "transformer_xl":
        raise UserError(
            f"eval.memory_len {values['eval.memory_len']} needs model.position=transformer_xl, not {position}"
        )
    if layout == "stream" and values["eval.num_rows"]:
        raise UserError("eval.num_rows takes rows here and there, which a stream has not: it needs data.layout=packed")


def check_packed(config: Mapping[str, Any], job: str) -> None:
    """Checks that rows are packed, for a job that reads them one by one.

    Raises:
        UserError: they are streams.
    """
    if config["data"]["layout"] != "packed":
        raise UserError(f"{job} reads single rows: it needs data.layout=packed, not {config['data']['layout']}")


def model_config(config: Mapping[str, Any]):
    """The decoder's frozen dataclass from the group `model` of a config (or of its JSON)."""
    from gpt4jax import model
    from gpt4jax.model.vision_config import VisionConfig

    fields = {field.name for field in dataclasses.fields(model.Config)}
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in config["model"].items() if name in fields
    }
    vision = dict(config["vision"])
    if vision["frontend"] != "none":
        values["vision"] = VisionConfig(**vision)
    return model.Config(**values)


def to_json(config: ml_collections.ConfigDict) -> str:
    """The resolved config, as `config.json` beside a run has it."""
    return json.dumps(config.to_dict(), indent=2) + "\n"


def from_json(path: files.Path, start: Start | None = None) -> ml_collections.ConfigDict:
    """The config of a run from its `config.json`; `start` as in `load`.

    Raises:
        UserError: not a config of this version.
    """
    try:
        return from_dict(json.loads(path.read_text()), start)
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a config of this version of gpt4jax: {error}") from error


def from_dict(fields: Mapping[str, Any], start: Start | None = None) -> ml_collections.ConfigDict:
    """The config whose `to_dict` or JSON this is, locked; `start` as in `load`.

    Raises:
        ValueError, AttributeError, KeyError, TypeError: it is none of this version.
    """
    config, known = (start or default)().unlock(), (start or default)()
    with config.ignore_type():
        config.update(fields)
    strange = set(_keys(config)) - set(_keys(known))
    if strange:
        raise KeyError(f"unknown key {sorted(strange)[0]}")
    _as_tuples(config, known)
    return config.lock()


def _as_tuples(config: ml_collections.ConfigDict, known: ml_collections.ConfigDict) -> None:
    """Makes tuples of what JSON has as lists, where `known` has tuples."""
    for name, value in known.items():
        if isinstance(value, ml_collections.ConfigDict):
            _as_tuples(config[name], value)
        elif isinstance(value, tuple):
            with config.ignore_type():
                config[name] = tuple(config[name])


def differences(old: Mapping[str, Any], new: Mapping[str, Any], may_change: Iterable[str]) -> list[str]:
    """Which keys differ, as "key: old -> new", except the groups and keys that may change on resuming."""
    old_flat, new_flat = flat(old), flat(new)
    return [
        f"{key}: {old_flat.get(key)!r} -> {new_flat.get(key)!r}"
        for key in sorted(old_flat.keys() | new_flat.keys())
        if old_flat.get(key) != new_flat.get(key) and not any(key == m or key.startswith(m + ".") for m in may_change)
    ]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A config's values by their dotted keys."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            found |= flat(value, f"{prefix}{name}.")
        else:
            found[prefix + name] = list(value) if isinstance(value, tuple) else value
    return found
