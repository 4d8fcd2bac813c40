"""The process that renders chat templates: `python -I template_worker.py SECONDS PATH...`, driven by `inference.chat`.

A chat template is a program out of a downloaded file. It runs here, away from the weights and the user's
environment, in Jinja2's immutable sandbox and under the kernel's limits: memory, processor time, no file to open
or write, no new process. Where there is no `resource` module (Windows) those limits fall away, and macOS does
not keep the one on memory; the time limit, which the parent keeps, holds everywhere.

After an empty object, which says that it is ready, it answers one JSON line with another:
{"source": ..., "variables": {...}} with {"text": ...} or {"error": what the template does, in words}.
Imports the standard library and jinja2 only: it shall start in a tenth of a second.
"""

import contextlib
import datetime
import functools
import json
import signal
import sys
from typing import Any

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

sys.path += sys.argv[2:]  # where the parent found jinja2: -I leaves out the user's site-packages
from jinja2 import Template, TemplateError, TemplateSyntaxError, ext, nodes
from jinja2.exceptions import SecurityError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MEMORY_BYTES = 2**30
OUTPUT_CHARACTERS = 2**22
MESSAGE_CHARACTERS = 300  # shown of a template's own error
# Jinja2 imports some of itself on use, Python its codecs, and the clock reads a file: all that first, while it can.
WARM_UP = r"{{ '\u00e9' | wordwrap(9) | pprint }}{{ lipsum(1) }}{{ strftime_now('%c') }}{{ nothing.at_all }}"


class RefusalError(TemplateError):
    """The template called raise_exception."""


class TooLongError(Exception):
    """The template wrote more than OUTPUT_CHARACTERS."""


class Generation(ext.Extension):
    """{% generation %} marks what a model is trained on; for the text it means nothing, but for the scope of names."""

    tags = {"generation"}  # noqa: RUF012 - as the base class has it

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Any) -> str:
        return caller()


def raise_exception(message: object) -> None:
    """What templates call on a conversation that they don't take."""
    raise RefusalError(str(message))


def strftime_now(form: str) -> str:
    """The local time."""
    return datetime.datetime.now().strftime(form)


def tojson(value: object, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    """JSON without Jinja2's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


@functools.lru_cache(maxsize=4)
def compiled(source: str) -> Template:
    """A template by the conventions of Hugging Face's chat templates."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, ext.loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(source)


def render(source: str, variables: dict) -> str:
    """The text that a template makes of its variables.

    Raises:
        TooLongError: it writes more than OUTPUT_CHARACTERS.
        Exception: whatever a template may run into.
    """
    pieces, length = [], 0
    for piece in compiled(source).generate(**variables):
        pieces.append(piece)
        length += len(piece)
        if length > OUTPUT_CHARACTERS:
            raise TooLongError
    return "".join(pieces)


def in_words(error: Exception) -> str:
    """What the template did, to follow "the chat template". Its own words cannot act on a terminal."""
    text = str(getattr(error, "message", None) or error)[:MESSAGE_CHARACTERS]
    text = "".join(char if char.isprintable() else " " for char in text)
    if isinstance(error, RefusalError):
        return f"refuses this conversation: {text!r}"
    if isinstance(error, TemplateSyntaxError):
        return f"is not valid Jinja2: line {error.lineno}: {text}"
    if isinstance(error, MemoryError):
        return f"was stopped: it needs more than {MEMORY_BYTES // 2**20} MiB of memory"
    if isinstance(error, TooLongError):
        return f"was stopped: it writes more than {OUTPUT_CHARACTERS:,} characters"
    if isinstance(error, SecurityError):
        return f"was stopped: it does what no template may do{place(error)}: {text}"
    if isinstance(error, RecursionError):
        return f"was stopped: it nests too deeply{place(error)}"
    return f"fails{place(error)}: {type(error).__name__}: {text}"


def place(error: Exception) -> str:
    """The line of the template, where Jinja2 knows it."""
    line, trace = 0, error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":  # Jinja2's name for a template out of a string
            line = trace.tb_lineno
        trace = trace.tb_next
    return f" in line {line}" if line else ""


def limit_process() -> None:
    """For good: memory, no file to open or write, no process to start."""
    limits = {"AS": MEMORY_BYTES, "FSIZE": 0, "CORE": 0, "NPROC": 0, "NOFILE": 3}  # 3: standard streams only
    for name, most in limits.items():
        with contextlib.suppress(AttributeError, ValueError, OSError):  # each platform lacks another one
            kind = getattr(resource, f"RLIMIT_{name}")
            resource.setrlimit(kind, (most, most))


def limit_time(seconds: float) -> None:
    """Processor time from now on; ends a render whose parent was killed and can't."""
    with contextlib.suppress(AttributeError, ValueError, OSError):
        used = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 2, hard))


def main() -> None:
    """Answers until the parent closes the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C at the terminal is for the parent
    with contextlib.suppress(TemplateError):
        render(WARM_UP, {})
    limit_process()
    answer: dict[str, str] = {}
    while True:
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.flush()
        line = sys.stdin.buffer.readline()
        if not line:
            return
        limit_time(float(sys.argv[1]))
        try:
            request = json.loads(line)
            answer = {"text": render(request["source"], request["variables"])}
        except Exception as error:
            answer = {"error": in_words(error)}


if __name__ == "__main__":
    main()
