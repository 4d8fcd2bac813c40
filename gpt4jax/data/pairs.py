"""Images with a text each, for contrastive training: a row a pair, no two rows of a step the same pair."""

from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter

from gpt4jax.data import images, interleaved
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.vision_config import VisionConfig


class Pair(NamedTuple):
    """An image (H, W, 3) uint8 and its text."""

    pixels_hwc: np.ndarray
    text: str


def text_row(text: str, tokenizer: Tokenizer, seq_len: int) -> dict[str, np.ndarray]:
    """A text between two ends of text: tokens int32 (T,) and its length. What does not fit is cut off."""
    ids = [tokenizer.end, *tokenizer.encode(text)[: seq_len - 2], tokenizer.end]
    tokens = np.zeros(seq_len, np.int32)
    tokens[: len(ids)] = ids
    return {"tokens": tokens, "length": np.array(len(ids), np.int32)}


def image_row(pixels_hwc: np.ndarray, vision: VisionConfig) -> dict[str, np.ndarray]:
    """An image as the only one of a row, with the names that `vision.Images.of` wants."""
    row = interleaved.empty_row(interleaved.Room(1, vision.max_patches, 1), vision)
    interleaved.write_image(row, vision, pixels_hwc, 0, 1)
    return {name: row[name] for name in ("patches", "image", "row", "column", "image_ids")}


class Pairs:
    """Pairs in an order of their own each epoch: row r of step s is a function of (seed, s, r).

    An epoch has as many whole batches as there are; the pairs that are left over are others each time.

    Args:
        pairs: all of them.
        augment: what an image becomes, from its pixels and a generator that is another one each time.

    Raises:
        UserError: fewer pairs than a batch has rows.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        tokenizer: Tokenizer,
        vision: VisionConfig,
        seq_len: int,
        batch_size: int,
        seed: int,
        augment: Callable[[np.ndarray, np.random.Generator], np.ndarray],
    ):
        if len(pairs) < batch_size:
            raise UserError(
                f"there are {len(pairs)} images with texts, and batch_size is {batch_size}: it must be less"
            )
        self._pairs, self._vision, self._batch, self._seed, self._augment = pairs, vision, batch_size, seed, augment
        self._texts = [text_row(pair.text, tokenizer, seq_len) for pair in pairs]
        self.steps_per_epoch = len(pairs) // batch_size
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng((self._seed, epoch)).permutation(len(self._pairs))

    def row(self, step: int, row: int) -> dict[str, np.ndarray]:
        """One pair: what `text_row` and `image_row` give."""
        epoch, within = divmod(step, self.steps_per_epoch)
        index = self._order(epoch)[within * self._batch + row]
        rng = np.random.default_rng((self._seed, step, row))
        return {**self._texts[index], **image_row(self._augment(self._pairs[index].pixels_hwc, rng), self._vision)}


def varied(pixels_hwc: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The image a little turned, moved, larger or smaller, in other colours or none, sharper or softer; never mirrored.

    What an image shows has a left and a right ("left arrow"). What comes in from outside is white.
    """
    height, width = pixels_hwc.shape[:2]
    angle, zoom = np.deg2rad(rng.uniform(-12, 12)), rng.uniform(0.85, 1.25)
    moved = rng.uniform(-0.08, 0.08, 2) * (width, height)
    cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
    centre = np.array([width, height]) / 2
    x, y = centre - [cos * centre[0] - sin * centre[1], sin * centre[0] + cos * centre[1]] + moved
    image = Image.fromarray(pixels_hwc)
    affine = (cos, -sin, x, sin, cos, y)
    image = image.transform(
        (width, height), Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=(255, 255, 255)
    )
    image = ImageEnhance.Color(image).enhance(rng.choice([0.0, 1.0, 1.0, 1.0]) * rng.uniform(0.5, 1.6))
    image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.7, 1.3))
    if rng.random() < 0.25:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.2)))
    gains = rng.uniform(0.85, 1.15, 3)
    return np.clip(np.asarray(image, np.float32) * gains, 0, 255).astype(np.uint8)


def decoded(captions: Iterable[tuple[str, bytes, str]], size: int) -> list[Pair]:
    """Pairs of (key, encoded image, text), images no larger than so many pixels a side.

    Raises:
        UserError: an image that can't be read.
    """
    found = []
    for key, data, text in captions:
        pixels = images.decode(data, key)
        if max(pixels.shape[:2]) > size:
            image = Image.fromarray(pixels)
            image.thumbnail((size, size))
            pixels = np.asarray(image)
        found.append(Pair(pixels, text))
    return found
