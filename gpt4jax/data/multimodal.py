"""Data sets of text and images by name: TFDS builders for drawn pictures, captions and the user's own, and mixes.

Each ends as records {"key", "parts", "images"} in ArrayRecord files that TFDS prepared: `parts` is JSON, a list of
a text's [text, task, given] and null for the next image.
"""

import hashlib
import inspect
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from gpt4jax import files
from gpt4jax.data import RandomAccess, captioned, corpora, interleaved, is_utf8, rendered, tokenizer
from gpt4jax.data.interleaved import Document, InterleavedRows, Picture, Room, Text
from gpt4jax.data.text import TextData
from gpt4jax.errors import UserError
from gpt4jax.model.vision_config import VisionConfig

EVAL_PICTURES = 1000  # that are drawn for evaluation
MARKER = tokenizer.IMAGE
KINDS = "rendered:COUNT, emoji:google, emoji:twitter, captioned:FOLDER, interleaved:FILE.jsonl"


class ImageText(corpora.Builder):
    """Documents of texts and images, in a train and an eval split."""

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {"key": text(), "parts": text(), "images": tfds.features.Sequence(text())}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), description=self.__doc__,
            metadata=tfds.core.MetadataDict(),
        )  # fmt: skip

    def _generate_examples(self, evaluation: bool):
        for document in self.documents(evaluation):
            yield document.key, _record(document)

    def documents(self, evaluation: bool) -> Iterator[Document]:
        """The documents of a split."""
        raise NotImplementedError


class Rendered(ImageText):
    """Charts, words and scenes that are drawn, with questions whose answers are known (`gpt4jax.data.rendered`)."""

    def documents(self, evaluation: bool) -> Iterator[Document]:
        """So many pictures, or those for evaluation, none of which training shows.

        A picture of several things is described before it is asked about: the answers rest on what the model says it
        sees. Questions are given. In training several follow one another, in any order, and one picture of 20 is asked
        about unseen: a blind answer is then a guess. In evaluation each stands alone: no answer helps another.
        """
        count = EVAL_PICTURES if evaluation else int(self.builder_config.root)
        for i, picture in enumerate(rendered.pictures(0, count, evaluation)):
            if evaluation:
                for j, one in enumerate(picture.questions):
                    yield _asked(f"{picture.kind} {i}, question {j}", picture, [one])
            else:
                document = _asked(f"{picture.kind} {i}", picture, picture.questions, at_once=i % 2 == 0)
                yield document.blind() if i % 20 == 1 else document


def _asked(
    key: str, picture: rendered.Picture, questions: Sequence[rendered.Question], at_once: bool = False
) -> Document:
    """A picture, its description (of a word there is no more to say than what is asked), questions and answers.

    With `at_once` those questions come before the description that looking answers: what stands where is then read
    from the picture by a cell's name, wherever it is asked for, and answers of several steps read it so too.
    """

    def said(asked: Iterable[tuple[str, str, str]]) -> list[Text]:
        return [part for task, q, a in asked for part in (Text(f"{q}\n", given=True), Text(f"{a}\n", task))]

    first = [one for one in questions if one.task in rendered.AT_ONCE] if at_once else []
    if picture.kind != "word":
        first.append(rendered.Question(interleaved.RATIONALE, rendered.DESCRIBE, picture.description))
    return Document(key, (Picture(png(picture.pixels_hwc)), *said(dict.fromkeys([*first, *questions]))))


class Emoji(ImageText):
    """A vendor's emoji with their names (`gpt4jax.data.captioned`)."""

    def documents(self, evaluation: bool) -> Iterator[Document]:
        """Those whose hash says so."""
        vendor, _, cache_dir = self.builder_config.root.partition("\n")
        every = _captions(captioned.emoji(vendor, pathlib.Path(cache_dir)))
        return (document for document in every if _is_held_out(document) == evaluation)


class CaptionedFolder(ImageText):
    """Images of a folder, each with a text of the same name beside it."""

    kind = "captioned"

    def documents(self, evaluation: bool) -> Iterator[Document]:
        """Those whose hash says so."""
        every = documents_of(self.kind, pathlib.Path(self.builder_config.root))
        return (document for document in every if _is_held_out(document) == evaluation)


class Interleaved(CaptionedFolder):
    """A JSONL file of {"text", "images"}: in the text each "<|image|>" stands for the next image."""

    kind = "interleaved"


def png(pixels_hwc: np.ndarray) -> bytes:
    """Pixels as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels_hwc).save(out, "PNG", compress_level=1)
    return out.getvalue()


def of_text(key: str, text: str, images: Sequence[bytes], marker: str = MARKER) -> Document:
    """A document from a text with a marker for each image.

    Raises:
        UserError: another number of markers than of images.
    """
    first, *others = text.split(marker)
    if len(others) != len(images):
        raise UserError(f"{key}: the text has {len(others)} times {marker}, and there are {len(images)} images")
    parts: list[Text | Picture] = [Text(first)]
    for data, after in zip(images, others, strict=True):
        parts += [Picture(data), Text(after)]
    return Document(key, tuple(part for part in parts if isinstance(part, Picture) or part.text))


def jsonl(path: pathlib.Path) -> Iterator[Document]:
    """The documents of a JSONL file; images are paths beside it, and none of them leads away from there.

    Raises:
        UserError: a line that is no such object, an image that is not there, or markers that don't fit.
    """
    root = path.resolve().parent
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            text, names = row["text"], row.get("images", [])
            if not isinstance(text, str) or not all(isinstance(name, str) for name in names):
                raise TypeError("text is no text, or images are no names")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f'{where}: not an object of "text" and "images" ({error})') from error
        yield of_text(where, text, [captioned.read_bounded(captioned.beside(root, name, where)) for name in names])


def _record(document: Document) -> dict[str, Any]:
    parts = [None if isinstance(part, Picture) else part for part in document.parts]
    pictures = [part.data for part in document.parts if isinstance(part, Picture)]
    return {"key": document.key, "parts": json.dumps(parts), "images": pictures}


class Records(Sequence[Document]):
    """The documents of a prepared split."""

    def __init__(self, source: Any):
        self._source = source

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        record = self._source[index]
        pictures = iter(record["images"])
        parts = [
            Picture(bytes(next(pictures))) if part is None else Text(*part)
            for part in json.loads(bytes(record["parts"]))
        ]
        return Document(bytes(record["key"]).decode(), tuple(parts))


class Texts(Sequence[Document]):
    """Documents of text alone, as `corpora` has them."""

    def __init__(self, documents: corpora.Documents):
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index):
        text = self._documents[index]
        return Document(f"document {index}", (Text(text.decode() if is_utf8(text) else ""),))


class Captions(Sequence[Document]):
    """The images and texts of a TFDS set that was made elsewhere."""

    def __init__(self, source: Any, image: str, text: str):
        self._source, self._image, self._text = source, image, text

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index):
        item = self._source[index]
        text = item[self._text]
        text = text if isinstance(text, str) else bytes(text).decode(errors="replace")
        return Document(f"record {index}", (Picture(png(np.asarray(item[self._image], np.uint8))), Text(text)))


class Joined(Sequence[Document]):
    """Several sources one after another."""

    def __init__(self, sources: Sequence[Sequence[Document]]):
        self._sources = sources
        self._first = np.cumsum([0, *map(len, sources)])

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, index):
        which = int(np.searchsorted(self._first, index, side="right")) - 1
        return self._sources[which][index - int(self._first[which])]


class Blind(Sequence[Document]):
    """The same documents without their images."""

    def __init__(self, documents: Sequence[Document]):
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def __getitem__(self, index):
        return self._documents[index].blind()


class Source(NamedTuple):
    """The documents of each split, and a sha256 of all that decides them."""

    splits: Mapping[str, Sequence[Document]]
    fingerprint: str


def prepare(options: Any, cache_dir: pathlib.Path) -> Source:
    """The documents that `data.dataset` names, those of several names with "+" between them together.

    Raises:
        UserError: no such data set.
    """
    sources = [_one(name, options, cache_dir) for name in options.dataset.split("+")]
    splits = {split: Joined([source.splits[split] for source in sources]) for split in ("train", "eval")}
    return Source(splits, hashlib.sha256("".join(source.fingerprint for source in sources).encode()).hexdigest())


def _one(name: str, options: Any, cache_dir: pathlib.Path) -> Source:
    kind, _, rest = name.partition(":")
    if kind == "rendered":
        if not (rest.isascii() and rest.isdecimal() and int(rest)):
            raise UserError(f"data.dataset {name}: say how many pictures to train on, such as rendered:40000")
        digest = hashlib.sha256((rest + inspect.getsource(rendered) + inspect.getsource(Rendered)).encode()).hexdigest()
        builder = corpora.built(Rendered, rest, digest, cache_dir)
    elif kind == "emoji":
        digest = hashlib.sha256((rest + inspect.getsource(captioned)).encode()).hexdigest()
        builder = corpora.built(Emoji, f"{rest}\n{cache_dir}", digest, cache_dir)
    elif kind in ("captioned", "interleaved") and rest:
        builder = _of_files(kind, files.local_copy(files.user_path(rest), beside=True).resolve(), cache_dir)
    else:
        own = options.copy_and_resolve_references().unlock()
        own.dataset = name
        if options.image_feature and ":" not in name:
            return _tfds_set(own)
        corpus = corpora.prepare(own, cache_dir)
        return Source({split: Texts(documents) for split, documents in corpus.splits.items()}, corpus.fingerprint)
    splits = {split: Records(builder.as_data_source(split=split)) for split in ("train", "eval")}
    return Source(splits, builder.builder_config.fingerprint)


def _of_files(kind: str, path: pathlib.Path, cache_dir: pathlib.Path) -> tfds.core.DatasetBuilder:
    if not path.exists():
        raise UserError(f"data.dataset: there is no file or folder {path}")
    found = documents_of(kind, path)
    digest = hashlib.sha256()
    counts = {True: 0, False: 0}
    for document in found:
        digest.update(hashlib.sha256(repr(document).encode()).digest())
        counts[_is_held_out(document)] += 1
    if not all(counts.values()):
        raise UserError(
            f"{path} has {sum(counts.values())} documents, too few to hold out {corpora.HELD_OUT_PERCENT}% by hash for "
            "evaluation: use more"
        )
    return corpora.built(
        CaptionedFolder if kind == "captioned" else Interleaved, str(path), digest.hexdigest(), cache_dir
    )


def documents_of(kind: str, path: pathlib.Path) -> Iterator[Document]:
    """The documents of a folder with captions ("captioned"), or of a JSONL file ("interleaved")."""
    return _captions(captioned.own(path)) if kind == "captioned" else jsonl(path)


def _captions(images: Sequence[captioned.Captioned]) -> Iterator[Document]:
    return (Document(one.key, (Picture(one.data), Text(one.caption))) for one in images)


def _is_held_out(document: Document) -> bool:
    """By a hash of what is in it."""
    return corpora.held_out(hashlib.sha256(repr(document.parts).encode()).hexdigest())


def _tfds_set(options: Any) -> Source:
    builder = corpora.tfds_builder(options)
    for feature in (options.image_feature, options.text_feature):
        if feature not in builder.info.features:
            raise UserError(
                f"TFDS set {options.dataset!r} has no feature {feature!r} but {', '.join(builder.info.features)}"
            )
    wanted = (("train", options.train_split), ("eval", options.eval_split))
    splits = {
        ours: Captions(corpora.tfds_source(builder, ours, theirs), options.image_feature, options.text_feature)
        for ours, theirs in wanted
    }
    facts = [builder.info.full_name, options.image_feature, options.text_feature, *map(str, wanted)]
    return Source(splits, hashlib.sha256("\n".join(facts).encode()).hexdigest())


def load(
    options: Any, vision: VisionConfig, vocab_size: int, cache_dir: pathlib.Path, say: Callable[[str], None]
) -> TextData:
    """Tokenizer and rows of documents with images; what `text.load` is for text alone.

    Raises:
        UserError: no such data set or tokenizer, a vocabulary above the model's, or another image token than its.
    """
    source = prepare(options, cache_dir)

    def train_texts() -> Iterator[str]:
        size = 0
        for document in _spread(source.splits["train"]):
            for part in document.parts:
                if isinstance(part, Text):
                    yield part.text
                    size += len(part.text)
            if size >= tokenizer.BPE_TRAIN_BYTES:
                return

    tok = tokenizer.with_images(tokenizer.get(options.tokenizer, cache_dir, train_texts, source.fingerprint))
    check_tokenizer(tok, vision, vocab_size)
    space = room(options)
    folder = cache_dir / "interleaved" / source.fingerprint[:16]
    facts: dict[str, Any] = {"dataset": options.dataset, "fingerprint": source.fingerprint, "tokenizer": tok.name}
    facts["tokenizer_fingerprint"] = tok.fingerprint
    rows: dict[str, InterleavedRows] = {}
    for split, documents in source.splits.items():
        path = interleaved.plan_path(folder, tok, vision, space, split)
        rows[split] = InterleavedRows(documents, tok, vision, space, path, answers=split == "eval")
        facts[split] = {"documents": len(documents), "rows": len(rows[split])}
        say(
            f"{options.dataset} {split}: {len(documents):,} documents, {len(rows[split]):,} rows of {space.tokens} "
            f"tokens of {tok.name} ({rows[split].padding:.1%} padding) and {space.patches} patches "
            f"({rows[split].patch_padding:.0%} padding)"
        )
    asked: dict[str, RandomAccess[dict[str, np.ndarray]]] = {}
    if rows["eval"].tasks:
        blind = Blind(source.splits["eval"])
        path = interleaved.plan_path(folder, tok, vision, space, "blind")
        asked = {"": rows["eval"], "_blind": InterleavedRows(blind, tok, vision, space, path, answers=True)}
    return TextData(tok, rows, {}, facts, asked)


def room(options: Any) -> Room:
    """What a row of the group `data` of a config has room for."""
    return Room(
        options.seq_len, options.row_patches or options.seq_len, options.row_images or max(1, options.seq_len // 32)
    )


def _spread(documents: Sequence[Document]) -> Iterator[Document]:
    """Documents from all over, so that a vocabulary knows every source of a mix."""
    count = len(documents)
    stride = next(step for step in (7919, 104_729, 1) if count % step or step == 1)
    return (documents[i * stride % count] for i in range(count))


def check_tokenizer(tok: tokenizer.Tokenizer, vision: VisionConfig, vocab_size: int) -> None:
    """Checks that a tokenizer with images is the decoder's.

    Raises:
        UserError: it has more ids than that, or another id for a patch.
    """
    if tok.vocab_size > vocab_size:
        raise UserError(
            f"tokenizer {tok.name} has {tok.vocab_size} ids with images, above model.vocab_size {vocab_size}"
        )
    if tok.special[tokenizer.PATCH] != vision.image_token:
        raise UserError(
            f"vision.image_token is {vision.image_token}, and with tokenizer {tok.name} it must be "
            f"{tok.special[tokenizer.PATCH]}"
        )
