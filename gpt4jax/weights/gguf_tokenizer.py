"""The tokenizer inside a GGUF file, rebuilt for the `tokenizers` library."""

import math
import pathlib
from collections.abc import Callable, Mapping
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
_NORMAL, _CONTROL, _USER_DEFINED, _BYTE = 1, 3, 4, 6  # types of tokens
_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
_SPACE = "▁"  # SentencePiece's sign for it


def read(metadata: Mapping[str, Any], path: pathlib.Path) -> Tokenizer:
    """The tokenizer of a GGUF file's metadata.

    Raises:
        UserError: there is none, or one of a kind that is not supported.
    """
    from tokenizers import AddedToken

    def get(key: str, default: Any = None) -> Any:
        return metadata.get(f"tokenizer.ggml.{key}", default)

    kind = get("model")
    if kind not in ("gpt2", "llama"):
        raise UserError(
            f"{path}: its tokenizer is of the kind {kind!r}; supported are 'gpt2' (byte-level BPE) and 'llama' "
            "(SentencePiece's BPE)"
        )
    tokens, types = get("tokens"), get("token_type")
    if not (_all(tokens, str) and _all(types, int)) or not 0 < len(tokens) == len(types):
        raise UserError(f"{path}: its tokenizer lacks tokens or the types of tokens")
    if len(ids_of := {token: i for i, token in enumerate(tokens)}) < len(tokens):
        twice = next(token for i, token in enumerate(tokens) if ids_of[token] != i)
        raise UserError(
            f"{path}: its tokenizer has the token {twice!r} twice, {tokens.index(twice)} and {ids_of[twice]}"
        )
    # llama.cpp's own defaults where the file is silent, here and below.
    default = {"unknown": 0, "bos": 1, "eos": 2} if kind == "llama" else {}
    ids = {role: get(f"{name}_token_id", default.get(name)) for role, name in _ROLES.items()}
    # A stop that is no token is left out, as a config.json's is.
    stops = [i for name in ("eot", "eom") if (i := get(f"{name}_token_id")) is not None]
    stops += [] if ids["eos_token"] is None else [ids["eos_token"]]
    if wrong := [i for i in (*ids.values(), *stops) if i is not None and not isinstance(i, int)]:
        raise UserError(f"{path}: its tokenizer says the id {wrong[0]!r}, which is no whole number")
    if outside := [f"{role} {i}" for role, i in ids.items() if i is not None and not 0 <= i < len(tokens)]:
        raise UserError(f"{path}: its tokenizer has {len(tokens)} tokens, but says {outside[0]}")
    roles = {role: tokens[i] for role, i in ids.items() if i is not None}
    if kind == "llama":  # these are found in a text before its spaces become signs
        tokens = [t.replace(_SPACE, " ") if types[i] == _USER_DEFINED else t for i, t in enumerate(tokens)]
    fast = (_byte_level if kind == "gpt2" else _sentencepiece)(get, tokens, types, path)
    for token, token_type in zip(tokens, types, strict=True):
        if token_type == _CONTROL:
            fast.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif token_type == _USER_DEFINED:
            fast.add_tokens([AddedToken(token, special=False, normalized=False)])
    add_bos = get("add_bos_token", kind == "llama" or get("pre") == "llama-bpe") and "bos_token" in roles
    if add_bos:
        fast.post_processor = tokenizer_json.prefixed(roles["bos_token"], ids["bos_token"])
    return foreign.from_json(
        fast.to_str(), roles, stops, add_bos=add_bos,
        template=metadata.get("tokenizer.chat_template"), where=path,
    )  # fmt: skip


def _byte_level(get: Callable[..., Any], tokens: list[str], types: list[int], path: pathlib.Path):
    """GPT-2's kind: words cut by a pattern, then merges of their bytes."""
    from tokenizers import Regex, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as Fast

    pre, merges = get("pre"), get("merges")
    if pre not in tuple(_SPLITS):
        raise UserError(f"{path}: its pre-tokenizer {pre!r} is not supported; supported are {', '.join(_SPLITS)}")
    if not _all(merges, str):
        raise UserError(f"{path}: its tokenizer lacks merges")
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
    return fast


def _sentencepiece(get: Callable[..., Any], tokens: list[str], types: list[int], path: pathlib.Path):
    """SentencePiece's BPE (Kudo and Richardson 2018), which Llama 1 and 2 and Mistral have.

    It joins the two neighbours whose piece has the highest score. So each way to cut a piece into two pieces is
    a merge here, in the order of scores; a character that is no piece becomes its bytes.
    """
    from tokenizers import Tokenizer as Fast
    from tokenizers import decoders, models, normalizers

    scores, unknown = get("scores"), get("unknown_token_id", 0)
    if not _all(scores, float) or len(scores) != len(tokens) or not all(map(math.isfinite, scores)):
        raise UserError(f"{path}: its tokenizer lacks the scores of tokens")
    normal = {token: i for i, token in enumerate(tokens) if types[i] == _NORMAL}
    merges = []
    for token in sorted(normal, key=lambda token: -scores[normal[token]]):
        cuts = [(token[:i], token[i:]) for i in range(1, len(token))]
        merges += [cut for cut in cuts if cut[0] in normal and cut[1] in normal]
    fast = Fast(
        models.BPE(
            {token: i for i, token in enumerate(tokens)}, merges, byte_fallback=_BYTE in types, fuse_unk=True,
            unk_token=tokens[unknown],
        )
    )  # fmt: skip
    spaces = normalizers.Replace(" ", _SPACE)
    back = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if get("add_space_prefix", True):
        fast.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), spaces])
        back.append(decoders.Strip(" ", 1, 0))
    else:
        fast.normalizer = spaces
    fast.decoder = decoders.Sequence(back)
    return fast


def _all(values: Any, kind: type) -> bool:
    return isinstance(values, list) and all(isinstance(value, kind) for value in values)
