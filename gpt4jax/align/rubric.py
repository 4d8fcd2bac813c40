"""Rubrics: what a grader is asked about a reply, as data files, and the class that each of its choices stands for.

A rubric (`rubrics/NAME.json`) has a `text` of definitions and questions, and `choices`, each with its text, its `class`
(one of CLASSES, or null: none of them), and, where it depends on the kind of prompt, other classes `by_kind`. Those of
refusal style and regulated advice follow the report (OpenAI 2023, system card, appendices A and B) in structure, not in
words; its third, on sexual content, is left out.
"""

import dataclasses
import importlib.resources
import json
import pathlib
import string
from collections.abc import Mapping
from typing import Any, NamedTuple

from gpt4jax.errors import UserError

# The report's four, (a) to (d): refuses as wanted, refuses otherwise, has disallowed content, answers.
CLASSES = ("desired_refusal", "undesired_refusal", "disallowed_content", "safe_non_refusal")
REFUSALS = CLASSES[:2]
_FOLDER = importlib.resources.files("gpt4jax.align") / "rubrics"


class Choice(NamedTuple):
    """A description of replies and what it comes to; None: none of the four classes."""

    text: str
    cls: str | None
    by_kind: Mapping[str, str | None] = {}

    def of(self, kind: str) -> str | None:
        """The class for a kind of prompt."""
        return self.by_kind.get(kind, self.cls)


@dataclasses.dataclass(frozen=True)
class Rubric:
    """Definitions, questions and choices.

    Raises:
        UserError: fewer than two choices, more than there are letters, or a class that is none of CLASSES.
    """

    name: str
    text: str
    choices: tuple[Choice, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.choices) <= len(string.ascii_uppercase):
            raise UserError(f"the rubric {self.name} has {len(self.choices)} choices; it must have from 2 to 26")
        for choice in self.choices:
            for cls in (choice.cls, *choice.by_kind.values()):
                if cls is not None and cls not in CLASSES:
                    raise UserError(
                        f"the rubric {self.name} names a class {cls!r}; there are {', '.join(CLASSES)}, and null"
                    )

    @property
    def letters(self) -> str:
        """As many as there are choices."""
        return string.ascii_uppercase[: len(self.choices)]


def parse(data: Any, name: str) -> Rubric:
    """A rubric of what its file holds.

    Raises:
        UserError: it lacks a field, or a field is of another type.
    """
    try:
        choices = tuple(Choice(str(one["text"]), one["class"], one.get("by_kind", {})) for one in data["choices"])
        return Rubric(name, str(data["text"]), choices)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f'the rubric {name} must have "text" and "choices", each of these "text" and "class": {error!r}'
        ) from error


def names() -> list[str]:
    """Of the rubrics that come with this package."""
    known = (pathlib.PurePath(file.name) for file in _FOLDER.iterdir())
    return sorted(name.stem for name in known if name.suffix == ".json")


def load(name: str) -> Rubric:
    """One of `names()`, or a .json file of the user's own.

    Raises:
        UserError: there is no such rubric, or it is malformed.
    """
    own = name.endswith(".json")
    place = pathlib.Path(name) if own else _FOLDER / f"{name}.json"
    if not place.is_file():
        raise UserError(f"there is no rubric {name}; there are {', '.join(names())}, or give a .json file of your own")
    try:
        return parse(json.loads(place.read_text()), name)
    except ValueError as error:
        raise UserError(f"the rubric {name} is no JSON: {error}") from error
