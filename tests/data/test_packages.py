"""The corpus of packages: what is left out, whole packages held out, wheels checked by their hash."""

import zipfile

import pytest

from gpt4jax.data import corpora, fetch, packages
from gpt4jax.errors import UserError

LINES = [f"line_{i} = {i}" for i in range(400)]


def text(first: int, last: int) -> bytes:
    return "\n".join(LINES[first:last]).encode()


def test_copies_are_seen_through_indentation_and_small_changes():
    seen = packages.Seen()
    assert not seen.copied(text(0, 100))
    assert seen.copied(b"\n\n  " + text(0, 100).replace(b"\n", b"  \n\t"))  # the same lines, other spaces
    assert seen.copied(text(0, 60) + b"\nnew = 1\n" + text(60, 100))  # one line more
    assert seen.copied(text(20, 90) + b"\n" + text(200, 220))  # mostly made of it
    assert not seen.copied(text(80, 100) + b"\n" + text(220, 330))  # a little made of it
    assert not seen.copied(text(340, 344)) and seen.copied(text(340, 344))  # shorter than a window


@pytest.fixture
def wheels(tmp_path, monkeypatch):
    """A cache with two wheels, of which `beta` is held out and holds a copy of a file of `alpha`."""
    contents = {
        "alpha": {"alpha/a.py": text(0, 100), "alpha/b.py": text(100, 200), "alpha/tests/t.py": text(200, 300),
                  "alpha/_vendor/v.py": text(300, 400), "alpha/data.json": b"{}", "alpha/bad.py": b"\xff"},
        "beta": {"beta/copy.py": text(0, 99), "beta/own.py": text(300, 400), "beta/empty.py": b"\n"},
    }  # fmt: skip
    for name, members in contents.items():
        path = tmp_path / "packages" / f"{name}-1.0" / f"{name}hash.whl"
        path.parent.mkdir(parents=True)
        with zipfile.ZipFile(path, "w") as wheel:
            for member, data in members.items():
                wheel.writestr(member, data)
    table = "alpha 1.0 MIT alphahash\nbeta 1.0 BSD-3-Clause betahash held_out\n"
    monkeypatch.setattr(packages, "_TABLE", table)
    return tmp_path


def test_held_out_packages_keep_what_they_share(wheels):
    found = list(packages.documents(packages.packages(), wheels))
    kept = {file.key: file.held_out for file in found if not file.copied}
    assert kept == {"alpha/alpha/b.py": False, "alpha/alpha/bad.py": False, "beta/beta/copy.py": True,
                    "beta/beta/own.py": True, "beta/beta/empty.py": True}  # fmt: skip
    assert [file.key for file in found if file.copied] == ["alpha/alpha/a.py"]


def test_prepared_as_a_corpus(wheels):
    class Options:
        dataset = "python_packages"

    corpus = corpora.prepare(Options, wheels)
    assert [corpus.splits["train"][i] for i in range(len(corpus.splits["train"]))] == [text(100, 200)]
    held = corpus.splits["eval"]
    assert sorted(held[i] for i in range(len(held))) == sorted([text(0, 99), text(300, 400)])
    assert corpus.skipped == ("1 empty documents", "1 copies of other files", "not UTF-8: alpha/alpha/bad.py")
    assert corpus.fingerprint == packages.fingerprint(packages.packages())


def test_fingerprint_follows_the_wheels_and_the_split():
    table = packages.packages()
    changed = [table[0]._replace(held_out=False), *table[1:]]
    assert len({packages.fingerprint(table), packages.fingerprint(changed), packages.fingerprint(table[1:])}) == 3


def test_the_table():
    table = packages.packages()
    assert len(table) > 50 and 3 <= sum(package.held_out for package in table) < 10
    assert len({package.wheel.package for package in table}) == len(table)
    for package in table:
        assert len(package.wheel.sha256) == 64 and package.license.split("-")[0] in ("Apache", "MIT", "BSD")


def test_a_wheel_is_fetched_once_and_checked(tmp_path, monkeypatch):
    """A real one, half a megabyte."""
    wheel = next(p.wheel for p in packages.packages() if p.wheel.package == "celery")
    (path,) = fetch.fetch_wheels([wheel], tmp_path)
    assert "celery/app/base.py" in zipfile.ZipFile(path).namelist()
    with pytest.raises(UserError, match=r"celery 5\.7\.0 have another sha256"):
        fetch.fetch_wheels([wheel._replace(sha256="0" * 64)], tmp_path)
    monkeypatch.setattr(fetch, "_pip", lambda what: pytest.fail("downloaded again"))
    assert fetch.fetch_wheels([wheel], tmp_path) == [path]


@pytest.mark.parametrize("size", ["", "0", "-3", "1.5", "many"])
def test_a_grammar_of_no_size(size, tmp_path):
    class Options:
        dataset = f"grammar:{size}"

    with pytest.raises(UserError, match="how many megabytes"):
        corpora.prepare(Options, tmp_path)


def test_grammar_as_a_corpus(tmp_path, monkeypatch):
    class Options:
        dataset = "grammar:1"

    monkeypatch.setattr(corpora.Grammar, "EVAL_BYTES", 20_000)
    corpus = corpora.prepare(Options, tmp_path)
    sizes = {name: sum(len(split[i]) for i in range(len(split))) for name, split in corpus.splits.items()}
    assert 1_000_000 <= sizes["train"] < 1_001_000 and 20_000 <= sizes["eval"] < 21_000
