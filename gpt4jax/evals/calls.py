"""What an evaluation asks of a model and what it hears: plain values, so that tasks are pure functions.

A task's `solve(item)` is a generator. It yields the calls of one stage, is sent their outputs in the same order, and
returns an `Outcome`:

    def solve(item):
        (explanation,) = yield [Generate(prompt, max_tokens=512, temperature=0.3)]
        (letter,) = yield [Generate(prompt + explanation.text, max_tokens=1)]
        return Outcome({"accuracy": float(letter.text == item.gold)}, answer=letter.text)

It must do the same whenever it gets the same outputs: a run that was killed goes through it again with the outputs
that were kept.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

Messages = tuple[tuple[str, str], ...]  # (role, content) of a chat, which the model's own template renders


@dataclasses.dataclass(frozen=True)
class Choose:
    """Asks for the log probability of each of some continuations of one text.

    Attributes:
        context: the text that they continue, behind `header` and `shots`.
        choices: the continuations, at least one.
        header, shots: what stands before it, put together as they are. Calls with the same ones are answered fast.
            Where the context window is too short, the last shots are dropped, and the output says how many.
    """

    context: str
    choices: tuple[str, ...]
    header: str = ""
    shots: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Generate:
    """Asks for a continuation of a text, or for the answer to a chat.

    Attributes:
        prompt: a text, or the messages of a chat.
        max_tokens, temperature, top_k, top_p, stop: as `inference.Request` has them.
        sample: the number of the draw: calls that are otherwise the same differ in it.
        header, shots: as `Choose` has them; empty for a chat.
    """

    prompt: str | Messages
    max_tokens: int
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    sample: int = 0
    header: str = ""
    shots: tuple[str, ...] = ()


Call = Choose | Generate


class Chosen(NamedTuple):
    """Of each choice: its log probability in nats, whether greedy decoding would give it, and its number of tokens."""

    logprobs: tuple[float, ...]
    greedy: tuple[bool, ...]
    tokens: tuple[int, ...]
    dropped: int = 0  # shots


class Generated(NamedTuple):
    """A text without what stopped it; `finish` is "stop" or "length"; the sum of its tokens' log probabilities."""

    text: str
    finish: str
    logprob: float
    dropped: int = 0  # shots


Output = Chosen | Generated


class Outcome(NamedTuple):
    """What one item came to.

    Attributes:
        metrics: numbers to be averaged over the items, by name.
        answer: what the model's words were taken for; None: they could not be parsed.
        detail: whatever else is to be kept with the item, as JSON has it.
    """

    metrics: Mapping[str, float]
    answer: str | None
    detail: Mapping[str, Any] = {}


Solve = Generator[Sequence[Call], Sequence[Any], Outcome]


@dataclasses.dataclass(frozen=True)
class Item:
    """One question of a task.

    Attributes:
        id: distinct within the task.
        data: what its task's `solve` reads.
        group: what its score is reported under as well (a subject, a language, a section); "" for none.
        cluster: items that share a passage or were made from each other, whose errors go together; "": it stands alone.
    """

    id: str
    data: Any
    group: str = ""
    cluster: str = ""


class Malformed(NamedTuple):
    """A row of a data set that is no item, and why: it is named and counted, and never scored."""

    id: str
    reason: str


@dataclasses.dataclass(frozen=True)
class Task:
    """Items and the pure function that asks about one and scores what it hears.

    Attributes:
        name: as `--tasks` has it.
        metric: the main one of those that outcomes have.
        solve: see above.
        chance: what guessing gets in the main metric, where that is known.
        source: of the data: package, version, and what it is.
    """

    name: str
    metric: str
    items: tuple[Item, ...]
    solve: Callable[[Item], Solve]
    malformed: tuple[Malformed, ...] = ()
    chance: float | None = None
    source: str = ""


def hashed(item: Item) -> str:
    """An order of items that says nothing about them and depends on nothing else."""
    return hashlib.sha256(item.id.encode()).hexdigest()
