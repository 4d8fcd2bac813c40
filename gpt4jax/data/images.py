"""Images from untrusted bytes: decoded by Pillow, of a few formats, within bounds; and their budget of patches."""

import io
import itertools
import math
import pathlib

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from gpt4jax.errors import UserError

FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP")  # no other of Pillow's decoders is ever run
MAX_BYTES = 2**25  # of a file
MAX_PIXELS = 2**26
MAX_SIDE = 2**14


def decode(data: bytes, name: str) -> np.ndarray:
    """An image's pixels, (H, W, 3) uint8 RGB; `name` says in errors which it is.

    Turned as its EXIF data say; transparent ones lie on white; 16-bit grey is divided by 257 and rounded; black and
    white are 0 and 255; CMYK and palettes become RGB by Pillow's plain formulas; colour profiles are ignored. None of
    `FORMATS` has pixels in floating point.

    Raises:
        UserError: no image of `FORMATS`, a damaged or an animated one, or one beyond the bounds, which are looked at
            before any pixel is decoded.
    """
    image = _opened(data, name)
    try:
        image.load()
        return np.asarray(_rgb(ImageOps.exif_transpose(image)))
    except Exception as error:  # decoders raise whatever they stumble over: struct.error, SyntaxError, EOFError, ...
        raise UserError(f"{name}: a damaged {image.format} image ({error})") from error


def size(data: bytes, name: str) -> tuple[int, int]:
    """Height and width of what `decode` gives, from the file's head alone.

    Raises:
        UserError: as `decode` does, but for damage behind the head.
    """
    image = _opened(data, name)
    try:
        turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)  # the EXIF orientations that swap the sides
    except Exception as error:
        raise UserError(f"{name}: a damaged {image.format} image ({error})") from error
    width, height = image.size
    return (width, height) if turned else (height, width)


def _opened(data: bytes, name: str) -> Image.Image:
    """The image with its head read and its bounds checked."""
    if len(data) > MAX_BYTES:
        raise UserError(f"{name}: a file of {len(data):,} bytes; an image may have {MAX_BYTES:,}")
    try:
        # From a size above our bounds on Pillow warns, from twice that on it raises. To silence the warning would be to
        # change the filters of all threads.
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError as error:
        raise UserError(f"{name}: no image in one of the formats {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{name}: more than the {MAX_PIXELS:,} pixels that an image may have ({error})") from error
    except Exception as error:
        raise UserError(f"{name}: a damaged image ({error})") from error
    width, height = image.size
    if min(width, height) < 1:
        raise UserError(f"{name}: an image of {width} x {height} pixels has none")
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise UserError(
            f"{name}: an image of {width:,} x {height:,} pixels; it may have {MAX_PIXELS:,}, and {MAX_SIDE:,} a side"
        )
    try:
        frames = getattr(image, "n_frames", 1)
    except Exception as error:
        raise UserError(f"{name}: a damaged {image.format} image ({error})") from error
    if frames > 1 and image.format != "MPO":  # a camera's JPEG with previews or depth behind the photograph
        raise UserError(f"{name}: an animation of {frames} frames: give one of them")
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16-bit grey, as "I;16" or as whole numbers
        grey = np.asarray(image).astype(np.int64)
        return Image.fromarray(((grey.clip(0, 65535) + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


def read(path: pathlib.Path) -> np.ndarray:
    """The pixels of a file, as `decode` gives them.

    Raises:
        UserError: there is no such file, or as `decode` does.
    """
    try:
        if path.exists() and not path.is_file():  # a folder, or a device that might never end
            raise UserError(f"the image {path} can't be read: it is no file")
        if path.exists() and path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: a file of {path.stat().st_size:,} bytes; an image may have {MAX_BYTES:,}")
        return decode(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"the image {path} can't be read: {error.strerror or error}") from error


def grid(height: int, width: int, patch: int, most: int) -> tuple[int, int]:
    """Rows and columns of patches for an image, at most `most` together, in its own aspect ratio and never enlarged.

    Each side is rounded to the nearest number of patches, and up to one. What is too large then is made smaller by the
    factor that gives the image `most` patches' area. Of the grids that have each side rounded down or up from there, at
    least to one patch, and that fit, it gets the one nearest to its aspect ratio, and of equally near ones the largest.

    Raises:
        ValueError: sizes below 1.
    """
    if min(height, width, patch, most) < 1:
        raise ValueError(
            f"an image of {height} x {width} in patches of {patch}, {most} of them: all must be at least 1"
        )
    rows, columns = max(1, round(height / patch)), max(1, round(width / patch))
    if rows * columns <= most:
        return rows, columns
    factor = math.sqrt(most / (height * width))  # patches a pixel, on each side

    def near(side: int, largest: int) -> set[int]:
        down = math.floor(side * factor)
        return {min(max(n, 1), largest, most) for n in (down, down + 1)}

    def unlike(grid: tuple[int, int]) -> tuple[float, int]:
        return abs(math.log(grid[0] * width / (grid[1] * height))), -grid[0] * grid[1]

    grids = itertools.product(near(height, rows), near(width, columns))
    return min((one for one in grids if one[0] * one[1] <= most), key=unlike)


def fit(image_hwc: np.ndarray, patch: int, most: int) -> np.ndarray:
    """An image brought to the size of its `grid`, bicubic; one that has it already as it is."""
    rows, columns = grid(image_hwc.shape[0], image_hwc.shape[1], patch, most)
    if image_hwc.shape[:2] == (rows * patch, columns * patch):
        return image_hwc
    return np.asarray(Image.fromarray(image_hwc).resize((columns * patch, rows * patch), Image.Resampling.BICUBIC))
