"""The tokenizer inside a GGUF file, rebuilt for the `tokenizers` library."""

import pathlib
from collections.abc import Mapping
from typing import Any

from gpt4jax.data import foreign, tokenizer_json
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
# What cuts a text into words, one after another, by the file's name for it.
_SPLITS = {
    "gpt-2": (_GPT2,),
    "smollm": (r"\p{N}", _GPT2),  # every digit by itself
    "llama-bpe": (_LLAMA3,),
    "qwen2": (_LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}"),),
}
_WHOLE_WORDS = ("llama-bpe",)  # a word that is a token is taken whole, whatever the merges
_CONTROL, _USER_DEFINED = 3, 4
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}


def read(metadata: Mapping[str, Any], path: pathlib.Path) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata.

    Raises:
        UserError: there is none, or one of a kind that is not supported.
    """
    from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind, pre = get("model"), get("pre")
    if kind != "gpt2":
        raise UserError(f"{path}: its tokenizer is of the kind {kind!r}; only 'gpt2' (byte-level BPE) is supported")
    if pre not in tuple(_SPLITS):
        raise UserError(f"{path}: its pre-tokenizer {pre!r} is not supported; supported are {', '.join(_SPLITS)}")
    tokens, merges, types = get("tokens"), get("merges"), get("token_type")
    if not (_all(tokens, str) and _all(merges, str) and _all(types, int)) or not 0 < len(tokens) == len(types):
        raise UserError(f"{path}: its tokenizer lacks tokens, merges or the types of tokens")
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    for pair in pairs:  # the library panics where a merge makes no token
        if len(pair) != 2 or not all(token in vocabulary for token in (*pair, "".join(pair))):
            raise UserError(f"{path}: its tokenizer's merges and tokens do not belong together: {' '.join(pair)!r}")
    try:
        fast = Fast(models.BPE(vocabulary, pairs, ignore_merges=pre in _WHOLE_WORDS))
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{path}: its tokenizer's merges and tokens do not belong together: {error}") from error
    splits: list[Any] = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in _SPLITS[pre]]
    fast.pre_tokenizer = pre_tokenizers.Sequence(
        [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    fast.decoder = decoders.ByteLevel()
    for token, token_type in zip(tokens, types, strict=True):
        if token_type == _CONTROL:
            fast.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            fast.add_tokens([AddedToken(token, special=False, normalized=False)])
    ids = {role: get(f"{name}_token_id") for role, name in _ROLES.items()}
    # A stop that is no token is left out, as a config.json's is.
    stops = [i for name in ("eos", "eot", "eom") if (i := get(f"{name}_token_id")) is not None]
    if wrong := [i for i in (*ids.values(), *stops) if i is not None and not isinstance(i, int)]:
        raise UserError(f"{path}: its tokenizer says the id {wrong[0]!r}, which is no whole number")
    if outside := [f"{role} {i}" for role, i in ids.items() if i is not None and not 0 <= i < len(tokens)]:
        raise UserError(f"{path}: its tokenizer has {len(tokens)} tokens, but says {outside[0]}")
    roles = {role: tokens[i] for role, i in ids.items() if i is not None}
    # llama.cpp's own default where the file is silent.
    add_bos = get("add_bos_token", pre == "llama-bpe") and "bos_token" in roles
    if add_bos:
        fast.post_processor = tokenizer_json.prefixed(roles["bos_token"], ids["bos_token"])
    return foreign.from_json(
        fast.to_str(), roles, stops, add_bos=add_bos,
        template=metadata.get("tokenizer.chat_template"), where=path,
    )  # fmt: skip


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
