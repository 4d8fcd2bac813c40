"""Rows of texts and images: what stands where, pieces, room, padding, and the sources by name."""

import io
import json

import ml_collections
import numpy as np
import pytest
from PIL import Image

from gpt4jax.data import interleaved, multimodal, rendered, tokenizer
from gpt4jax.data.interleaved import Document, InterleavedRows, Picture, Room, Text, pieces, tokenize
from gpt4jax.errors import UserError
from gpt4jax.model.vision import unpatchify
from gpt4jax.model.vision_config import VisionConfig

TOK = tokenizer.with_images(tokenizer.from_bytes())
END, BEGIN, PATCH, AFTER = 256, 257, 258, 259
VISION = VisionConfig("linear", PATCH, 4, 6)
RESAMPLED = VisionConfig("resampler", PATCH, 4, 6, resampler_len=3)


def picture(rng, height: int, width: int) -> tuple[Picture, np.ndarray]:
    pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return Picture(out.getvalue()), pixels


def random_document(rng, number: int, most: int = 6) -> tuple[Document, list[np.ndarray]]:
    parts, pixels = [], []
    for _ in range(rng.integers(1, most)):
        if rng.random() < 0.5:
            parts.append(
                Text("".join(rng.choice(list("abc d"), rng.integers(1, 40))), "task" if rng.random() < 0.3 else "")
            )
        else:
            rows = int(rng.integers(1, 4))
            one, own = picture(rng, 4 * rows, 4 * int(rng.integers(1, 6 // rows + 1)))
            parts.append(one)
            pixels.append(own)
    return Document(f"document {number}", tuple(parts)), pixels


@pytest.mark.parametrize("vision", [VISION, RESAMPLED])
def test_rows_hold_every_token_and_pixel_of_every_document_once(vision):
    rng = np.random.default_rng(0)
    made = [random_document(rng, i) for i in range(60)]
    documents = [document for document, _ in made]
    room = Room(64, 24, 4)
    rows = InterleavedRows(documents, TOK, vision, room, answers=True)
    streams: dict[int, list[int]] = {}
    images = []
    answers = 0
    for index in range(len(rows)):
        row = rows[index]
        assert {name: array.shape[0] for name, array in row.items()} == {
            **dict.fromkeys(("tokens", "targets", "segment_ids", "positions", "bytes", "answers"), 64),
            **dict.fromkeys(("patches", "image", "row", "column"), 24), "image_ids": 4,
        }  # fmt: skip
        number = 0
        for segment in range(1, row["segment_ids"].max() + 1):
            here = row["segment_ids"] == segment
            ids, targets = row["tokens"][here], row["targets"][here]
            np.testing.assert_array_equal(row["positions"][here], np.arange(here.sum()))
            np.testing.assert_array_equal(ids[1:], targets[:-1])
            streams.setdefault(len(streams), []).extend([*ids[:1], *targets])
            # Patches of the row's images in the order in which they stand in the text, as many as image tokens.
            runs = [len(run) for run in "".join("i" if token == PATCH else " " for token in ids).split()]
            for length in runs:
                number += 1
                mine = row["image"] == number
                assert length == vision.image_len(int(mine.sum()))
                shape = row["row"][mine].max() + 1, row["column"][mine].max() + 1
                images.append(unpatchify(row["patches"][mine], *shape, 4))
        assert row["image"].max() == number == (row["image_ids"] > 0).sum()
        for which in np.unique(row["answers"][row["answers"] > 0]):
            there = row["answers"] == which
            assert rows.tasks[which - 1] == "task" and not {BEGIN, PATCH, AFTER} & set(row["targets"][there].tolist())
            answers += 1
    tasks = [sum(part.task != "" for part in document.parts if isinstance(part, Text)) for document in documents]
    short = [len(tokens.ids) < 40 for tokens in tokenize(documents, TOK, vision)]
    assert sum(tasks) >= answers >= sum(n for n, whole in zip(tasks, short, strict=True) if whole) > 3  # none if cut
    wanted = []
    for document in documents:
        ids = [END]
        for part in document.parts:
            if isinstance(part, Text):
                ids += list(part.text.encode())
                continue
            width, height = Image.open(io.BytesIO(part.data)).size
            ids += [BEGIN, *[PATCH] * vision.image_len(width * height // 16), AFTER]
        wanted.append((*ids, END))
    # Pieces of one document begin with the last token of the piece before.
    whole = sorted(wanted)
    found = sorted(tuple(stream) for stream in streams.values() if stream[0] == END and stream[-1] == END)
    cut = [document for document in whole if len(document) > 65]
    assert [one for one in whole if len(one) <= 40] == [one for one in found if len(one) <= 40]
    assert sum(len(stream) - 1 for stream in streams.values()) == sum(len(one) - 1 for one in whole) and cut
    ours = sorted(image.tobytes() for image in images)
    assert ours == sorted(own.tobytes() for _, pixels in made for own in pixels)


def test_what_is_given_is_read_and_not_learnt():
    """A target of a question is no target, in a document that is cut too; all else stays as it was."""
    data, _ = picture(np.random.default_rng(0), 8, 8)
    parts = (data, Text("what?\n", given=True), Text("this\n"), Text("and?\n", given=True), Text("that\n", "task"))
    plain = tuple(part if isinstance(part, Picture) else part._replace(given=False) for part in parts)
    for length in (64, 9, 7):
        room = Room(length, 6, 1)
        given, learnt = (InterleavedRows([Document("a", each)], TOK, VISION, room) for each in (parts, plain))
        assert len(given) == len(learnt)
        said = b""
        for one, other in zip(given, learnt, strict=True):
            hidden = one["targets"] != other["targets"]
            assert (one["targets"][hidden] == PATCH).all() and not one["bytes"][hidden].any()
            said += bytes(other["targets"][hidden].tolist())
            for name in set(one) - {"targets", "bytes"}:
                np.testing.assert_array_equal(one[name], other[name])
        assert sorted(said) == sorted(b"what?\nand?\n")


def test_an_answer_rests_on_the_rationale_before_it_and_a_blind_document_has_none():
    data, _ = picture(np.random.default_rng(0), 4, 4)
    asked = Text("say\n", given=True), Text("ab\n", interleaved.RATIONALE)
    one, other = (Text("q\n", given=True), Text("1\n", "a")), (Text("r\n", given=True), Text("2\n", "b"))
    documents = [
        Document("w", (data, *one)), Document("x", (data, *asked, *one, *other)), Document("y", (data, *one, *asked)),
        Document("z", (data, *asked, *one)),
    ]  # fmt: skip
    rows = InterleavedRows(documents, TOK, VISION, Room(64, 6, 1), answers=True)
    assert rows.tasks == ("a", "description", "a", "b", "a", "description", "description", "a")
    assert rows.rests_on.tolist() == [0, 0, 2, 2, 0, 0, 0, 7]
    assert documents[1].blind().parts == (*one, *other) and documents[2].blind().parts == one


def test_no_piece_ends_inside_an_image():
    rng = np.random.default_rng(1)
    for trial in range(200):
        document, _ = random_document(rng, trial, 12)
        tokens = tokenize([document], TOK, VISION)[0]
        room = Room(int(rng.integers(10, 40)), int(rng.integers(6, 20)), int(rng.integers(1, 4)))
        found = list(pieces(0, tokens, room, "x"))
        assert sum(piece.length for piece in found) == len(tokens.ids) + 1
        inputs = np.concatenate([[END], tokens.ids])
        seen = 0
        for piece in found:
            own = inputs[piece.start : piece.start + piece.length]
            assert piece.length <= room.tokens and piece.patches <= room.patches and piece.images <= room.images
            assert (own == BEGIN).sum() >= piece.images == (own == AFTER).sum() and (
                own == PATCH
            ).sum() == piece.patches
            assert piece.image == seen
            seen += piece.images
        assert seen == len(tokens.spans)


def test_an_image_that_fits_no_row_is_said():
    document = Document("doc", (picture(np.random.default_rng(0), 8, 12)[0],))
    for room in (Room(7, 20, 2), Room(60, 5, 2)):
        with pytest.raises(UserError, match="doc: an image of 2 x 3 patches and 8 tokens fits no row"):
            InterleavedRows([document], TOK, VISION, room)


def test_a_mixed_stream_is_packed_with_little_padding():
    rng = np.random.default_rng(2)
    documents = [random_document(rng, i)[0] for i in range(300)]
    documents += [Document(f"text {i}", (Text("x" * int(rng.integers(1, 400))),)) for i in range(300)]
    assert InterleavedRows(documents, TOK, VISION, Room(256, 256, 32)).padding < 0.02


def test_the_plan_is_kept(tmp_path):
    documents = [random_document(np.random.default_rng(i), i)[0] for i in range(10)]
    path = interleaved.plan_path(tmp_path, TOK, VISION, Room(64, 24, 4), "train")
    one = InterleavedRows(documents, TOK, VISION, Room(64, 24, 4), path, answers=True)
    assert path.is_file() and path != interleaved.plan_path(tmp_path, TOK, VISION, Room(64, 25, 4), "train")
    two = InterleavedRows(documents, TOK, VISION, Room(64, 24, 4), path, answers=True)
    assert len(one) == len(two) and one.tasks == two.tasks
    for name, array in one[len(one) - 1].items():
        np.testing.assert_array_equal(array, two[len(two) - 1][name])


def options(dataset: str, **fields) -> ml_collections.ConfigDict:
    base = dict(
        dataset=dataset, tokenizer="bytes", seq_len=256, row_patches=0, row_images=0, image_feature="",
        text_feature="text",
        train_split="train", eval_split="eval", shard_bytes=2**20,
    )  # fmt: skip
    return ml_collections.ConfigDict(base | fields)


def test_drawn_pictures_and_their_questions_become_rows(tmp_path):
    data = multimodal.load(
        options("rendered:30", seq_len=512), VisionConfig("linear", PATCH, 16, 12), 260, tmp_path, lambda line: None
    )
    assert set(data.asked) == {"", "_blind"} and set(data.asked["_blind"].tasks) < set(data.asked[""].tasks)
    assert not (data.asked["_blind"][0]["tokens"] == PATCH).any() and any(
        (data.rows["train"][i]["tokens"] == PATCH).any() for i in range(len(data.rows["train"]))
    )
    row = data.asked[""][0]
    number = row["answers"].max()
    text = data.tokenizer.decode(row["targets"][row["answers"] == number].tolist())
    assert text.endswith("\n") and data.asked[""].tasks[number - 1] in (*rendered.TASKS, "description")
    with pytest.raises(UserError, match="vision.image_token is 300, and with tokenizer bytes it must be 258"):
        multimodal.load(options("rendered:30"), VisionConfig("linear", 300, 16, 12), 400, tmp_path, lambda line: None)
    with pytest.raises(UserError, match="260 ids with images, above model.vocab_size 258"):
        multimodal.load(options("rendered:30"), VisionConfig("linear", PATCH, 16, 12), 258, tmp_path, lambda line: None)


def test_each_held_out_question_stands_alone_and_others_follow_one_another(tmp_path):
    source = multimodal.prepare(options("rendered:60"), tmp_path)
    first = set()
    for split, documents in source.splits.items():
        for document in documents:
            texts = [part for part in document.parts if isinstance(part, Text)]
            tasks = [one.task for one in texts if one.task]
            asked = [task for task in tasks if task != interleaved.RATIONALE]
            assert [one.given for one in texts] == [True, False] * len(tasks)
            if split == "eval":
                assert len(asked) == 1 and len(tasks) == (1 if asked[0] == "read_text" else 2)
            else:
                assert len({one.text for one in texts if one.given}) == len(tasks)
                if interleaved.RATIONALE in tasks or tasks == ["read_text"]:  # and not blind
                    first.add(tasks[0])
    assert {interleaved.RATIONALE, "scene_cell", "read_text"} <= first  # some cells are asked about at once


def test_the_users_own_documents(tmp_path):
    folder = tmp_path / "own"
    (folder / "in").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(150):
        (folder / "in" / f"{i}.png").write_bytes(picture(rng, 8, 8)[0].data)
        (folder / "in" / f"{i}.txt").write_text(f"image {i}\nmore")
    lines = [{"text": f"<|image|> and <|image|>: {i}", "images": [f"in/{i}.png", "in/0.png"]} for i in range(150)]
    (folder / "docs.jsonl").write_text("\n".join(json.dumps(line) for line in [*lines, {"text": "no image"}]))
    (folder / "text.jsonl").write_text("\n".join(json.dumps({"text": f"plain {i}"}) for i in range(150)))
    name = f"interleaved:{folder / 'docs.jsonl'}+captioned:{folder}+jsonl:{folder / 'text.jsonl'}"
    source = multimodal.prepare(options(name), tmp_path / "cache")
    documents = [source.splits[split][i] for split in ("train", "eval") for i in range(len(source.splits[split]))]
    assert len(documents) == 151 + 150 + 150
    assert sum(isinstance(part, Picture) for document in documents for part in document.parts) == 2 * 150 + 150
    texts = {part.text for document in documents for part in document.parts if isinstance(part, Text)}
    assert {" and ", ": 7", "image 7", "plain 7", "no image"} <= texts


def test_too_few_documents_to_hold_some_out_are_said(tmp_path):
    (tmp_path / "docs.jsonl").write_text(json.dumps({"text": "one"}))
    with pytest.raises(UserError, match="has 1 documents, too few to hold out 5%"):
        multimodal.prepare(options(f"interleaved:{tmp_path / 'docs.jsonl'}"), tmp_path / "cache")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ({"text": "<|image|>", "images": []}, "1 times <|image|>, and there are 0 images"),
        ({"text": "a", "images": ["own.png"]}, "0 times"),
        ({"text": "<|image|>", "images": ["../x.png"]}, "lies outside"),
        ({"text": "<|image|>", "images": ["/etc/passwd"]}, "lies outside"),
        ({"text": "<|image|>", "images": ["link.png"]}, "lies outside"),
        ({"text": "<|image|>", "images": ["none.png"]}, "can't be read"),
        ({"images": []}, 'not an object of "text" and "images"'),
        ([1], 'not an object of "text" and "images"'),
    ],
)
def test_a_line_that_is_no_document_is_said(tmp_path, line, words):
    (tmp_path / "x.png").write_bytes(b"x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "own.png").write_bytes(b"x")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "x.png")
    (tmp_path / "in" / "docs.jsonl").write_text(json.dumps(line))
    with pytest.raises(UserError, match=words.replace("|", r"\|")):
        list(multimodal.jsonl(tmp_path / "in" / "docs.jsonl"))


def test_tokens_of_images_are_beside_the_tokenizers_own():
    assert TOK.vocab_size == 260 and TOK.encode_markup("a<|image|>b") == [97, BEGIN, 98]
    assert PATCH not in TOK.encode("<|image|><|image_patch|>")  # in a text these are ordinary letters
    assert TOK.decode([97, BEGIN, PATCH, AFTER, 98]) == "ab"
