"""Captioned images: a package's layout, folders, what is left out or refused; and pairs of a step."""

import io
import json
import pathlib
import tarfile

import numpy as np
import pytest
from PIL import Image

from gpt4jax.data import captioned, pairs, tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.vision_config import VisionConfig


def png(value: int, size: int = 16) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.full((size, size, 3), value, np.uint8)).save(out, "PNG")
    return out.getvalue()


def package(path: pathlib.Path) -> pathlib.Path:
    """A small archive with the layout of emoji-datasource."""
    rows = [
        dict(name=name, unified=f"1F{i}", image=f"1f{i}.png", category="Food", subcategory="fruit",
             has_img_google=i != 3, has_img_twitter=True)
        for i, name in enumerate(["RED APPLE", "PEAR", "PEAR", "PLUM"])
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
    assert [one.caption for one in google] == ["red apple", "pear"]  # of two pears the first; no plum of this vendor
    assert [one.caption for one in twitter] == ["red apple", "pear", "plum"]
    assert google[0] == captioned.Captioned("1F0", "red apple", "Food/fruit", png(0))
    with pytest.raises(UserError, match="no emoji of 'apple'; there are those of google and twitter"):
        captioned.emoji("apple", tmp_path)


def test_a_folder_of_images_with_texts(tmp_path):
    (tmp_path / "animals").mkdir()
    (tmp_path / "animals" / "rhea.png").write_bytes(png(1))
    (tmp_path / "animals" / "rhea.txt").write_text("A rhea.\nde.utf8=Ein Nandu.\n")
    (tmp_path / "animals" / "alone.png").write_bytes(png(2))
    (tmp_path / "animals" / "empty.jpg").write_bytes(png(3))
    (tmp_path / "animals" / "empty.txt").write_text("")
    assert captioned.folder(tmp_path) == [captioned.Captioned("animals/rhea.png", "A rhea.", "animals", png(1))]
    assert captioned.of(f"captioned:{tmp_path}", tmp_path) == captioned.folder(tmp_path)
    (tmp_path / "none").mkdir()
    for path, words in ((tmp_path / "none", "has no image"), (tmp_path / "nowhere", "there is no folder")):
        with pytest.raises(UserError, match=words):
            captioned.folder(path)
    with pytest.raises(UserError, match="names no captioned images"):
        captioned.of("stamps:x", tmp_path)


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
