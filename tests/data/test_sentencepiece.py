"""GGUF's SentencePiece tokenizers beside the `sentencepiece` library, which trains one here."""

import dataclasses
import io
import pathlib
import shutil

import numpy as np
import pytest
import sentencepiece

from gpt4jax.data import cache, foreign
from gpt4jax.errors import UserError
from gpt4jax.weights import gguf_tokenizer
from tests.data.test_foreign import TEXTS


def trained(**options):
    """A BPE of 400 pieces, trained as Llama's was."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS[-1].splitlines()), model_writer=model, model_type="bpe", vocab_size=400,
        byte_fallback=True, split_digits=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        num_threads=1, minloglevel=2, **options,
    )  # fmt: skip
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


def metadata(sp, **changes):
    """What llama.cpp's converter writes of one."""
    ids = range(sp.get_piece_size())
    types = [2 if sp.is_unknown(i) else 3 if sp.is_control(i) else 6 if sp.is_byte(i) else 1 for i in ids]
    fields = dict(
        model="llama", pre="default", tokens=sp.id_to_piece(list(ids)), scores=[sp.get_score(i) for i in ids],
        token_type=types, bos_token_id=1, eos_token_id=2, unknown_token_id=0,
    )  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in (fields | changes).items() if value is not None}


def read(sp, **changes):
    return gguf_tokenizer.read(metadata(sp, **changes), pathlib.Path("x.gguf"))


@pytest.fixture(scope="module")
def sp():
    return trained()


@pytest.mark.parametrize("prefix", [True, False])
def test_the_ids_of_sentencepiece(prefix, sp, tmp_path):
    sp = sp if prefix else trained(add_dummy_prefix=False)
    tok = read(sp, add_space_prefix=prefix)
    assert tok.dummy_prefix == (b" " if prefix else b"")
    texts = [*TEXTS, " a", "▁a  ▁", "a<s>b</s>", "<0x41>", "\0x"]
    foreign.write(tok, tmp_path)
    for same in (tok, foreign.read(tmp_path)):
        for text in texts:
            assert same.encode(text) == sp.encode(text)
            # SentencePiece's sign is a space to it.
            start = tok.dummy_prefix if text else b""
            assert same.decode_bytes(same.encode(text)) == start + text.replace("▁", " ").encode()
        assert (same.start, same.end, same.stops, same.dummy_prefix) == ((1,), 2, {2}, tok.dummy_prefix)
    # A special token in markup is one, and the text after it starts anew (llama.cpp and transformers' "legacy").
    assert tok.encode_markup("<s>a b</s>c") == [1, *sp.encode("a b"), 2, *sp.encode("c")]
    assert read(sp, add_bos_token=False).start == ()
    silent = {f"{name}_token_id": None for name in ("bos", "eos", "unknown")}  # then llama.cpp's ids are meant
    assert read(sp, **silent).fingerprint == read(sp).fingerprint


def test_own_words_of_a_file(sp, tmp_path):
    """Pieces that the file's maker defined are found first, with their spaces as they are."""
    tokens, types = metadata(sp)["tokenizer.ggml.tokens"], metadata(sp)["tokenizer.ggml.token_type"]
    scores = metadata(sp)["tokenizer.ggml.scores"]
    tok = read(sp, tokens=[*tokens, "x▁▁y"], token_type=[*types, 4], scores=[*scores, 0.0])
    assert tok.pieces[-1] == b"x  y" and tok.vocab_size == len(tokens) + 1
    theirs = trained(user_defined_symbols=["x▁▁y", "<z>"])
    own = [theirs.piece_to_id(piece) for piece in ("x▁▁y", "<z>")]
    fields = metadata(theirs)
    types = [4 if i in own else type_ for i, type_ in enumerate(fields["tokenizer.ggml.token_type"])]
    tok = gguf_tokenizer.read(fields | {"tokenizer.ggml.token_type": types}, pathlib.Path("x.gguf"))
    documents = ["a x  yb", "x  y", "<z>a<z> b<z>", "<z>", " <z>", "a<z><z>x  y"]
    assert [tok.encode(text) for text in documents] == [theirs.encode(text) for text in documents]
    built = cache.build([text.encode() for text in documents], tok, tmp_path, shard_bytes=1000)
    rows = cache.PackedRows(built, tok, 16)
    assert sum(int(rows[i]["bytes"].sum()) for i in range(len(rows))) == sum(map(len, documents))


def test_the_bytes_of_documents_are_their_own(sp, tmp_path):
    documents = [text.encode() for text in TEXTS if "▁" not in text]
    built = cache.build(documents, tok := read(sp), tmp_path, shard_bytes=1000)
    rows = cache.PackedRows(built, tok, 64)
    assert sum(int(rows[i]["bytes"].sum()) for i in range(len(rows))) == sum(map(len, documents))
    assert all(np.all(rows[i]["bytes"] >= 0) for i in range(len(rows)))
    shutil.rmtree(tmp_path)
    with pytest.raises(UserError, match="changes the bytes of a document"):  # as nothing tells it from a letter
        cache.build([b"a"], dataclasses.replace(tok, dummy_prefix=b""), tmp_path, shard_bytes=1000)


@pytest.mark.parametrize(
    "changes", [{"scores": None}, {"scores": [1]}, {"scores": [0.0] * 3}, {"scores": [float("nan")] * 400}]
)
def test_without_scores(changes, sp):
    with pytest.raises(UserError, match="x.gguf: its tokenizer lacks the scores of tokens"):
        read(sp, **changes)
