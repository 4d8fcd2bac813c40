"""Comparisons against hallucinations, for the reward model: `python -m gpt4jax.align.own_data hallucinations`.

OpenAI 2023, system card, 3.1. Closed-domain: the prompt holds all that a response may say (a passage to summarise). The
model itself finds what it made up:

    1. respond to the prompt
    2. list the hallucinations of the response: none, and it is kept as it is
    3. rewrite the response without what is listed
    4. list the hallucinations of the new one: none, and (new, original) is a comparison; else 3, up to five times

Open-domain: what users flagged as not factual, with a better response beside it, is a comparison (`open_domain`).

The model is one function, `ask` (`grader.Ask`). What it lists is read strictly: NONE, or a numbered list. Any other
answer is counted and nothing is made of it; so are responses and rewrites that are empty, that the limit of tokens cut
off or, of rewrites, that are a version which there was already: the reward model would learn from them what has nothing
to do with facts. The instructions are our own; the report does not print its own.
"""

import dataclasses
import re
from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple

from gpt4jax.align.examples import Row
from gpt4jax.align.grader import Ask
from gpt4jax.errors import UserError
from gpt4jax.evals.asking import TooLong
from gpt4jax.evals.calls import Generate, Generated, Output
from gpt4jax.inference import chat

KEPT, COMPARED, GAVE_UP = "no_hallucination", "compared", "gave_up"
OUTSIDE, EMPTY, CUT, REPEATED, TOO_LONG = "outside_the_format", "empty", "cut_off", "repeated", "too_long"
OUTCOMES = (KEPT, COMPARED, GAVE_UP, OUTSIDE, EMPTY, CUT, REPEATED, TOO_LONG)

LIST = (
    "Compare the response with the prompt, and with nothing else: whatever you know from elsewhere does not count. "
    "Which statements of the response are not supported by the prompt, because the prompt says otherwise or does not "
    "say it? If there are none, answer with the one word NONE. If there are some, quote them all as a numbered list "
    "(1. 2. 3. and so on), one on each line, and write nothing before or behind the list."
)
REWRITE = (
    "The numbered statements are not supported by the prompt. Rewrite the response so that it says none of them and "
    "adds nothing that the prompt does not say; leave the rest as it is. Answer with the new response alone."
)
_ROLES = {"system": "[System]", "user": "[User]", "assistant": "[Assistant]"}
_ITEM = re.compile(r"(\d+)[.)]\s+(\S.*)")


@dataclasses.dataclass(frozen=True)
class Settings:
    """How the loop is gone through.

    Attributes:
        rewrites: at most so many of a response.
        max_tokens: of a response and of a rewrite.
        list_tokens: of a list. One that is cut off there counts as far as it goes: the next round lists again.
        temperature: of the response; lists and rewrites are greedy.
    """

    rewrites: int = 5
    max_tokens: int = 256
    list_tokens: int = 256
    temperature: float = 0.0

    def __post_init__(self) -> None:
        if min(self.rewrites, self.max_tokens, self.list_tokens) < 1:
            raise ValueError(f"{self}: at least one rewrite, and one token of each answer")


class Checked(NamedTuple):
    """What came of a prompt.

    Attributes:
        row: the prompt, as `examples` has it.
        outcome: one of OUTCOMES.
        versions: the response, and behind it each rewrite.
        lists: the hallucinations of each version that were listed.
        answer: of OUTSIDE, EMPTY, CUT and REPEATED what the model wrote.
    """

    row: Row
    outcome: str
    versions: tuple[str, ...] = ()
    lists: tuple[tuple[str, ...], ...] = ()
    answer: str = ""

    @property
    def rewrites(self) -> int:
        """How many rewrites there were."""
        return max(len(self.versions) - 1, 0)


def listed(text: str) -> tuple[str, ...] | None:
    """The statements that an answer lists; None: it is neither NONE nor a list numbered from 1.

    Behind NONE there may be a reason, but no list; on a list there may be no other line, and no item may say "none".
    """
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return None
    items = [_ITEM.fullmatch(line) for line in lines]
    if lines[0].strip("\"'`*.") == "NONE":
        return None if any(items) else ()
    found = [item.groups() for item in items if item is not None]
    if len(found) < len(lines) or [int(number) for number, _ in found] != list(range(1, len(found) + 1)):
        return None
    statements = tuple(statement for _, statement in found)
    return None if any(one.strip("\"'`*.").lower() == "none" for one in statements) else statements


def steps(row: Row, settings: Settings, as_text: bool) -> Generator[Generate, Output | TooLong, Checked]:
    """The loop for one prompt: yields each call, is sent its output, and returns what came of it.

    Raises:
        UserError: the row is no prompt.
    """
    asked, said = _prompt(row)
    versions: list[str] = []
    lists: list[tuple[str, ...]] = []

    def end(outcome: str, answer: str = "") -> Checked:
        return Checked(row, outcome, tuple(versions), tuple(lists), answer)

    answer = yield Generate(asked, settings.max_tokens, settings.temperature)
    while True:
        if not isinstance(answer, Generated):
            return end(TOO_LONG)
        if fault := _fault(answer, versions):
            return end(fault, answer.text)
        versions.append(answer.text)
        text = f"{said}[Assistant]\n{answer.text.strip()}\n\n"
        answer = yield _instruct(f"{text}[Question]\n{LIST}", settings.list_tokens, as_text)
        if not isinstance(answer, Generated):
            return end(TOO_LONG)
        statements = listed(answer.text)
        if statements is None:
            return end(OUTSIDE, answer.text)
        lists.append(statements)
        if not statements:
            return end(KEPT if len(versions) == 1 else COMPARED)
        if len(versions) > settings.rewrites:
            return end(GAVE_UP)
        numbered = "\n".join(f"{i}. {one}" for i, one in enumerate(statements, 1))
        text = f"{text}[Statements]\n{numbered}\n\n[Question]\n{REWRITE}"
        answer = yield _instruct(text, settings.max_tokens, as_text)


def check(ask: Ask, rows: Sequence[Row], settings: Settings, *, as_text: bool) -> list[Checked]:
    """What came of each prompt, in their order; all that are at the same step are asked together.

    Args:
        ask: the model.
        rows: prompts as `examples` has them: a text ("prompt") is continued, "messages" are answered.
        settings: of the loop.
        as_text: lists and rewrites are asked for by a text: for models without a chat template.

    Raises:
        UserError: a row is no prompt.
    """
    running = {i: steps(row, settings, as_text) for i, row in enumerate(rows)}
    calls = {i: next(one) for i, one in running.items()}
    found: dict[int, Checked] = {}
    while calls:
        numbers = list(calls)
        outputs = dict(ask([calls[i] for i in numbers]))
        calls = {}
        for place, i in enumerate(numbers):
            try:
                calls[i] = running[i].send(outputs[place])
            except StopIteration as stop:
                found[i] = stop.value
    return [found[i] for i in running]


def comparisons(checked: Iterable[Checked]) -> list[dict[str, Any]]:
    """The rows for the reward model: the last version before the original, of all that are COMPARED.

    Both get the white space that the original begins with, and none at the end: the two shall not differ in that.
    """
    found = []
    for one in checked:
        if one.outcome == COMPARED:
            original, rewritten = one.versions[0].rstrip(), one.versions[-1].strip()
            space = original[: len(original) - len(original.lstrip())]
            pair = {"responses": [space + rewritten, original], "ranks": [0, 1]}
            found.append({**one.row, **pair, "rewrites": one.rewrites, "hallucinations": list(one.lists[0])})
    return found


def tally(checked: Iterable[Checked], rewrites: int = Settings.rewrites) -> dict[str, int]:
    """How many prompts had each outcome; those that are compared by the number of rewrites that it took."""
    after = [f"{COMPARED}_after_{n}" for n in range(1, rewrites + 1)]
    counts = dict.fromkeys([KEPT, *after, *OUTCOMES[2:]], 0)
    for one in checked:
        counts[f"{COMPARED}_after_{one.rewrites}" if one.outcome == COMPARED else one.outcome] += 1
    return counts


def open_domain(rows: Iterable[Row]) -> tuple[list[dict[str, Any]], dict[str, int]]:
    """Comparisons of what users flagged as not factual, and how many rows were of each kind.

    Args:
        rows: prompts as `examples` has them with "response": TEXT, "flagged": true or false, and, once somebody has
            written it, "better": TEXT.

    Returns:
        The comparisons, better response first; counts of "compared", "not_flagged" and "no_better" rows.

    Raises:
        UserError: a row without prompt, response or flag, or with a better response that is empty or the same.
    """
    found: list[dict[str, Any]] = []
    counts = {"compared": 0, "not_flagged": 0, "no_better": 0}
    for number, row in enumerate(rows, 1):
        _prompt(row, f"row {number}: ")
        response, flagged, better = row.get("response"), row.get("flagged"), row.get("better")
        if not isinstance(response, str) or not response.strip() or not isinstance(flagged, bool):
            raise UserError(f'row {number}: it needs "response", a text, and "flagged", true or false')
        if not flagged or better is None:
            counts["no_better" if flagged else "not_flagged"] += 1
            continue
        if not isinstance(better, str) or better.strip() in ("", response.strip()):
            raise UserError(f'row {number}: "better" is {better!r}; it must be a text, and another than "response"')
        rest = {name: value for name, value in row.items() if name not in ("response", "flagged", "better")}
        found.append({**rest, "responses": [better, response], "ranks": [0, 1]})
        counts["compared"] += 1
    return found, counts


def _prompt(row: Row, where: str = "") -> tuple[str | tuple[tuple[str, str], ...], str]:
    """A row's prompt as it is asked, and as a transcript shows it."""
    if "messages" not in row:
        text = row.get("prompt")
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'{where}a prompt needs "messages", or "prompt" with a text: {str(row)[:60]!r}')
        return text, f"[User]\n{text.strip()}\n\n"
    messages = row["messages"]
    if not isinstance(messages, list):
        raise UserError(f'{where}"messages" is {str(messages)[:40]!r}, no list')
    chat.check(messages)
    if messages[-1]["role"] == "assistant":
        raise UserError(f"{where}the messages end with the assistant's: there is nothing to answer")
    said = "".join(f"{_ROLES[one['role']]}\n{one['content'].strip()}\n\n" for one in messages)
    return tuple((one["role"], one["content"]) for one in messages), said


def _instruct(text: str, max_tokens: int, as_text: bool) -> Generate:
    """As a text, the next heading ends the answer."""
    if as_text:
        return Generate(f"{text}\n\n[Answer]\n", max_tokens, stop=("\n[",))
    return Generate((("user", text),), max_tokens)


def _fault(answer: Generated, versions: Sequence[str]) -> str:
    """Why a response, or a rewrite behind these versions, is none to go on with; "" if it is one."""
    if not answer.text.strip():
        return EMPTY
    if answer.finish == "length":
        return CUT
    return REPEATED if answer.text.strip() in [one.strip() for one in versions] else ""
