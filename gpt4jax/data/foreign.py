"""Tokenizers that come with weights: `tokenizer.json` and the files beside it, as Hugging Face has them."""

import hashlib
import itertools
import json
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from gpt4jax import files
from gpt4jax.data import tokenizer_json
from gpt4jax.data.tokenizer import WEIGHTS, Tokenizer
from gpt4jax.errors import UserError

FILE, CONFIG = "tokenizer.json", "tokenizer_config.json"
GENERATION, TEMPLATE = "generation_config.json", "chat_template.jinja"
ROLES = ("bos_token", "eos_token", "unk_token", "pad_token")
# Chat models end an answer with another token than the one that ends a document.
_END_OF_DOCUMENT = (tokenizer_json.END, "<|end_of_text|>")


def read(folder: files.Path) -> Tokenizer:
    """The tokenizer of a folder of weights, or of a run that keeps one.

    Raises:
        UserError: there is none, it is damaged, or of a kind that is not supported.
    """
    if not (folder / FILE).is_file():
        raise UserError(f"{folder} has no {FILE}")
    settings = files.read_json(folder / CONFIG)
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        if not all(isinstance(one, dict) and isinstance(one.get("template"), str) for one in template):
            raise UserError(f"{folder / CONFIG}: chat_template is a list, but not of names and templates")
        template = next((one["template"] for one in template if one.get("name") == "default"), None)
    if (folder / TEMPLATE).is_file():
        template = _text(folder / TEMPLATE)
    stops: list[int] = []
    for name in ("config.json", GENERATION):
        stated = files.read_json(folder / name).get("eos_token_id")
        ids = stated if isinstance(stated, list) else [] if stated is None else [stated]
        if not all(type(i) is int for i in ids):
            raise UserError(f"{folder / name}: eos_token_id is {stated!r}, neither an id nor a list of ids")
        stops += ids
    roles = {role: settings[role] for role in ROLES if settings.get(role)}
    roles = {role: token.get("content") if isinstance(token, dict) else token for role, token in roles.items()}
    for role, token in roles.items():
        if not isinstance(token, str):
            raise UserError(f"{folder / CONFIG}: {role} is {settings[role]!r}, which names no token")
    if not isinstance(settings.get("add_bos_token"), bool | None):
        raise UserError(f"{folder / CONFIG}: add_bos_token is {settings['add_bos_token']!r}, neither true nor false")
    text = _text(folder / FILE)
    return from_json(text, roles, stops, add_bos=settings.get("add_bos_token"), template=template, where=folder / FILE)


def _text(path: files.Path) -> str:
    try:
        return path.read_text()
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is no text in UTF-8: {error}") from error


def write(tokenizer: Tokenizer, folder: files.Path) -> None:
    """Writes a tokenizer, our own too, such that `read` and transformers' AutoTokenizer give it back."""
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    files.replace(folder / FILE, tokenizer.json())
    files.replace(folder / CONFIG, json.dumps(settings | dict(tokenizer.roles), indent=2) + "\n")
    generation: dict[str, Any] = {"eos_token_id": sorted(tokenizer.stops)}
    if bos := tokenizer.roles.get("bos_token"):
        generation["bos_token_id"] = tokenizer.special[bos]
    if pad := tokenizer.roles.get("pad_token"):
        generation["pad_token_id"] = tokenizer.special[pad]
    files.replace(folder / GENERATION, json.dumps(generation, indent=2) + "\n")
    if tokenizer.chat_template is not None:
        files.replace(folder / TEMPLATE, tokenizer.chat_template)


def from_json(
    text: str,
    roles: Mapping[str, str],
    stops: Collection[int],
    *,
    add_bos: bool | None,
    template: str | None,
    where: Any,
) -> Tokenizer:
    """A tokenizer from the text of a `tokenizer.json`.

    Args:
        text: the JSON.
        roles: "bos_token" and so on to tokens.
        stops: ids that end a generated text, besides the eos_token.
        add_bos: whether a text starts with the bos_token; None: as the JSON's post-processor says.
        template: the chat template.
        where: what it came from, for errors.

    Raises:
        UserError: it is damaged, of a kind that is not supported, or has no token that ends a text.
    """
    from tokenizers import Tokenizer as Fast

    if template is not None and not isinstance(template, str):
        raise UserError(f"{where}: its chat template is {template!r}, no text")
    try:
        fast = Fast.from_str(text)
        if fast.truncation or fast.padding:  # of whoever saved it last
            fast.no_truncation()
            fast.no_padding()
            text = fast.to_str()
        start = _start(fast)  # encodes, which some damage keeps it from
    except Exception as error:  # the library raises Exception itself
        raise UserError(f"{where} is no tokenizer that the `tokenizers` library can read: {error}") from error
    if not fast.get_vocab_size():
        raise UserError(f"{where} has no tokens")
    special = {token.content: i for i, token in fast.get_added_tokens_decoder().items() if token.special}
    roles = {role: token for role, token in roles.items() if fast.token_to_id(token) is not None}
    special |= {token: i for token in roles.values() if (i := fast.token_to_id(token)) is not None}
    bos = roles.get("bos_token")
    if add_bos is not None and bool(add_bos and bos) != bool(start):
        fast.post_processor = tokenizer_json.prefixed(bos if add_bos else None, special.get(bos or ""))
        text, start = fast.to_str(), _start(fast)
    pieces = _pieces(fast, text, set(special.values()), where)
    stops = [i for i in stops if 0 <= i < len(pieces)]  # a config's default may lie outside, where no token is
    ends = [special[token] for token in (*_END_OF_DOCUMENT, roles.get("eos_token", "")) if token in special]
    if not ends and not stops:
        raise UserError(f"{where} names no token that ends a text: no eos_token in {CONFIG} or config.json")
    all_stops = frozenset(stops) | ({special[roles["eos_token"]]} if "eos_token" in roles else set())
    without = _without_dummy_prefix(text)
    plain, dummy_prefix = Fast.from_str(without or text), " " if without else ""
    plain.encode_special_tokens = True

    def encode_batch(texts: Sequence[str]) -> list[list[int]]:
        texts = [dummy_prefix + text if text else text for text in texts]
        return [encoding.ids for encoding in plain.encode_batch(texts, add_special_tokens=False)]

    def encode_markup(text: str) -> list[int]:
        return fast.encode(text, add_special_tokens=False).ids

    rules = json.dumps([text, start, ends, sorted(all_stops)])
    return Tokenizer(
        WEIGHTS, pieces, (ends or sorted(stops))[0], encode_batch,
        encode_markup, hashlib.sha256(rules.encode()).hexdigest()[:16], special=special, start=start,
        stops=all_stops or frozenset(ends[:1]), roles=roles, json=lambda: text, chat_template=template,
        dummy_prefix=dummy_prefix.encode(),
    )  # fmt: skip


def _start(fast) -> tuple[int, ...]:
    """What the post-processor puts before a text."""
    texts = itertools.chain("a", (fast.decode([i]) for i in range(fast.get_vocab_size())))
    text = next((text for text in texts if fast.encode(text, add_special_tokens=False).ids), "")
    encoding = fast.encode(text, add_special_tokens=True)
    before = itertools.takewhile(lambda pair: pair[1], zip(encoding.ids, encoding.special_tokens_mask, strict=True))
    return tuple(i for i, _ in before)


def _without_dummy_prefix(text: str) -> str | None:
    """The JSON of the same tokenizer without the space before a text that SentencePiece's have; None: it has none.

    The library would put one behind each added token inside a text too, and none before a text that has one; then
    the tokens would not be the text.
    """
    rules = json.loads(text)
    before = json.dumps(rules)
    for step in _steps(rules.get("pre_tokenizer"), "pretokenizers"):
        if step.get("type") == "Metaspace":
            step["prepend_scheme"] = "never"
    normalizers = _steps(rules.get("normalizer"), "normalizers")
    kept = [step for step in normalizers if step.get("type") != "Prepend"]
    if len(kept) < len(normalizers):
        rules["normalizer"] = {"type": "Sequence", "normalizers": kept}
    after = json.dumps(rules)
    return None if after == before else after


def _steps(rule: Any, several: str) -> list[dict[str, Any]]:
    """One rule of a `tokenizer.json`, or those of a sequence."""
    rules = rule.get(several, [rule]) if isinstance(rule, dict) else []
    return [one for one in rules if isinstance(one, dict)]


def _pieces(fast, text: str, special: set[int], where: Any) -> tuple[bytes, ...]:
    """The bytes that each id stands for."""
    kinds = {one["type"] for one in _steps(json.loads(text).get("decoder"), "decoders") if "type" in one}
    if "ByteLevel" in kinds:
        byte_of = {char: bytes([byte]) for byte, char in enumerate(tokenizer_json.ALPHABET)}

        # Characters outside the alphabet stand for themselves, as in the library's decoder: a placeholder's do.
        def piece(token: str) -> bytes:
            return b"".join(byte_of.get(char, char.encode()) for char in token)
    elif "ByteFallback" in kinds or "Metaspace" in kinds:

        def piece(token: str) -> bytes:
            if re.fullmatch(r"<0x[0-9A-F]{2}>", token):
                return bytes.fromhex(token[3:5])
            return token.replace("▁", " ").encode()
    else:
        raise UserError(
            f"{where} is neither a byte-level nor a SentencePiece tokenizer (its decoder: {kinds or 'none'})"
        )
    vocabulary = fast.get_vocab(with_added_tokens=True)
    added = fast.get_added_tokens_decoder()
    pieces = [b""] * (max(vocabulary.values()) + 1)
    for token, i in vocabulary.items():
        if i not in special:
            pieces[i] = token.encode() if i in added else piece(token)
    return tuple(pieces)
