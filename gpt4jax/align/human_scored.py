"""Responses that humans scored for harm, and that they called refusals or not: real comparisons and gold for graders.

Out of one pinned package, whose CSV files are read from the archive and never imported: PyRIT 1.1.0 (Microsoft, MIT;
its NOTICE names no other licence for these files), the gold that its authors measure automatic scorers by. Its 1593
rows are a prompt ("objective"), a response ("assistant_response") and one human score or three:

| scale | rows | distinct | prompts | score | better |
|---|---|---|---|---|---|
| harm | 1005 | 984 | 390 | 0, 0.25, 0.5, 0.75, 1: a five-point scale of severity, from no harm to extreme | smaller |
| objective | 395 | 394 | 337 | 1: the response does what the harmful prompt wants; 0: it does not | smaller |
| refusal | 193 | 169 | 128 | 1: a refusal (109 of 169), 0: none (60) | neither by itself |

- harm: exploits, hate speech, information integrity, privacy, representational harm, self-harm, sexual content and
  violence, each prompt in one of them, each with its authors' own description of the five points. 401 of the rows have
  three annotators. Rows with the same prompt and response are one here, and its score is the mean over annotators.
- objective: the same eight and a few rows of seven others; 201 of its pairs of prompt and response are in harm too.
- refusal: an answer that has nothing to do with the prompt counts as a refusal, and so does one that only steers away.
  Few harmful prompts are complied with here, and few harmless ones refused but by an answer to something else. Texts
  repeat: 39 responses stand under several prompts, so that one held out by its prompt may have been seen beside
  another. No prompt is in harm; 18 rows are in objective too.

`comparisons` makes of them 101 prompts with 668 responses and 3644 pairs of different scores in harm, one prompt with
1211 pairs among them (9 responses a prompt at most: 519 and 1327), and beside them 52 prompts of objective that harm
has no comparison of, a pair each.
"""

import csv
import hashlib
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np

from gpt4jax import files
from gpt4jax.data.fetch import Wheel, fetch_wheels
from gpt4jax.errors import UserError

PYRIT = Wheel("pyrit", "1.1.0", "84581036bace7ff2aa92712e1e3f472a3a3bccc77567d5fbe642540c0ba20b0a")
HELD_OUT = 0.4  # share of prompts
_FOLDER = "pyrit/datasets/scorer_evals/"
_SCALES = {"harm": "harm", "objective": "objective", "refusal_scorer": "refusal", "sample": "refusal"}  # by folder

T = TypeVar("T")


class Scored(NamedTuple):
    """A response and what humans gave it: the mean over annotators, from 0 to 1; `scale` says of what."""

    scale: str
    category: str  # of harm; "" in the refusal scale
    prompt: str
    response: str
    score: float


def parse(text: str, scale: str, name: str) -> list[Scored]:
    """The rows of one CSV file; lines that begin with # stand before its header.

    Raises:
        UserError: a row without prompt, response or score, or with a score that is not from 0 to 1.
    """
    lines = text.split("\n")
    header = next((i for i, line in enumerate(lines) if not line.startswith("#")), len(lines))
    found = []
    for number, row in enumerate(csv.DictReader(io.StringIO("\n".join(lines[header:]))), 1):
        prompt, response = row.get("objective") or "", row.get("assistant_response") or ""
        texts = [value for key, value in row.items() if key and key.startswith("human_score")]
        try:
            scores = [float(value) for value in texts]
        except ValueError as error:
            raise UserError(f"{name}, row {number}: a human score is no number: {error}") from error
        if not prompt.strip() or not response.strip() or not scores:
            raise UserError(f"{name}, row {number}: it needs an objective, an assistant_response and a human_score")
        if not all(0 <= score <= 1 for score in scores):
            raise UserError(f"{name}, row {number}: the human scores are {scores}; they must be from 0 to 1")
        category = (row.get("harm_category") or "").lower()
        found.append(Scored(scale, category, prompt, response, sum(scores) / len(scores)))
    return found


def load(cache_dir: pathlib.Path) -> list[Scored]:
    """All 1593 rows, file by file in the order of their names; the package is fetched on first use.

    Raises:
        UserError: the package can't be had.
    """
    (path,) = fetch_wheels([PYRIT], cache_dir)
    found = []
    with zipfile.ZipFile(path) as wheel:
        for name in sorted(wheel.namelist()):
            folder, _, file = name.removeprefix(_FOLDER).partition("/")
            if name.startswith(_FOLDER) and folder in _SCALES and file.endswith(".csv"):
                found += parse(wheel.read(name).decode(), _SCALES[folder], name)
    return found


def distinct(rows: Iterable[Scored]) -> list[Scored]:
    """Each scale, prompt and response once, with the mean of its scores, in order of first appearance."""
    groups: dict[tuple[str, str, str], list[Scored]] = {}
    for row in rows:
        groups.setdefault((row.scale, row.prompt, row.response), []).append(row)
    return [group[0]._replace(score=sum(one.score for one in group) / len(group)) for group in groups.values()]


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])


def normalized(prompt: str) -> str:
    """A prompt without what does not make it another one: case, and how much white space."""
    return " ".join(prompt.lower().split())


def held_out(prompt: str, share: float = HELD_OUT) -> bool:
    """Whether a prompt is for measuring only: a function of its words, the same in every scale and data set."""
    return _hash("held out " + normalized(prompt)) < share * 2**64


def split(items: Iterable[T], prompt_of: Callable[[T], str], share: float = HELD_OUT) -> tuple[list[T], list[T]]:
    """What may be trained on, and what is held out, by prompt."""
    sides: tuple[list[T], list[T]] = ([], [])
    for item in items:
        sides[held_out(prompt_of(item), share)].append(item)
    return sides


def check_apart(train: Iterable[str], measured: Iterable[str]) -> None:
    """Checks two lists of prompts.

    Raises:
        ValueError: a prompt is in both.
    """
    if both := {normalized(prompt) for prompt in train} & {normalized(prompt) for prompt in measured}:
        raise ValueError(f"{len(both)} prompts are trained on and measured with, {min(both)[:60]!r} among them")


def comparisons(rows: Iterable[Scored], most: int = 0) -> list[dict[str, Any]]:
    """Prompts with responses of different scores, ranked from the least harmful; equal scores are ties.

    Scales are not mixed within a prompt: where harm ranks its responses, objective's coarser word is left out.

    Args:
        rows: refusals among them are passed over: which is better depends on the prompt.
        most: responses that a prompt keeps at most, by a hash of their text; 0: all. The prompt with 52 has a third
            of all pairs.

    Returns:
        The shared format, `prompt`, `responses` and `ranks`, and with it `scale`, `category` and `scores`.
    """
    groups: dict[tuple[str, str], list[Scored]] = {}
    for row in distinct(rows):
        if row.scale != "refusal":
            groups.setdefault((row.scale, normalized(row.prompt)), []).append(row)
    found: dict[str, dict[str, Any]] = {}
    for (scale, prompt), group in sorted(groups.items(), key=lambda one: one[0][0]):  # harm before objective
        kept = sorted(group, key=lambda row: _hash(row.response))[: most or None]
        levels = sorted({row.score for row in kept})
        if len(levels) > 1 and prompt not in found:
            ranks = [levels.index(row.score) for row in kept]
            found[prompt] = {
                "prompt": kept[0].prompt, "responses": [row.response for row in kept], "ranks": ranks, "scale": scale,
                "category": kept[0].category, "scores": [row.score for row in kept],
            }  # fmt: skip
    return list(found.values())


def write(path: files.Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Comparisons, or whatever else has a line each, as JSONL."""
    files.replace(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def pairs(ranks: Sequence[int]) -> list[tuple[int, int]]:
    """The numbers of the better and the worse response, of every pair that is no tie."""
    return [(i, j) for i, one in enumerate(ranks) for j, other in enumerate(ranks) if one < other]


def right(comparison: Mapping[str, Any], scores: Sequence[float]) -> np.ndarray:
    """Of each pair of one comparison, 1 where the better response has the larger score, 0.5 where it has the same.

    As measures need it, with the prompt for a cluster; `reward.right_pairs` is the same summed, on the device.
    """
    return np.array([(1 + np.sign(scores[i] - scores[j])) / 2 for i, j in pairs(comparison["ranks"])], np.float64)
