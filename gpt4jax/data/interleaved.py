"""Documents of text and images in any order and number, packed into rows of one shape.

A document is a sequence of texts and images. In the row an image is its beginning's token, one patch token for each
token that the decoder has of it, and its end's token; the patches themselves lie beside the row, one image after
another. Rows have room for so many tokens, patches and images, and a piece of a document never ends inside an image.
"""

import functools
import hashlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt4jax import files
from gpt4jax.data import RandomAccess, images
from gpt4jax.data.packing import best_fit
from gpt4jax.data.tokenizer import END_OF_IMAGE, IMAGE, PATCH, Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.model.vision import patchify
from gpt4jax.model.vision_config import VisionConfig


class Text(NamedTuple):
    """A text; of an evaluation, with a `task` it is the answer that the model is to give there.

    What is `given`, such as a question, stands there to be read: the loss does not count it.
    """

    text: str
    task: str = ""
    given: bool = False


RATIONALE = "description"  # the task of a text on which the answers after it in its document rest


class Picture(NamedTuple):
    """An image by its encoded bytes, which nothing has looked into yet."""

    data: bytes


class Document(NamedTuple):
    """Texts and images in their order; `key` names it in errors."""

    key: str
    parts: tuple[Text | Picture, ...]

    def blind(self) -> "Document":
        """The same without its images, and without a rationale and what is given to ask for it."""
        kept: list[Text | Picture] = []
        for part in self.parts:
            if isinstance(part, Text) and part.task == RATIONALE:
                if kept and isinstance(kept[-1], Text) and kept[-1].given:
                    kept.pop()
            elif isinstance(part, Text):
                kept.append(part)
        return self._replace(parts=tuple(kept))


class Tokens(NamedTuple):
    """A document as tokens, and where in them its answers and images lie.

    Attributes:
        ids: of all its parts, without the end of text before and after it.
        answers: (first, end, task) in `ids`.
        given: (first, end) in `ids` of what is not learnt.
        spans: (first, end) in `ids` of each image, its beginning's and its end's token included.
        grids: rows and columns of patches of each image.
    """

    ids: np.ndarray
    answers: tuple[tuple[int, int, str], ...]
    given: tuple[tuple[int, int], ...]
    spans: tuple[tuple[int, int], ...]
    grids: tuple[tuple[int, int], ...]


def tokenize(documents: Sequence[Document], tokenizer: Tokenizer, vision: VisionConfig) -> list[Tokens]:
    """The tokens of documents, for a tokenizer with images (`tokenizer.with_images`).

    Raises:
        UserError: an image that can't be read.
    """
    texts = [part.text for document in documents for part in document.parts if isinstance(part, Text)]
    encoded = iter(tokenizer.encode_batch(texts))
    return [_with_images(document, encoded, tokenizer, vision) for document in documents]


def _with_images(document: Document, texts: Iterator[list[int]], tokenizer: Tokenizer, vision: VisionConfig) -> Tokens:
    begin, patch, end = (tokenizer.special[name] for name in (IMAGE, PATCH, END_OF_IMAGE))
    ids: list[int] = []
    answers, given, spans, grids = [], [], [], []
    for part in document.parts:
        first = len(ids)
        if isinstance(part, Text):
            ids += next(texts)
            if part.task:
                answers.append((first, len(ids), part.task))
            if part.given:
                given.append((first, len(ids)))
            continue
        height, width = images.size(part.data, document.key)
        rows, columns = images.grid(height, width, vision.patch_size, vision.max_patches)
        ids += [begin, *[patch] * vision.image_len(rows * columns), end]
        spans.append((first, len(ids)))
        grids.append((rows, columns))
    return Tokens(np.array(ids, np.int32), tuple(answers), tuple(given), tuple(spans), tuple(grids))


class Room(NamedTuple):
    """What a row has room for: pairs of a token and its target, patches, and images."""

    tokens: int
    patches: int
    images: int


class Piece(NamedTuple):
    """Pairs `start` to `start + length` of a document, with its images from `image` on, `images` of them."""

    document: int
    start: int
    length: int
    patches: int
    image: int
    images: int


def pieces(number: int, document: Tokens, room: Room, key: str) -> Iterator[Piece]:
    """A document cut into pieces that fit a row, each as long as can be, and none of them inside an image.

    Its pairs are (end of text, first token) to (last token, end of text): one more than it has tokens.

    Raises:
        UserError: an image that fits no row.
    """
    pairs = len(document.ids) + 1
    start = image = 0
    while start < pairs:
        end, patches, count = min(pairs, start + room.tokens), 0, 0
        for (first, last), (rows, columns) in zip(document.spans[image:], document.grids[image:], strict=True):
            # Pair i has token i - 1 as its input: an image's tokens are inputs of the pairs first + 1 to last.
            if first + 1 >= end:
                break
            if last + 1 > end or patches + rows * columns > room.patches or count == room.images:
                end = first + 1
                break
            patches, count = patches + rows * columns, count + 1
        if end == start:
            (first, last), (rows, columns) = document.spans[image], document.grids[image]
            raise UserError(
                f"{key}: an image of {rows} x {columns} patches and {last - first} tokens fits no row of "
                f"data.seq_len {room.tokens} tokens and data.row_patches {room.patches}: make these larger, or "
                "vision.max_patches smaller"
            )
        yield Piece(number, start, end - start, patches, image, count)
        start, image = end, image + count


class Plan(NamedTuple):
    """The pieces of each row: row r has those from row_offsets[r] to row_offsets[r + 1]; fields as `Piece` has."""

    pieces_p6: np.ndarray
    row_offsets: np.ndarray


def pack(found: Sequence[Piece], room: Room) -> Plan:
    """Pieces put into rows, each into the fullest row that has room for all of it.

    Those longer than a quarter of a row come first, the longest before all; the others by chance, or a row would have
    but pieces of one length, which is often to say of one kind, and a batch of a few rows no mixture.
    """
    if not found:
        return Plan(np.zeros((0, 6), np.int64), np.zeros(1, np.int64))
    pieces_p6 = np.array(found, np.int64)
    lengths = pieces_p6[:, 2]
    chance = np.random.default_rng(len(found)).permutation(len(found))
    order = np.lexsort((chance, -np.where(4 * lengths > room.tokens, lengths, 0)))
    rows = best_fit(lengths, room.tokens, (pieces_p6[:, [3, 5]], (room.patches, room.images)), order)
    return Plan(pieces_p6[[piece for row in rows for piece in row]], np.cumsum([0, *map(len, rows)]))


class InterleavedRows:
    """All rows of some documents, addressable at random. A row is read, and its images decoded, when it is asked for.

    Args:
        documents: at random; the same ones each time.
        tokenizer: one with images.
        vision: the frontend that the rows are for.
        room: of a row.
        plan_path: where the plan is kept, under a name that changes with all that it depends on.
        answers: whether rows say where answers are: then `tasks` has the task of each by its number less one, and
            `rests_on` the number of the rationale before it in its document, without which it is not right; 0: none.
    """

    def __init__(
        self,
        documents: RandomAccess[Document],
        tokenizer: Tokenizer,
        vision: VisionConfig,
        room: Room,
        plan_path: pathlib.Path | None = None,
        *,
        answers: bool = False,
        progress: Callable[[int, int], None] = lambda done, of: None,
    ):
        self._documents, self._tokenizer, self._vision, self.room = documents, tokenizer, vision, room
        self._token_bytes = tokenizer.token_bytes
        if plan_path is not None and plan_path.is_file():
            with np.load(plan_path) as kept:
                self._plan, texts = Plan(kept["pieces_p6"], kept["row_offsets"]), kept["tasks"]
                self._answer_offsets = kept["answer_offsets"]
        else:
            found: list[Piece] = []
            tasks: list[str] = []
            offsets = [0]
            for first in range(0, len(documents), _TOGETHER):
                some = [documents[i] for i in range(first, min(first + _TOGETHER, len(documents)))]
                for number, tokens in enumerate(tokenize(some, tokenizer, vision), first):
                    found += pieces(number, tokens, room, some[number - first].key)
                    tasks += [task for *_, task in tokens.answers]
                    offsets.append(len(tasks))
                progress(first + len(some), len(documents))
            self._plan, texts, self._answer_offsets = pack(found, room), np.array(tasks, str), np.array(offsets)
            if plan_path is not None:
                _keep(plan_path, self._plan, texts, self._answer_offsets)
        self.tasks: tuple[str, ...] = tuple(texts) if answers else ()
        self.rests_on = _rests_on(self.tasks, self._answer_offsets)
        self._answers = answers

    def __len__(self) -> int:
        return len(self._plan.row_offsets) - 1

    @property
    def padding(self) -> float:
        """The share of the rows' places that no token fills."""
        return 1 - float(self._plan.pieces_p6[:, 2].sum()) / max(1, len(self) * self.room.tokens)

    @property
    def patch_padding(self) -> float:
        """The share of the rows' patches that no image fills."""
        return 1 - float(self._plan.pieces_p6[:, 3].sum()) / max(1, len(self) * self.room.patches)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        """One row: tokens, targets, segment_ids, positions and bytes as text rows have them, int32 (T,), and images.

        A target that is not learnt is the patches' token, which counts in no loss.

        Images are patches uint8 (P, C); image, row and column int32 (P,); image_ids int32 (I,), as `vision.Images`.
        With answers also int32 (T,): the number of the answer that a target belongs to, from 1; 0: none.
        """
        index = index if index >= 0 else index + len(self)
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        row = empty_row(self.room, self._vision, self._answers)
        at = first_patch = first_image = 0
        begin, end = self._plan.row_offsets[index : index + 2]
        for segment, fields in enumerate(self._plan.pieces_p6[begin:end].tolist(), 1):
            piece = Piece(*fields)
            self._write_text(row, piece, segment, at)
            self._write_images(row, piece, first_patch, first_image)
            at, first_patch, first_image = at + piece.length, first_patch + piece.patches, first_image + piece.images
        return row

    def _write_text(self, row: dict[str, np.ndarray], piece: Piece, segment: int, at: int) -> None:
        document = self._document(piece.document)
        stream = np.concatenate([[self._tokenizer.end], document.ids, [self._tokenizer.end]])
        here = slice(at, at + piece.length)
        row["tokens"][here] = stream[piece.start : piece.start + piece.length]
        targets = stream[piece.start + 1 : piece.start + piece.length + 1].copy()
        for first, last in document.given:  # pair i has token i as its target
            targets[max(0, first - piece.start) : max(0, last - piece.start)] = self._vision.image_token
        row["targets"][here] = targets
        row["segment_ids"][here] = segment
        row["positions"][here] = np.arange(piece.length)
        row["bytes"][here] = self._token_bytes[targets]
        if self._answers:
            for number, (first, last, _) in enumerate(document.answers, 1 + self._answer_offsets[piece.document]):
                if first >= piece.start and last <= piece.start + piece.length:
                    row["answers"][at + first - piece.start : at + last - piece.start] = number

    def _write_images(self, row: dict[str, np.ndarray], piece: Piece, at: int, number: int) -> None:
        if not piece.images:
            return
        key, parts = self._documents[piece.document]
        pictures = [part.data for part in parts if isinstance(part, Picture)]
        for data in pictures[piece.image : piece.image + piece.images]:
            number += 1
            at += write_image(row, self._vision, images.decode(data, key), at, number)

    @functools.lru_cache(maxsize=64)  # noqa: B019 # lives as long as the rows do; a document's pieces are read together
    def _document(self, number: int) -> Tokens:
        return tokenize([self._documents[number]], self._tokenizer, self._vision)[0]


def _rests_on(tasks: Sequence[str], offsets: np.ndarray) -> np.ndarray:
    """For each answer the number, from 1, of its document's last rationale before it; 0: none."""
    of_document = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))[: len(tasks)]
    numbers = np.where(np.array(tasks, str) == RATIONALE, np.arange(1, len(tasks) + 1), 0)
    last = np.maximum.accumulate(np.concatenate([[0], numbers]))[:-1].astype(np.int64)  # before each, of any document
    return np.where(last > offsets[:-1][of_document], last, 0) if len(tasks) else np.zeros(0, np.int64)


def write_image(row: dict[str, np.ndarray], vision: VisionConfig, image_hwc: np.ndarray, at: int, number: int) -> int:
    """Writes an image's patches into a row from place `at` on, as its image `number`; gives how many there are."""
    fitted = images.fit(image_hwc, vision.patch_size, vision.max_patches)
    patches = patchify(fitted, vision.patch_size)
    columns = fitted.shape[1] // vision.patch_size
    here = slice(at, at + len(patches))
    row["patches"][here], row["image"][here] = patches, number
    row["row"][here], row["column"][here] = np.divmod(np.arange(len(patches)), columns)
    row["image_ids"][number - 1] = number
    return len(patches)


def empty_row(room: Room, vision: VisionConfig, answers: bool = False) -> dict[str, np.ndarray]:
    """A row of nothing, as `InterleavedRows` fills it."""
    names = ("tokens", "targets", "segment_ids", "positions", "bytes", *(["answers"] if answers else []))
    row = {name: np.zeros(room.tokens, np.int32) for name in names}
    row["patches"] = np.zeros((room.patches, vision.channels), np.uint8)
    row |= {name: np.zeros(room.patches, np.int32) for name in ("image", "row", "column")}
    row["image_ids"] = np.zeros(room.images, np.int32)
    return row


def plan_path(folder: pathlib.Path, tokenizer: Tokenizer, vision: VisionConfig, room: Room, split: str) -> pathlib.Path:
    """Where a split's plan is kept: by all that it depends on beside the documents, which the folder stands for."""
    sizes = (vision.patch_size, vision.max_patches, vision.image_len(1), vision.image_len(2))
    key = repr((tokenizer.fingerprint, sizes, tuple(room), _FORMAT))
    return folder / f"{split}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.npz"


_TOGETHER = 256  # documents that are tokenized at once
_FORMAT = 2  # of plans; a change makes new ones


def _keep(path: pathlib.Path, plan: Plan, tasks: np.ndarray, answer_offsets: np.ndarray) -> None:
    import io

    buffer = io.BytesIO()  # through memory: np.savez's own error on a full disk says neither that it is full nor where
    arrays: dict[str, Any] = {**plan._asdict(), "tasks": tasks, "answer_offsets": answer_offsets}
    np.savez(buffer, **arrays)
    files.replace(path, buffer.getvalue())
