"""Corpora: what goes in, what is left out, and what is refused."""

import itertools
import json
import pathlib
import sysconfig
from concurrent.futures import ThreadPoolExecutor

import pytest
import tensorflow_datasets as tfds

from gpt4jax import config as configuration
from gpt4jax.data import code_tasks, corpora, text
from gpt4jax.data.operations import FAMILIES
from gpt4jax.errors import UserError


def options(**changes):
    o = configuration.default().data.copy_and_resolve_references()
    o.update(changes)
    return o


def texts(corpus, split):
    documents = corpus.splits[split]
    return [documents[i] for i in range(len(documents))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("text")
    for i in range(80):
        (root / f"sub{i % 3}").mkdir(exist_ok=True)
        (root / f"sub{i % 3}" / f"{i}.txt").write_text(f"document {i} – naïve\n")
    (root / "empty.txt").write_text("")
    (root / "blank.txt").write_text(" \n")
    (root / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    return root


def test_folder(folder, tmp_path):
    corpus = corpora.prepare(options(dataset=f"folder:{folder}"), tmp_path)
    train, evaluation = texts(corpus, "train"), texts(corpus, "eval")
    assert sorted(train + evaluation) == sorted(f"document {i} – naïve\n".encode() for i in range(80))
    expected = [f"document {i} – naïve\n".encode() for i in range(80) if corpora.held_out(f"sub{i % 3}/{i}.txt")]
    assert sorted(evaluation) == sorted(expected) and 0 < len(expected) < 15
    assert corpus.skipped == ("2 empty documents", "not UTF-8: latin.txt")
    again = corpora.prepare(options(dataset=f"folder:{folder}"), tmp_path)
    assert again.fingerprint == corpus.fingerprint and texts(again, "train") == train
    assert again.skipped == corpus.skipped


@pytest.mark.parametrize("kind", ["code_tasks", "named_tasks"])
def test_code_tasks_train_on_texts_and_hold_out_problems(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(corpora.CodeTasks, "EVAL_PROBLEMS", 5)  # 150 take long
    corpus = corpora.prepare(options(dataset=f"{kind}:1"), tmp_path)
    train, evaluation = ([text.decode() for text in texts(corpus, split)] for split in ("train", "eval"))
    family = FAMILIES[kind]
    assert sorted(train) == sorted(itertools.islice(code_tasks.documents(0, 10**6, operations=family), len(train)))
    assert 0 <= sum(map(len, train)) - 1e6 < code_tasks.MAX_BYTES
    assert sorted(evaluation) == sorted(p.prompt + p.solution for p in code_tasks.problems(0, 5, operations=family))


def test_several_that_prepare_the_same_at_once_all_get_it(folder, tmp_path):
    """As processes of one host do that has a disk of its own: the last to end finds that another was quicker."""
    with ThreadPoolExecutor(3) as pool:
        made = list(pool.map(lambda _: corpora.prepare(options(dataset=f"folder:{folder}"), tmp_path), range(3)))
    assert len({tuple(texts(corpus, "train")) for corpus in made}) == 1 and texts(made[0], "train")


def test_a_changed_file_is_another_corpus(folder, tmp_path):
    before = corpora.prepare(options(dataset=f"folder:{folder}"), tmp_path)
    changed = folder / "sub0" / "0.txt"
    old = changed.read_text()
    changed.write_text("changed\n")
    after = corpora.prepare(options(dataset=f"folder:{folder}"), tmp_path)
    changed.write_text(old)
    assert before.fingerprint != after.fingerprint
    assert b"changed\n" in texts(after, "train") + texts(after, "eval")


def test_jsonl(tmp_path):
    path = tmp_path / "data.jsonl"
    lines = [json.dumps({"text": f"line {i // 2}"}) for i in range(200)] + ["", json.dumps({"text": ""})]
    path.write_text("\n".join(lines) + "\n")
    corpus = corpora.prepare(options(dataset=f"jsonl:{path}"), tmp_path)
    assert len(texts(corpus, "train") + texts(corpus, "eval")) == 200
    assert corpus.skipped == ("1 empty documents",)
    assert not set(texts(corpus, "train")) & set(texts(corpus, "eval"))  # equal texts fall on one side


def test_python_stdlib_has_no_tests_and_no_installed_packages():
    root = pathlib.Path(sysconfig.get_paths()["stdlib"])
    keys = [document.key for document in corpora.list_documents(root, "", python_only=True)]
    assert {"argparse.py", "json/decoder.py", "asyncio/tasks.py"} <= set(keys)
    assert not [key for key in keys if {"test", "tests", "site-packages", "dist-packages"} & set(key.split("/"))]
    assert 0.02 < sum(map(corpora.held_out, keys)) / len(keys) < 0.09


def test_installed_packages_inside_the_library_are_left_out(tmp_path):
    for name in ("a.py", "test/b.py", "x/tests/c.py", "site-packages/d.py", "dist-packages/e.py", "x/f.py", "g.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("1")
    found = corpora.list_documents(tmp_path, "", python_only=True)
    assert [document.key for document in found] == ["a.py", "x/f.py"]


class TinyWiki(tfds.core.GeneratorBasedBuilder):
    """A TFDS set as somebody else would define it."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))

    def _split_generators(self, dl_manager):
        return {name: self._generate_examples(name) for name in ("train", "validation")}

    def _generate_examples(self, split):
        for i in range(20):
            yield i, {"text": f"{split} {i}" if i else b"\xff not UTF-8"}


def test_any_tfds_set_prepared_as_array_record(tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "ours"))
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    with pytest.raises(UserError, match="is not prepared .*tfds build tiny_wiki --file_format=array_record"):
        corpora.prepare(options(dataset="tiny_wiki"), tmp_path)
    TinyWiki(data_dir=tmp_path / "ours", file_format="array_record").download_and_prepare(download_config=config)
    corpus = corpora.prepare(options(dataset="tiny_wiki", eval_split="validation"), tmp_path)
    assert sorted(texts(corpus, "train")) == sorted([b"\xff not UTF-8", *(f"train {i}".encode() for i in range(1, 20))])
    assert b"validation 3" in texts(corpus, "eval")
    sliced = corpora.prepare(
        options(dataset="tiny_wiki", train_split="train[:50%]", eval_split="train[50%:]"), tmp_path
    )
    assert len(sliced.splits["train"]) == len(sliced.splits["eval"]) == 10
    assert sliced.fingerprint != corpus.fingerprint
    said = []
    data = text.load(
        options(dataset="tiny_wiki", eval_split="validation", tokenizer="bytes", seq_len=16), 257, tmp_path, said.append
    )
    assert sum(": 1 documents skipped as not UTF-8: " in line for line in said) == 2
    assert [data.facts[split]["documents"] for split in ("train", "eval")] == [19, 19]
    with pytest.raises(UserError, match="has no split 'test' but train, validation; set data.eval_split"):
        corpora.prepare(options(dataset="tiny_wiki", eval_split="test"), tmp_path)
    with pytest.raises(UserError, match="has no feature 'body' but text"):
        corpora.prepare(options(dataset="tiny_wiki", text_feature="body"), tmp_path)


@pytest.mark.parametrize(
    ("dataset", "words"),
    [
        (
            "no_such_set",
            "'no_such_set' is neither python_stdlib, python_packages, grammar:MEGABYTES, code_tasks:MEGABYTES, named_",
        ),
        ("folder:/no/such/folder", "there is no file or folder /no/such/folder"),
        ("folder:", "'folder:' is neither"),
    ],
)
def test_data_sets_that_do_not_exist(dataset, words, tmp_path):
    with pytest.raises(UserError, match=words):
        corpora.prepare(options(dataset=dataset), tmp_path)


def test_no_usable_document(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("")
    (tmp_path / "d" / "b").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match="has no usable document"):
        corpora.prepare(options(dataset=f"folder:{tmp_path / 'd'}"), tmp_path)
    (tmp_path / "d" / "c").write_text("one")
    with pytest.raises(UserError, match="has 1 usable documents, too few to hold out"):
        corpora.prepare(options(dataset=f"folder:{tmp_path / 'd'}"), tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "fine"}\n{"txt": "no"}\n')
    with pytest.raises(UserError, match="line 2: not a JSON object with the key 'text'"):
        corpora.prepare(options(dataset=f"jsonl:{bad}"), tmp_path)


@pytest.mark.parametrize(("size", "most"), [(1, 1024), (2**20, 16), (2**26, 1)])
def test_documents_are_read_in_blocks_of_about_as_many_bytes(size, most):
    """Every document once and in order; blocks of short ones are long, those of long ones short after the first."""
    blocks = []

    class Source:
        def __len__(self):
            return 3000

        def __getitems__(self, numbers):
            blocks.append(len(numbers))
            return [{"text": Long(f"{i}", size)} for i in numbers]

    class Long(str):  # a text that says it is of `size` bytes
        def __new__(cls, text, size):
            self = super().__new__(cls, text)
            self.size = size
            return self

        def encode(self):
            return Sized(str(self).encode(), self.size)

    class Sized(bytes):
        def __new__(cls, text, size):
            self = super().__new__(cls, text)
            self.size = size
            return self

        def __len__(self):
            return self.size

    assert [bytes(text) for text in corpora.Documents(Source(), "text")] == [str(i).encode() for i in range(3000)]
    assert sum(blocks) == 3000 and max(blocks[1:]) == most
