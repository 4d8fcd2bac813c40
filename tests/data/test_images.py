"""Images: what is decoded to which pixels, what is refused in words, and grids by brute force."""

import contextlib
import io
import pickle
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from gpt4jax.data import images
from gpt4jax.errors import UserError

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (12, 20, 3), np.uint8)


def encoded(image, kind="PNG", **options) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def png_of(width: int, height: int) -> bytes:
    """A PNG whose head claims a size, with hardly any data behind it."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 99)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "options"), [("PNG", {}), ("BMP", {}), ("WEBP", {"lossless": True})])
def test_lossless_formats_give_their_pixels(kind, options):
    data = encoded(Image.fromarray(PIXELS), kind, **options)
    np.testing.assert_array_equal(images.decode(data, "x"), PIXELS)
    assert images.size(data, "x") == (12, 20)


def test_modes_become_rgb_as_is_written_down():
    white_or_red = np.zeros((2, 2, 4), np.uint8)
    white_or_red[0] = (255, 0, 0, 255)  # below it is transparent black
    found = images.decode(encoded(Image.fromarray(white_or_red)), "x")
    np.testing.assert_array_equal(found, [[[255, 0, 0]] * 2, [[255] * 3] * 2])
    grey = np.array([[0, 128, 257 * 3, 65535]], np.uint16)
    np.testing.assert_array_equal(images.decode(encoded(Image.fromarray(grey)), "x")[0, :, 0], [0, 0, 3, 255])
    palette = Image.fromarray(PIXELS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    np.testing.assert_array_equal(images.decode(encoded(palette), "x"), np.asarray(palette.convert("RGB")))
    palette.info["transparency"] = 0
    seen = images.decode(encoded(palette, transparency=0), "x")
    np.testing.assert_array_equal(seen[np.asarray(palette) == 0], 255)
    one_bit = Image.fromarray(PIXELS).convert("1")
    assert set(np.unique(images.decode(encoded(one_bit), "x"))) == {0, 255}
    cmyk = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    red = images.decode(encoded(cmyk, "JPEG", quality=100), "x")
    assert abs(red.astype(int) - [255, 0, 0]).max() < 8


def test_a_turned_photograph_stands_upright():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees, clockwise
    data = encoded(Image.fromarray(PIXELS), "PNG", exif=exif)
    np.testing.assert_array_equal(images.decode(data, "x"), np.rot90(PIXELS, -1))
    assert images.size(data, "x") == (20, 12)


def animated() -> bytes:
    frames = [Image.fromarray(np.full((4, 4), i * 80, np.uint8)) for i in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encoded(Image.fromarray(PIXELS))[:-40], "damaged PNG"),
        (encoded(Image.fromarray(PIXELS), "JPEG")[:300], "damaged"),
        (png_of(60_000, 60_000), "67,108,864 pixels"),
        (png_of(12_000, 9_000), "12,000 x 9,000 pixels"),
        (png_of(1, 20_000), "16,384 a side"),
        (png_of(0, 5), "damaged|has none|no image"),
        (png_of(90, 90), "damaged PNG"),
        (animated(), "animation of 3 frames"),
        (b"", "no image in one of"),
        (b"import os; os.remove('x')", "no image in one of"),
        (pickle.dumps({"a": 1}), "no image in one of"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "no image in one of"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image in one of"),
        (encoded(Image.fromarray(PIXELS), "TIFF"), "no image in one of"),
        (b"\0" * (images.MAX_BYTES + 1), "33,554,433 bytes"),
    ],
)
def test_what_is_no_image_or_too_large_is_said(data, words):
    with pytest.raises(UserError, match=f"cat.png: .*({words})"):
        images.decode(data, "cat.png")


def test_random_damage_gives_pixels_or_words_and_nothing_else():
    for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP"):
        whole = encoded(Image.fromarray(PIXELS), kind)
        for _ in range(40):
            data = bytearray(whole)
            for place in RNG.integers(0, len(data), 4):
                data[place] = RNG.integers(256)
            with contextlib.suppress(UserError):
                pixels = images.decode(bytes(data), "x")
                assert pixels.dtype == np.uint8 and pixels.ndim == 3


def test_files(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(PIXELS)))
    np.testing.assert_array_equal(images.read(tmp_path / "a.png"), PIXELS)
    for path in (tmp_path, tmp_path / "none.png"):
        with pytest.raises(UserError, match="can't be read"):
            images.read(path)


def test_grids_keep_the_budget_and_the_aspect_ratio():
    for _ in range(3000):
        height, width = (int(2 ** RNG.uniform(0, 12)) for _ in range(2))
        patch, most = int(RNG.integers(1, 33)), int(2 ** RNG.uniform(0, 9))
        rows, columns = images.grid(height, width, patch, most)
        assert rows >= 1 and columns >= 1 and rows * columns <= most
        natural = max(1, round(height / patch)), max(1, round(width / patch))
        if natural[0] * natural[1] <= most:
            assert (rows, columns) == natural
            continue
        assert rows <= natural[0] and columns <= natural[1]  # nothing is enlarged
        # As large as it can be: one more row and column would be above the budget, or enlarge it.
        assert (rows + 1) * (columns + 1) > most or rows == natural[0] or columns == natural[1]
        # No side is off by a whole patch from the ratio that the budget allows, unless it has one patch only.
        factor = (most * patch**2 / (height * width)) ** 0.5
        if min(height, width) * factor >= patch and factor <= 1:
            assert abs(rows - height * factor / patch) <= 1 and abs(columns - width * factor / patch) <= 1
    assert images.grid(1, 5000, 16, 64) == (1, 64)
    with pytest.raises(ValueError, match="must be at least 1"):
        images.grid(0, 5, 16, 4)


def test_fit_leaves_what_fits():
    assert images.fit(PIXELS, 4, 15) is PIXELS
    assert images.fit(PIXELS, 8, 6).shape == (16, 16, 3)
    flat = images.fit(np.full((300, 700, 3), 77, np.uint8), 16, 20)
    assert flat.shape[0] // 16 * (flat.shape[1] // 16) <= 20 and (flat == 77).all()
