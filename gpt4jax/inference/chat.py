"""Conversations as tokens: a model's chat template, rendered where it can do no harm, and history that fits."""

import bisect
import contextlib
import dataclasses
import functools
import importlib.util
import itertools
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, TypedDict

from gpt4jax.errors import UserError

ROLES = ("system", "user", "assistant", "tool")
RENDER_SECONDS = 5.0  # of wall-clock time
START_SECONDS = 60.0  # for a slow disk: it takes 0.1
SOURCE_CHARACTERS = 2**20
_ANSWER_BYTES = 2**26  # more than any answer: 4 Mi characters, 12 bytes each where JSON escapes all


class Message(TypedDict):
    """One message of a conversation; `role` is one of ROLES."""

    role: str
    content: str


class Tokenizer(Protocol):
    """What chat needs of a tokenizer: ids by name of its special tokens, and both ways to read a text.

    `encode` takes their names for ordinary text; to `encode_markup` they are the tokens.
    """

    @property
    def special(self) -> Mapping[str, int]: ...

    def encode(self, text: str) -> list[int]: ...

    def encode_markup(self, text: str) -> list[int]: ...


class Worker:
    """The process that templates run in (`template_worker.py`): started when first needed, ended with this object.

    It serves many renders, one at a time; one that dies or takes too long costs only its own render.
    """

    def __init__(self, seconds: float = RENDER_SECONDS):
        self.seconds = seconds  # for one render
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._end = lambda: None

    def render(self, source: str, variables: Mapping[str, Any]) -> str:
        """The text that a template makes of its variables.

        Raises:
            UserError: the template is wrong, refuses the variables, or goes beyond a limit.
        """
        request = json.dumps({"source": source, "variables": variables}).encode() + b"\n"
        with self._lock:
            try:
                if self._process is None or self._process.poll() is not None:
                    self._start()
                answer = self._exchange(request, self.seconds)
            except BaseException:  # after Ctrl-C too: the answer to this must not become the next one's
                self.close()
                raise
        text = answer.get("text")
        if not isinstance(text, str):
            raise UserError(f"the chat template {answer.get('error')}")
        if any("\ud800" <= character <= "\udfff" for character in text):
            raise UserError("the chat template writes half a character (a lone surrogate)")
        return text

    def close(self) -> None:
        """Ends the process; the next render starts another."""
        self._end()
        self._process = None

    def _start(self) -> None:
        self.close()
        # -I leaves out the user's site-packages: the worker is told where its two packages lie.
        specs = [importlib.util.find_spec(name) for name in ("jinja2", "markupsafe")]
        paths = [str(pathlib.Path(spec.origin).parents[1]) for spec in specs if spec and spec.origin]
        script = pathlib.Path(__file__).with_name("template_worker.py")
        # Of the environment, which may hold secrets, what starting Python and telling the time take.
        environment = {name: os.environ[name] for name in ("LD_LIBRARY_PATH", "SYSTEMROOT", "TZ") if name in os.environ}
        process = subprocess.Popen(
            [sys.executable, "-I", str(script), str(self.seconds), *dict.fromkeys(paths)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
        )  # fmt: skip
        self._process, self._end = process, weakref.finalize(self, _kill, process)
        self._exchange(b"", START_SECONDS)

    def _exchange(self, request: bytes, seconds: float) -> dict[str, str]:
        """Sends a line and reads one. A timer kills the process: reading a pipe with a limit is not portable."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        late = threading.Event()

        def stop() -> None:
            late.set()
            process.kill()

        timer = threading.Timer(seconds, stop)
        timer.start()
        answer = None
        with contextlib.suppress(OSError, ValueError, RecursionError):
            try:
                process.stdin.write(request)
                process.stdin.flush()
                answer = json.loads(process.stdout.readline(_ANSWER_BYTES))
            finally:
                timer.cancel()
                timer.join()
        if late.is_set():
            raise UserError(f"the chat template was stopped: it takes longer than {seconds:g} s")
        if not isinstance(answer, dict):
            process.kill()
            raise UserError(f"the chat template was stopped: its process died with status {process.wait()}")
        return answer


def _kill(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):  # what was not sent can't be
                pipe.close()


@dataclasses.dataclass(frozen=True)
class Template:
    """A model's chat template.

    Attributes:
        source: Jinja2, by the conventions of Hugging Face.
        tokens: names of special tokens that the template may write, as in Hugging Face's special_tokens_map:
            {"bos_token": "<s>", "eos_token": "</s>"}; one that is missing writes nothing.
        worker: templates may share one.
    """

    source: str
    tokens: Mapping[str, str] = dataclasses.field(default_factory=dict)
    worker: Worker = dataclasses.field(default_factory=Worker, repr=False, compare=False)

    def __post_init__(self) -> None:
        if len(self.source) > SOURCE_CHARACTERS:
            raise UserError(
                f"a chat template of {len(self.source):,} characters; no more than {SOURCE_CHARACTERS:,} are read"
            )

    def render(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as the model was trained to read it, with the start of its answer if wanted.

        Raises:
            UserError: messages that are none, or a template that is wrong, refuses them, or goes beyond a limit.
        """
        check(messages)
        variables = {"tools": None, "documents": None, "add_generation_prompt": add_generation_prompt}
        return self.worker.render(self.source, dict(self.tokens) | variables | {"messages": list(messages)})


def of_model(source: object, tokens: Mapping[str, str], where: str, worker: Worker | None = None) -> Template:
    """The template of the model at `where`, whose files give `source`: a text, or several by name.

    Raises:
        UserError: the model has none.
    """
    if isinstance(source, list):  # [{"name": ..., "template": ...}, ...]: tools and retrieval have their own
        named = {item.get("name"): item.get("template") for item in source if isinstance(item, dict)}
        source = named.get("default")
    if not isinstance(source, str) or not source.strip():
        raise UserError(
            f"{where} has no chat template: it may not be trained to chat. "
            "Use --prompt, or give a template with --chat_template FILE"
        )
    return Template(source, tokens, worker or Worker())


def check(messages: Sequence[Message]) -> None:
    """Raises a UserError unless these are messages with a role that exists and a text."""
    if not messages:
        raise UserError("the conversation has no messages")
    for i, message in enumerate(messages):
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            raise UserError(f"message {i} must have a role and a content and nothing else: {str(message)[:80]!r}")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise UserError(f"message {i} has the role {role!r}; it must be one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UserError(f"message {i} has a content of type {type(content).__name__}; it must be text")
        try:
            content.encode()
        except UnicodeEncodeError as error:
            raise UserError(f"message {i} is no Unicode text: {content[error.start]!r} at {error.start}") from error


def heeds_system(template: Template) -> bool:
    """Whether a system message changes anything: some templates leave it out without a word."""
    user = Message(role="user", content="?")
    return template.render([Message(role="system", content="!"), user]) != template.render([user])


def encode(
    template: Template, tokenizer: Tokenizer, messages: Sequence[Message], add_generation_prompt: bool = True
) -> list[int]:
    """Token ids of a conversation: special tokens are those that the template writes, and no others.

    Their names inside a content are ordinary text. Where no content could form one, these are the ids of
    Hugging Face's apply_chat_template. Where one could, the conversation is rendered a second time with
    stand-ins for a character of each such name; what that changes about the special tokens came from a content.

    Raises:
        UserError: as Template.render.
    """
    text = template.render(messages, add_generation_prompt)
    names = _names(frozenset(filter(None, tokenizer.special)))
    hidden = _stand_ins(names, itertools.chain([template.source], (message["content"] for message in messages)))
    guarded = [Message(role=each["role"], content=_guard(each["content"], names, hidden)) for each in messages]
    if guarded == list(messages):
        return tokenizer.encode_markup(text)
    pieces = names.pattern.split(template.render(guarded, add_generation_prompt))
    back = str.maketrans({stand_in: char for char, stand_in in hidden.items()})
    if [piece.translate(back) for piece in pieces] == names.pattern.split(text):
        return tokenizer.encode_markup(text)
    ids: list[int] = []
    markup = ""  # since the last piece with a stand-in: as Hugging Face reads it
    for piece in pieces:
        plain = piece.translate(back)
        if plain == piece:
            markup += piece
        else:
            ids += [*tokenizer.encode_markup(markup), *tokenizer.encode(plain)]
            markup = ""
    return ids + tokenizer.encode_markup(markup)


class _Names(NamedTuple):
    """Special names: what finds them, the longest at each place; and their beginnings and ends, without the whole."""

    every: frozenset[str]
    pattern: re.Pattern[str]  # with one group, so that split() gives ordinary text and names in turn
    heads: tuple[str, ...]
    tails: tuple[str, ...]


@functools.lru_cache(maxsize=4)
def _names(every: frozenset[str]) -> _Names:
    pattern = "|".join(re.escape(name) for name in sorted(every, key=len, reverse=True))
    heads = {name[:i] for name in every for i in range(1, len(name))}
    tails = {name[i:] for name in every for i in range(1, len(name))}
    return _Names(every, re.compile(f"({pattern or '(?!)'})"), tuple(heads), tuple(tails))


def _stand_ins(names: _Names, texts: Iterable[str]) -> dict[str, str]:
    """For each character of a special name, a private one that occurs nowhere."""
    characters = set().union(*names.every)
    taken = characters.union(*texts)
    private = itertools.chain(range(0xE000, 0xF900), range(0xF0000, 0xFFFFE))
    free = (chr(code) for code in private if chr(code) not in taken)
    hidden = dict(zip(sorted(characters), free, strict=False))
    if len(hidden) < len(characters):
        raise UserError("the conversation holds all of Unicode's private characters: it is no text")
    return hidden


def _guard(content: str, names: _Names, hidden: Mapping[str, str]) -> str:
    """The content with no special name in it, whole or such that the template's text beside it could complete it.

    One character of each is hidden, and no other is touched: templates trim contents, and look for marks in them.
    """
    begins = f"(?={names.pattern.pattern})(?s:.)"  # names may overlap: at every place where one begins
    content = re.sub(begins, lambda found: hidden[found[0]], content)
    core = content.strip()
    left = content.find(core)
    right = left + len(core) - 1
    if core.startswith(names.tails):
        content = content[:left] + hidden[content[left]] + content[left + 1 :]
    if core.endswith(names.heads):
        content = content[:right] + hidden.get(content[right], content[right]) + content[right + 1 :]
    return content


def fit(template: Template, tokenizer: Tokenizer, messages: Sequence[Message], room: int) -> tuple[list[int], int]:
    """Token ids of the conversation within `room` tokens, and how many of its messages had to be left out.

    The oldest exchanges go first, whole, a user's message with all that follows it up to the user's next; the
    system message at the head and the last exchange stay.

    Raises:
        UserError: even those have more than `room` tokens, or as Template.render.
    """
    ids = encode(template, tokenizer, messages)
    if len(ids) <= room:
        return ids, 0
    head = next((i for i, message in enumerate(messages) if message["role"] != "system"), len(messages))
    starts = [i for i in range(head + 1, len(messages)) if messages[i]["role"] == "user"]

    def encoded(start: int) -> list[int]:
        return encode(template, tokenizer, [*messages[:head], *messages[start:]])

    # Fewer exchanges, fewer tokens: by halves, as a long chat comes here at every turn.
    cut = bisect.bisect_left(starts, True, key=lambda start: len(encoded(start)) <= room)
    if cut < len(starts):
        return encoded(starts[cut]), starts[cut] - head
    least = len(encoded(starts[-1])) if starts else len(ids)
    with_system = "the system message and the last message take" if head else "the last message takes"
    raise UserError(f"{with_system} {least} tokens with the template's own; there is room for {room}: say it shorter")
