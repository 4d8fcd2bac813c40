"""The vision benchmarks of GPT-4's announcement: their scores, their published files, and the numbers given there."""

import math
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gpt4jax.errors import UserError
from gpt4jax.evals import questions as multiple_choice
from gpt4jax.evals.calls import Malformed
from gpt4jax.evals.sources import Row


class Published(NamedTuple):
    """A benchmark's row of "Visual inputs" in OpenAI's GPT-4 page of 14 March 2023; scores in percent, None: no entry.

    Attributes:
        split, metric: what was scored, and how.
        gpt4, how: the score, and how the model was asked.
        few_shot, few_shot_by: the best that a model without training on the benchmark had before.
        best, best_by: the best of all, training on the benchmark included.
    """

    split: str
    metric: str
    gpt4: float
    how: str
    few_shot: float | None
    few_shot_by: str
    best: float
    best_by: str


_FLAMINGO = "Flamingo, 32-shot"
# The page alone has these; the report (arXiv 2303.08774) prints no scores of benchmarks with images.
PUBLISHED = {
    "VQAv2": Published("test-dev", "VQA accuracy", 77.2, "0-shot", 67.6, _FLAMINGO, 84.3, "PaLI-17B"),
    "TextVQA": Published("val", "VQA accuracy", 78.0, "0-shot", 37.9, _FLAMINGO, 71.8, "PaLI-17B"),
    "ChartQA": Published("test", "relaxed accuracy", 78.5, "chain of thought", None, "", 58.6, "Pix2Struct Large"),
    "AI2D": Published("test", "accuracy", 78.2, "0-shot", None, "", 42.1, "Pix2Struct Large"),
    "DocVQA": Published("test", "ANLS", 88.4, "0-shot, pixels only", None, "", 88.4, "ERNIE-Layout 2.0"),
    "InfographicVQA": Published("test", "ANLS", 75.1, "0-shot, pixels only", None, "", 61.2, "Applica.ai TILT"),
    "TVQA": Published("val", "accuracy", 87.3, "0-shot", None, "", 86.5, "MERLOT Reserve Large"),
    "LSMDC": Published(
        "test", "fill-in-the-blank accuracy", 45.7, "0-shot", 31.0, "MERLOT Reserve, 0-shot", 52.9, "MERLOT"
    ),
}


# VQA accuracy (Antol et al. 2015; the rules are those of the authors' evaluator, github.com/GT-Vision-Lab/VQA).

_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = {"a", "an", "the"}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'  # but no full stop, colon, apostrophe, "&", "%", "$", "#" or "*"
_CONTRACTIONS = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've
    he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't not've
    o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd somebody'd've somebody'll
    somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd
    there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
    what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
    would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
# Each as it is written with any one of its apostrophes missing. The authors' table also turns "somebody'd" into
# "somebodyd", which makes the same answers equal.
_RESTORED = {
    word[: mark.start()] + word[mark.end() :]: word for word in _CONTRACTIONS.split() for mark in re.finditer("'", word)
}


def vqa_normalised(answer: str) -> str:
    """An answer in lower case, with its number words as digits and without articles and most punctuation.

    A mark goes without a trace if it stands beside a space anywhere in the answer, or if any comma there stands between
    digits; otherwise a space replaces it. A full stop goes unless a digit follows. Only none to ten are numbers, and
    contractions get back one apostrophe that they lack.
    """
    comma_in_number = re.search(r"\d,\d", answer) is not None
    bare = answer
    for mark in _PUNCTUATION:
        beside_space = f"{mark} " in answer or f" {mark}" in answer
        bare = bare.replace(mark, "" if beside_space or comma_in_number else " ")
    bare = re.sub(r"\.(?!\d)", "", bare)
    words = (_NUMBERS.get(word, word) for word in bare.lower().split())
    return " ".join(_RESTORED.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(answer: str, humans: Sequence[str]) -> float:
    """min(1, matches / 3) against all humans but one, the mean over whom is left out: of VQAv2 and TextVQA, 0 to 1.

    As in the authors' evaluator, answers are normalised only where the humans' differ: against ten times "yes" the
    answer "Yes." is wrong. A model that writes as it likes is better scored by its `vqa_normalised` answer.

    Args:
        answer: the model's.
        humans: theirs, ten in these benchmarks; of fewer than four no answer can have all points.

    Raises:
        ValueError: no humans' answers.
    """
    if not humans:
        raise ValueError("there is no human's answer to compare with")
    answer, *others = (text.replace("\n", " ").replace("\t", " ").strip() for text in (answer, *humans))
    if len(set(others)) > 1:
        answer, *others = map(vqa_normalised, (answer, *others))
    equal = [one == answer for one in others]
    return math.fsum(min(1.0, (sum(equal) - left_out) / 3) for left_out in equal) / len(equal)


def levenshtein(a: str, b: str) -> int:
    """The fewest insertions, deletions and replacements of single characters that turn one text into the other."""
    row = list(range(len(b) + 1))  # row[j]: from the part of `a` read so far to the first j characters of `b`
    for i, char in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (char != other))
    return row[-1]


def anls(answer: str, golds: Sequence[str], threshold: float = 0.5) -> float:
    """Normalised Levenshtein similarity to the nearest gold answer, of DocVQA and InfographicVQA: 0 to 1.

    1 - NL if NL < threshold, otherwise 0, where NL is the distance by the length of the longer text, without
    regard to case and to the amount of white space (Biten et al. 2019).

    Raises:
        ValueError: no gold answers.
    """
    return max(_similarity(_plain(answer), _plain(gold), threshold) for gold in _some(golds))


def _similarity(a: str, b: str, threshold: float) -> float:
    distance = levenshtein(a, b) / max(len(a), len(b), 1)
    return 1 - distance if distance < threshold else 0.0


def relaxed_accuracy(answer: str, gold: str, tolerance: float = 0.05) -> float:
    """1 if a number is within `tolerance` of the gold one, relative to that, or if the texts are equal; else 0.

    Of ChartQA (Masry et al. 2022). Numbers may have commas between groups of three digits, and a percent
    sign divides them by 100, as in Pix2Struct's evaluation: "5%" is 0.05 and not 5. A gold 0 must be met exactly, and
    texts are compared without regard to case.
    """
    number, wanted = _number(answer), _number(gold)
    if number is None or wanted is None:
        return float(_plain(answer) == _plain(gold))
    # The last term is for rounding: 1.05 is within 5% of 1.
    return float(abs(number - wanted) <= tolerance * abs(wanted) * (1 + 1e-9))


def _number(text: str) -> float | None:
    text = text.strip()
    digits = text.removesuffix("%").strip()
    if re.fullmatch(r"[+-]?\d{1,3}(,\d{3})+(\.\d*)?", digits):
        digits = digits.replace(",", "")
    try:
        value = float(digits)
    except ValueError:
        return None
    if not math.isfinite(value):  # float() reads "nan" and "infinity", too
        return None
    return value / 100 if text.endswith("%") else value


def exact_match(answer: str, golds: Sequence[str]) -> float:
    """1 if the answer is one of the gold ones, without regard to case and to the amount of white space; else 0.

    Raises:
        ValueError: no gold answers.
    """
    return float(_plain(answer) in {_plain(gold) for gold in _some(golds)})


def _plain(text: str) -> str:
    return " ".join(text.lower().split())


def _some(golds: Sequence[str]) -> Sequence[str]:
    if not golds:
        raise ValueError("there is no gold answer to compare with")
    return golds


# The published files. Each parser takes what `json.load` gave.


class VisionItem(NamedTuple):
    """A question about an image.

    Attributes:
        id: distinct within its benchmark.
        image: its file, relative to the benchmark's folder of images.
        answers: those that count as right, or all that humans gave.
        group: what its score is reported under as well; "" for none.
        choices: of a multiple-choice question, of which `answers` has one.
    """

    id: str
    image: str
    question: str
    answers: tuple[str, ...]
    group: str = ""
    choices: tuple[str, ...] = ()


Parsed = tuple[list[VisionItem], list[Malformed]]


def vqav2(questions: Any, annotations: Any) -> Parsed:
    """VQAv2's two files of one split; a group is an answer's type: "yes/no", "number" or "other".

    Raises:
        UserError: a file that holds no list of questions or of annotations.
    """
    asked = list(_listed(questions, "questions", "VQAv2's questions"))
    ids = {str(row["question_id"]) for _, row in asked if isinstance(row, dict) and "question_id" in row}
    split = questions.get("data_subtype", "val2014")
    answered: dict[str, Row] = {}
    malformed = []
    for name, row in _listed(annotations, "annotations", "VQAv2's annotations"):
        if isinstance(row, str):
            malformed.append(Malformed(name, row))
        elif (question := str(row.get("question_id"))) not in ids:
            malformed.append(Malformed(name, f"there is no question {question}"))
        elif question in answered:
            malformed.append(Malformed(name, f"question {question} has an annotation before this one"))
        else:
            answered[question] = row

    def read(row: Row) -> VisionItem:
        annotation = answered.get(str(row["question_id"]))
        if annotation is None:
            raise ValueError("it has no annotation")
        if not isinstance(row["image_id"], int):
            raise ValueError(f"the image's number is {row['image_id']!r}")
        return _item(
            row["question_id"],
            f"COCO_{split}_{row['image_id']:012d}.jpg",
            row["question"],
            [answer["answer"] for answer in annotation["answers"]],
            annotation["answer_type"],
        )

    items, others = _parsed(asked, read)
    return items, malformed + others


def textvqa(file: Any) -> Parsed:
    """A file of TextVQA 0.5.1.

    Raises:
        UserError: it holds no list `data`.
    """
    return _parsed(
        _listed(file, "data", "TextVQA"),
        lambda row: _item(
            row["question_id"], _text(row["image_id"], "the image's id") + ".jpg", row["question"], row["answers"]
        ),
    )


def docvqa(file: Any) -> Parsed:
    """A file of DocVQA (task 1); its test split has no answers, so all its rows are malformed.

    Raises:
        UserError: it holds no list `data`.
    """
    return _parsed(
        _listed(file, "data", "DocVQA"),
        lambda row: _item(row["questionId"], row["image"], row["question"], row["answers"]),
    )


def infographicvqa(file: Any) -> Parsed:
    """A file of InfographicVQA, which is DocVQA's but for the name of the image: `image_local_name`, if it has that.

    Raises:
        UserError: it holds no list `data`.
    """
    return _parsed(
        _listed(file, "data", "InfographicVQA"),
        lambda row: _item(
            row["questionId"],
            row["image_local_name"] if "image_local_name" in row else row["image"],
            row["question"],
            row["answers"],
        ),
    )


def chartqa(rows: Any, group: str) -> Parsed:
    """One of ChartQA's two files of a split; `group` says which: "human" or "augmented".

    Its rows have no ids; theirs are the group and the place in the file, from 1.

    Raises:
        UserError: it is no list.
    """
    named = _listed({"rows": rows}, "rows", f"{group} ChartQA")
    numbered = (
        (name, row if isinstance(row, str) else {**row, "id": f"{group}:{i}"}) for i, (name, row) in enumerate(named, 1)
    )
    return _parsed(numbered, lambda row: _item(row["id"], row["imgname"], row["query"], [row["label"]], group))


def ai2d(files: Iterable[Any]) -> Parsed:
    """AI2D's files, one an image with all its questions, whose right answer is a number from 0.

    A group says what the answers are: "words", or "letters" (`abcLabel`) that the data set's second set of images has
    in place of the diagram's labels.

    Raises:
        UserError: one that holds no object `questions`.
    """

    def rows() -> Iterator[tuple[str, Row | str]]:
        for number, file in enumerate(files, 1):
            if not isinstance(file, Mapping) or not isinstance(file.get("questions"), Mapping):
                raise UserError(f"file {number} of AI2D holds no object `questions`: is it one of `questions/`?")
            for i, (question, row) in enumerate(file["questions"].items(), 1):
                name = f"AI2D file {number}:{i}"
                if isinstance(row, dict):
                    yield name, {**row, "question": question, "image": file.get("imageName")}
                else:
                    yield name, f"a JSON {type(row).__name__}, not an object"

    def read(row: Row) -> VisionItem:
        choices, right = row["answerTexts"], row["correctAnswer"]
        if not isinstance(choices, list) or not isinstance(right, int) or right not in range(len(choices)):
            raise ValueError(f"the answer {right!r} is none of its choices {choices!r}")
        item = _item(row["questionId"], row["image"], row["question"], [choices[right]])
        group = "letters" if row["abcLabel"] else "words"
        return item._replace(group=group, choices=tuple(_text(one, "a choice") for one in choices))

    return _parsed(rows(), read)


def _listed(file: Any, field: str, what: str) -> Iterator[tuple[str, Row | str]]:
    """Each row of a file's list behind its name; of one that is no object, why it can't be read."""
    if not isinstance(file, Mapping) or not isinstance(file.get(field), list):
        raise UserError(f"the file of {what} holds no list `{field}`: is it the one that the authors publish?")
    return (
        (f"{what}:{i}", row if isinstance(row, dict) else f"a JSON {type(row).__name__}, not an object")
        for i, row in enumerate(file[field], 1)
    )


def _parsed(rows: Iterable[tuple[str, Row | str]], read: Callable[[Row], VisionItem]) -> Parsed:
    """Items, no two with one id, and the names of rows that are none."""
    ids: set[str] = set()

    def new(row: Row) -> VisionItem:
        item = read(row)
        if item.id in ids:
            raise ValueError(f"its id {item.id} is that of a row before it")
        ids.add(item.id)
        return item

    parsed, malformed = multiple_choice.parse(rows, new)
    return [item.data for item in parsed], malformed


def _item(number: Any, image: Any, question: Any, answers: Any, group: str = "") -> VisionItem:
    """An item of fields as JSON has them.

    Raises:
        ValueError: one that isn't what it must be.
    """
    path = pathlib.PurePosixPath(_text(image, "the image"))
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(f"the image {image!r} is not within the folder of images")
    if not isinstance(number, int | str) or not str(number):
        raise ValueError(f"its id is {number!r}")
    if not isinstance(answers, list) or not all(isinstance(one, str) for one in answers):
        raise ValueError(f"its answers are no texts: {answers!r}")
    if not any(one.strip() for one in answers):
        raise ValueError("it has no answer")
    return VisionItem(str(number), str(image), _text(question, "the question"), tuple(answers), group)


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{what} is {value!r}, no text")
    return value
