"""The vision benchmarks' scores by hand and by brute force, and rows as their authors publish them."""

import functools
import itertools
import random

import pytest

from gpt4jax.errors import UserError
from gpt4jax.evals import vision_scoring as vision
from gpt4jax.evals.vision_scoring import VisionItem


@pytest.mark.parametrize(
    ("answer", "normal"),
    [
        ("Yes", "yes"),
        ("  the   Cat and a dog ", "cat and dog"),
        ("An", ""),
        ("another theory", "another theory"),  # articles are whole words
        ("none", "0"),
        ("Zero one TEN eleven", "0 1 10 eleven"),
        ("twofold", "twofold"),
        # A mark between letters becomes a space, one beside a space goes, and so does any where a number has a comma.
        ("t-shirt", "t shirt"),
        ("red,blue", "red blue"),
        ("red, blue", "red blue"),
        ("red -blue", "red blue"),
        ("a-b - c-d", "ab cd"),  # the rule looks at the whole answer: one "-" beside a space decides for all
        ("1,000", "1000"),
        ("1,000-2,000", "10002000"),
        ("1, 000", "1 000"),
        ("yes!", "yes"),
        ("what?now", "what now"),
        ("(left)", "left"),
        ("a/the", ""),
        # Full stops go unless a digit follows; other signs stay.
        ("U.S.", "us"),
        ("3.5", "3.5"),
        (".5", ".5"),
        ("5.", "5"),
        ("v.2", "v.2"),
        ("10:30", "10:30"),
        ("$5 & 10%", "$5 & 10%"),
        # Contractions get one missing apostrophe back; those that are words of their own stay.
        ("dont", "don't"),
        ("don't", "don't"),
        ("Cant", "can't"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("couldntve", "couldntve"),
        ("yall'd've", "y'all'd've"),
        ("its ill well shell", "its ill well shell"),
        ("mans", "mans"),
    ],
)
def test_answers_are_normalised_by_the_authors_rules(answer, normal):
    assert vision.vqa_normalised(answer) == normal


def test_vqa_accuracy_of_ten_humans_by_hand():
    """K of ten: each of the k sees k - 1 others, each other one k; a third of a point for each, at most one."""
    for k, expected in {0: 0, 1: 0.9 / 3, 2: (2 * 1 + 8 * 2) / 30, 3: (3 * 2 + 7 * 3) / 30, 4: 1, 9: 1}.items():
        assert vision.vqa_accuracy("cat", ["Cat."] * k + ["dog"] * (10 - k)) == pytest.approx(expected, abs=1e-12)


def test_vqa_accuracy_is_the_mean_over_subsets_without_one_human():
    rng = random.Random(0)
    for _ in range(300):
        humans = [rng.choice("xyz") for _ in range(rng.randint(2, 12))]
        subsets = list(itertools.combinations(humans, len(humans) - 1))
        expected = sum(min(subset.count("x") / 3, 1) for subset in subsets) / len(subsets)
        assert vision.vqa_accuracy("x", humans) == pytest.approx(expected, abs=1e-12)
    with pytest.raises(ValueError, match="no human's answer"):
        vision.vqa_accuracy("x", [])


def test_answers_of_humans_who_agree_are_taken_as_they_are():
    assert vision.vqa_accuracy("Yes.", ["yes"] * 10) == 0
    assert vision.vqa_accuracy(vision.vqa_normalised("Yes."), ["yes"] * 10) == 1
    assert vision.vqa_accuracy("\tthe cat\n", ["the cat"] * 10) == 1  # but for white space at the ends
    assert vision.vqa_accuracy("Yes.", ["yes"] * 9 + ["no"]) == 1
    assert vision.vqa_accuracy("The two", ["2"] * 5 + ["two."] * 5) == 1


def test_levenshtein_is_its_recursive_definition():
    @functools.cache
    def by_definition(a: str, b: str) -> int:
        if not a or not b:
            return len(a) + len(b)
        replaced = by_definition(a[1:], b[1:]) + (a[0] != b[0])
        return min(replaced, by_definition(a[1:], b) + 1, by_definition(a, b[1:]) + 1)

    texts = ["".join(letters) for size in range(5) for letters in itertools.product("ab", repeat=size)]
    for a, b in itertools.product(texts, texts):
        assert vision.levenshtein(a, b) == by_definition(a, b)
    assert vision.levenshtein("kitten", "sitting") == 3 and vision.levenshtein("Saturday", "Sunday") == 3


@pytest.mark.parametrize(
    ("answer", "golds", "expected"),
    [
        ("Hello  World ", ["hello world"], 1),
        ("hella", ["hello"], 0.8),
        ("helloworld", ["hello world"], 10 / 11),
        ("abxx", ["abcd"], 0),  # half of it is wrong: not below the threshold
        ("abcx", ["zzzz", "abcd", "abc"], 0.75),  # the nearest one counts, "abc" by the longer text, too
        ("", ["a"], 0),
        ("", [""], 1),
        ("12", ["1"], 0),
    ],
)
def test_anls_by_hand(answer, golds, expected):
    assert vision.anls(answer, golds) == pytest.approx(expected, abs=1e-12)


def test_anls_has_a_threshold():
    assert vision.anls("abxx", ["abcd"], threshold=0.51) == 0.5
    assert vision.anls("hella", ["hello"], threshold=0.2) == 0
    with pytest.raises(ValueError, match="no gold answer"):
        vision.anls("x", [])


@pytest.mark.parametrize(
    ("answer", "gold", "right"),
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("1.05", "1", True),  # which is 0.05000000000000004 off in floating point
        ("100", "105", True),  # relative to the gold one: 5 of 105 is less than 5%
        ("100", "95", False),
        ("-105", "-100", True),
        ("-100", "100", False),
        ("0", "0", True),
        ("0.0", "0", True),
        ("0.001", "0", False),
        ("1,234", "1234", True),
        ("1,234,567.8", "1234567.8", True),
        ("1,23", "123", False),  # no group of three digits
        ("1,23", "1,23", True),  # but the same text
        ("5%", "5.2%", True),
        ("5 %", "0.05", True),
        ("5%", "5", False),
        (" 2019", "2019 ", True),
        ("Blue", "blue", True),
        ("blue", "red", False),
        ("blue", "5", False),
        ("", "5", False),
        ("nan", "nan", True),  # a text
        ("nan", "5", False),
        ("inf", "1e308", False),
    ],
)
def test_relaxed_accuracy_by_hand(answer, gold, right):
    assert vision.relaxed_accuracy(answer, gold) == right


def test_exact_match():
    assert vision.exact_match(" The  Sun ", ["moon", "the sun"]) == 1
    assert vision.exact_match("sun", ["the sun"]) == 0
    with pytest.raises(ValueError, match="no gold answer"):
        vision.exact_match("x", [])


def test_vqav2_joins_its_two_files():
    def answers(*texts):
        return [{"answer": text, "answer_confidence": "yes", "answer_id": i} for i, text in enumerate(texts, 1)]

    def annotation(number, **other):
        return {"question_id": number, "image_id": 262148, "question_type": "what", "answer_type": "other",
                "answers": answers("down", "table"), **other}  # fmt: skip

    asked = {
        "data_type": "mscoco",
        "data_subtype": "val2014",
        "questions": [
            {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
            {"image_id": 262148, "question": "Unanswered?", "question_id": 262148001},
            {"image_id": 262148, "question": "Where is he looking?", "question_id": 262148000},
            {"image_id": "262148", "question": "Whose image?", "question_id": 262148002},
            7,
        ],
    }
    marked = {"annotations": [annotation(262148000), annotation(262148000), annotation(9), annotation(262148002), "x"]}
    items, malformed = vision.vqav2(asked, marked)
    image = "COCO_val2014_000000262148.jpg"
    assert items == [VisionItem("262148000", image, "Where is he looking?", ("down", "table"), "other")]
    assert [(bad.id, bad.reason) for bad in malformed] == [
        ("VQAv2's annotations:2", "question 262148000 has an annotation before this one"),
        ("VQAv2's annotations:3", "there is no question 9"),
        ("VQAv2's annotations:5", "a JSON str, not an object"),
        ("VQAv2's questions:2", "it has no annotation"),
        ("VQAv2's questions:3", "its id 262148000 is that of a row before it"),
        ("VQAv2's questions:4", "the image's number is '262148'"),
        ("VQAv2's questions:5", "a JSON int, not an object"),
    ]
    (item,), _ = vision.vqav2({**asked, "data_subtype": "train2014"}, marked)
    assert item.image == "COCO_train2014_000000262148.jpg"


def test_textvqa():
    row = {"question": "what is the brand?", "image_id": "003a8ae2ef43b901", "image_classes": ["Phone"],
           "image_width": 1024, "answers": ["nokia"] * 9 + [""], "question_id": 34602, "set_name": "val"}  # fmt: skip
    file = {
        "dataset_type": "val",
        "dataset_version": "0.5.1",
        "data": [row, {**row, "question_id": 1, "image_id": None}],
    }
    items, malformed = vision.textvqa(file)
    assert items == [VisionItem("34602", "003a8ae2ef43b901.jpg", "what is the brand?", ("nokia",) * 9 + ("",))]
    assert malformed == [("TextVQA:2", "the image's id is None, no text")]


def test_docvqa_and_infographicvqa():
    row = {"questionId": 49153, "question": "What is the ‘actual’ value?", "image": "documents/pybv0228_81.png",
           "docId": 14465, "answers": ["0.28"], "data_split": "val"}  # fmt: skip
    hidden = {key: value for key, value in row.items() if key != "answers"}
    wrong = [{"image": "../secret.png"}, {"image": "/etc/passwd"}, {"question": " "}, {"answers": []}, {"answers": [1]}]
    file = {"dataset_name": "docvqa", "data": [row, hidden, *({**row, "questionId": 0, **other} for other in wrong)]}
    items, malformed = vision.docvqa(file)
    assert items == [VisionItem("49153", row["image"], row["question"], ("0.28",))]
    assert [bad.id for bad in malformed] == [f"DocVQA:{i}" for i in range(2, 8)]
    words = ["lacks the field 'answers'", "not within the folder", "not within the folder", "the question is ' '",
             "no answer", "no texts"]  # fmt: skip
    assert all(word in bad.reason for word, bad in zip(words, malformed, strict=True))

    info = {"questionId": 98313, "question": "How many?", "image_local_name": "37313.jpeg", "answers": ["4", "four"]}
    unlike = {**row, "image": "1.png"}
    assert vision.infographicvqa({"data": [info, unlike]}) == (
        [
            VisionItem("98313", "37313.jpeg", "How many?", ("4", "four")),
            VisionItem("49153", "1.png", row["question"], ("0.28",)),
        ],
        [],
    )


def test_chartqa_numbers_its_rows():
    rows = [{"imgname": "41699051005347.png", "query": "How many bars?", "label": "14"}, {"imgname": "1.png"}, [],
            {"imgname": "2.png", "query": "Which?", "label": "Yes"}]  # fmt: skip
    items, malformed = vision.chartqa(rows, "human")
    assert items == [
        VisionItem("human:1", "41699051005347.png", "How many bars?", ("14",), "human"),
        VisionItem("human:4", "2.png", "Which?", ("Yes",), "human"),
    ]
    assert malformed == [
        ("human ChartQA:2", "it lacks the field 'query'"), ("human ChartQA:3", "a JSON list, not an object")
    ]  # fmt: skip


def test_ai2d_has_a_file_for_each_image():
    def question(number, **other):
        return {"abcLabel": False, "answerTexts": ["fox", "rabbit", "grass", "owl"], "correctAnswer": 1,
                "questionId": f"1.png-{number}", **other}  # fmt: skip

    file = {
        "imageName": "1.png",
        "questions": {
            "Who eats grass?": question(0),
            "Which letter is the owl's?": question(1, abcLabel=True, answerTexts=["A", "B", "C", "D"]),
            "Whose answer is none?": question(2, correctAnswer=4),
            "Whose choice is empty?": question(3, answerTexts=["fox", "rabbit", ""]),
            "Who is it?": "fox",
        },
    }
    items, malformed = vision.ai2d([file])
    choices = ("fox", "rabbit", "grass", "owl")
    assert items == [
        VisionItem("1.png-0", "1.png", "Who eats grass?", ("rabbit",), "words", choices),
        VisionItem("1.png-1", "1.png", "Which letter is the owl's?", ("B",), "letters", ("A", "B", "C", "D")),
    ]
    assert [bad.id for bad in malformed] == [f"AI2D file 1:{i}" for i in (3, 4, 5)]
    assert "the answer 4 is none of its choices" in malformed[0].reason and "a choice is ''" in malformed[1].reason


@pytest.mark.parametrize(
    ("parse", "words"),
    [
        (lambda: vision.textvqa([]), "TextVQA holds no list `data`"),
        (lambda: vision.docvqa({"data": {}}), "DocVQA holds no list `data`"),
        (lambda: vision.infographicvqa(None), "InfographicVQA holds no list `data`"),
        (lambda: vision.vqav2({"questions": []}, {"questions": []}), "VQAv2's annotations holds no list `annotations`"),
        (lambda: vision.vqav2([], {"annotations": []}), "VQAv2's questions holds no list `questions`"),
        (lambda: vision.chartqa({"rows": []}, "human"), "human ChartQA holds no list"),
        (lambda: vision.ai2d([{"questions": []}]), "file 1 of AI2D holds no object `questions`"),
    ],
)
def test_another_file_is_refused_in_words(parse, words):
    with pytest.raises(UserError, match=words):
        parse()


def test_the_published_table_is_whole():
    assert list(vision.PUBLISHED) == [
        "VQAv2", "TextVQA", "ChartQA", "AI2D", "DocVQA", "InfographicVQA", "TVQA", "LSMDC"
    ]  # fmt: skip
    for row in vision.PUBLISHED.values():
        assert all(1 < score < 100 for score in (row.gpt4, row.best, row.few_shot) if score is not None)
        assert (row.few_shot is None) == (not row.few_shot_by) and row.best_by
