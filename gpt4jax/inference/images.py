"""Prompts with images in them: a text with "<|image|>" where each stands."""

from collections.abc import Sequence

import numpy as np

from gpt4jax.data import images, interleaved
from gpt4jax.data.tokenizer import END_OF_IMAGE, IMAGE, PATCH, Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.vision import Images
from gpt4jax.model.vision_config import VisionConfig

_FEWEST = 16  # patches that a program is compiled for; from there on powers of two


def prompt(
    tokenizer: Tokenizer, vision: VisionConfig | None, text: str, pictures: Sequence[np.ndarray]
) -> tuple[list[int], Images | None]:
    """Token ids of a text to continue, and its images (each (H, W, 3) uint8), as `Request` takes them.

    An image larger than the model's budget of patches is made smaller.

    Raises:
        UserError: a model that takes no images, or another number of images than of places for them.
    """
    first, *others = text.split(IMAGE)
    if not pictures and vision is None:
        return tokenizer.prompt(text), None  # where no image can be, the marker is a text like any other
    if vision is None:
        raise UserError(
            f"this model takes no images: it was trained on text alone, and {len(pictures)} "
            f"{'was' if len(pictures) == 1 else 'were'} given"
        )
    if len(others) != len(pictures):
        raise UserError(
            f"the prompt has {len(others)} times {IMAGE}, and {len(pictures)} images were given: each needs its place"
        )
    if not pictures:
        return tokenizer.prompt(text), None
    grids = [_grid(one, vision) for one in pictures]
    row = interleaved.empty_row(interleaved.Room(1, sum(r * c for r, c in grids), len(pictures)), vision)
    ids, at = tokenizer.prompt(first), 0
    for number, (picture, after, (rows, columns)) in enumerate(zip(pictures, others, grids, strict=True), 1):
        patches = [tokenizer.special[PATCH]] * vision.image_len(rows * columns)
        ids += [tokenizer.special[IMAGE], *patches, tokenizer.special[END_OF_IMAGE], *tokenizer.encode(after)]
        at += interleaved.write_image(row, vision, picture, at, number)
    return ids, Images.of(row)


def shrunk(picture: np.ndarray, vision: VisionConfig) -> tuple[int, int] | None:
    """The size (height, width) that an image is brought to, if that is smaller than it is."""
    rows, columns = _grid(picture, vision)
    size = rows * vision.patch_size, columns * vision.patch_size
    return size if size[0] * size[1] < picture.shape[0] * picture.shape[1] else None


def _grid(picture: np.ndarray, vision: VisionConfig) -> tuple[int, int]:
    return images.grid(picture.shape[0], picture.shape[1], vision.patch_size, vision.max_patches)


def padded(row: Images) -> Images:
    """A batch of one with room for a power of two of patches and of images: so a few programs serve all prompts."""
    patches, count = len(row.patches_bpc), len(row.image_bi)
    more = max(_FEWEST, 1 << (patches - 1).bit_length()) - patches
    others = (1 << (count - 1).bit_length()) - count

    def pad(array: np.ndarray, by: int) -> np.ndarray:
        return np.pad(array, [(0, by)] + [(0, 0)] * (array.ndim - 1))[None]

    patches_bpc, image_bp, row_bp, column_bp = (pad(array, more) for array in row[:4])
    return Images(patches_bpc, image_bp, row_bp, column_bp, pad(row.image_bi, others))
