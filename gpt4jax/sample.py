"""Continues a text, or chats: `python -m gpt4jax.sample (--workdir DIR | --weights NAME) (--prompt TEXT | --chat)`.

The text goes to stdout, all else to stderr.
"""

import argparse
import contextlib
import dataclasses
import io
import sys
from collections.abc import Sequence
from typing import Any, TextIO

from gpt4jax import files, job, signals
from gpt4jax.errors import UserError

CHAT_CONTEXT = 4096  # tokens of a chat, unless the model's context is shorter or --max_len says otherwise


def main(argv: Sequence[str]) -> int:
    """Reads the flags and writes what the model says as it comes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.sample", description=__doc__.partition(":")[0] + ".")
    job.model_flags(parser)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", help="the text to continue")
    what.add_argument("--chat", action="store_true", help="talk with the model, by its own chat template")
    parser.add_argument(
        "--image",
        action="append",
        default=[],
        type=files.user_path,
        help="for each <|image|> in the prompt, in their order",
    )
    parser.add_argument(
        "--rationale",
        metavar="TEXT",
        help="answer in two stages: what follows the images and this text is said first (to stderr), then the answer",
    )
    parser.add_argument("--system", help="the system message of a chat")
    parser.add_argument("--chat_template", type=files.user_path, help="a file with a Jinja template, for a chat")
    parser.add_argument("--max_tokens", type=int, help="of a text or an answer, at most (default 128; chat: 512)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: greedy (default %(default)s)")
    parser.add_argument("--top_k", type=int, default=0, help="only the k most likely; 0: all")
    parser.add_argument("--top_p", type=float, default=1.0, help="only the most likely that reach p together; 1: all")
    parser.add_argument("--min_p", type=float, default=0.0, help="only those at least p times the likeliest; 0: all")
    parser.add_argument("--repetition_penalty", type=float, default=1.0, help="on what was there before; 1: none")
    parser.add_argument("--stop", action="append", default=[], help="a text that ends it; may be given several times")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_len", type=int, default=0, help=f"tokens of a chat's context (default {CHAT_CONTEXT})")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), help="of the weights (default: as stored)")
    parser.add_argument("--tensor", type=int, default=1, help="devices that split the model; -1: all (default 1)")
    parser.add_argument("--draft", help="weights of a smaller model that guesses ahead, with the same tokenizer")
    flags = parser.parse_args(argv)
    if not flags.chat and (flags.system is not None or flags.chat_template or flags.max_len):
        parser.error("--system, --chat_template and --max_len are for --chat")
    if flags.chat and (flags.image or flags.rationale is not None):
        parser.error("--image and --rationale are for --prompt")
    if flags.max_tokens is None:
        flags.max_tokens = 512 if flags.chat else 128
    settings = {name: getattr(flags, name) for name in _SETTINGS}
    from gpt4jax.inference.request import Request

    Request([0], **settings)  # settings that can't be are told before a model is loaded
    _open_streams(flags.chat)
    return (chat if flags.chat else sample)(flags, settings)


_SETTINGS = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "stop", "seed",
)  # fmt: skip


def _open_streams(reads: bool) -> None:
    """Characters that the terminal has no code for become "?"; bytes that are no text do no harm."""
    if sys.stdout is None or (reads and sys.stdin is None):
        raise UserError(
            "standard output is closed" if sys.stdout is None else "a chat reads from standard input; it is closed"
        )
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if reads and isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="surrogateescape")


def sample(flags: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Streams a text's continuation."""
    from gpt4jax.data import images
    from gpt4jax.inference import images as of_images
    from gpt4jax.inference import two_stage
    from gpt4jax.inference.request import Request

    text = flags.prompt if flags.rationale is None else two_stage.first_prompt(flags.prompt, flags.rationale)
    try:
        (flags.prompt + text).encode()
    except UnicodeEncodeError as error:
        raise UserError(f"the prompt is no UTF-8 text: {flags.prompt!r}") from error
    pictures = [images.read(files.local_copy(path)) for path in flags.image]  # before a model is loaded for them
    loaded, tokenizer = _load(flags)
    vision = loaded.config.vision
    ids, given = of_images.prompt(tokenizer, vision, text, pictures)
    if not ids:
        raise UserError(f"the prompt is empty, and {loaded.source} has no token that starts a text: give it a word")
    for path, picture in zip(flags.image, pictures, strict=True):
        if vision is not None and (size := of_images.shrunk(picture, vision)):
            old = f"{picture.shape[1]} x {picture.shape[0]}"
            job.say(f"{path}: {old} pixels are more than the model takes ({vision.max_patches} patches of "
                    f"{vision.patch_size}^2): made {size[1]} x {size[0]}")  # fmt: skip
    request = Request(ids, images=given, **settings)
    length = len(ids) + request.max_tokens
    if flags.rationale is not None:
        # What was said is read again as text, in which a byte that is no character has become one of three bytes.
        both = length + len(tokenizer.encode(f"\n{flags.prompt}")) + 3 * request.max_tokens
        # A rationale may end long before its most tokens: whether the second prompt fits, its own request says.
        length = max(length, min(both, loaded.config.max_seq_len))
    engine = _engine(flags, loaded, length)
    with signals.StopRequest() as stop:
        if flags.rationale is not None:
            said = _write(engine.stream(request), stop, sys.stderr)
            job.say("")
            ids, given = of_images.prompt(
                tokenizer, vision, two_stage.second_prompt(flags.prompt, flags.rationale, said), pictures
            )
            request = Request(ids, images=given, **settings)
        if stop.received is None:
            _write(engine.stream(request), stop)
    print(flush=True)
    return _status(stop)


def chat(flags: argparse.Namespace, settings: dict[str, Any]) -> int:
    """Answers line by line until the input ends. Ctrl-C stops an answer, which stays as far as it had come."""
    from gpt4jax.inference import chat as chats
    from gpt4jax.inference.request import Request

    loaded, tokenizer = _load(flags)
    template = _template(flags, loaded, tokenizer)
    messages: list[chats.Message] = []
    if flags.system is not None:
        if not chats.heeds_system(template):
            raise UserError(f"the chat template of {loaded.source} leaves system messages out; chat without --system")
        messages.append({"role": "system", "content": flags.system})
    context = min(flags.max_len or CHAT_CONTEXT, loaded.config.max_seq_len)
    if context <= settings["max_tokens"]:
        raise UserError(f"a context of {context} tokens has no room for answers of {settings['max_tokens']}")
    # A template that refuses the first message is told before the first message.
    chats.encode(template, tokenizer, [*messages, chats.Message(role="user", content="?")])
    engine = _engine(flags, loaded, context)
    if _at_terminal():
        with contextlib.suppress(ImportError):  # some Pythons are built without it
            import readline  # noqa: F401  # from now on `input` has a history and keys to edit with
    job.say("Ctrl-C stops an answer; Ctrl-D, or the end of the input, ends the chat")
    answered = 0
    while (line := _ask()) is not None:
        turn = [*messages, chats.Message(role="user", content=line)]
        # However often Ctrl-C comes: an interrupt inside a step would leave an engine without its cache.
        with signals.StopRequest(insist=False) as stop:
            try:
                ids, dropped = chats.fit(template, tokenizer, turn, context - settings["max_tokens"])
                if dropped:
                    job.say(f"(the oldest {dropped} messages no longer fit the context of {context} tokens)")
                # With the same draws at every turn, a model soon says the same at every turn.
                again = settings | {"seed": (settings["seed"] + answered) % 2**32}
                answer = _write(engine.stream(Request(ids, **again)), stop)
            except UserError as error:  # this message is at fault, not the chat
                job.say(f"error: {error}")
                continue
        print("", flush=True)
        if stop.received is not None and stop.received.name == "SIGTERM":
            return signals.TERMINATED
        messages = [*turn, chats.Message(role="assistant", content=answer)]
        answered += 1
    return 0


def _template(flags: argparse.Namespace, loaded, tokenizer):
    """The chat template that the flags name, or the model's own."""
    from gpt4jax.inference import chat as chats

    if not flags.chat_template:
        return chats.of_model(loaded.chat_template, tokenizer.roles, str(loaded.source))
    try:
        source = flags.chat_template.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the chat template {flags.chat_template} can't be read: {error}") from error
    if not source.strip():
        raise UserError(f"the chat template {flags.chat_template} is empty")
    return chats.of_model(source, tokenizer.roles, str(flags.chat_template))


def _ask() -> str | None:
    """The next line that is not empty; None at the end of the input."""
    while True:
        try:
            # On a terminal `input` edits the line; in a pipe nothing but answers belongs on stdout.
            line = input("> ") if _at_terminal() else next(sys.stdin).rstrip("\n")
        except (EOFError, StopIteration):
            if _at_terminal():
                job.say("")
            return None
        except KeyboardInterrupt:
            job.say("\n(Ctrl-D ends the chat)")
            continue
        if line.strip():
            return line


def _at_terminal() -> bool:
    return sys.stdin.isatty() and sys.stdout.isatty()


def _write(events, stop: signals.StopRequest, stream: TextIO | None = None) -> str:
    """Writes a text to stdout (or another stream) as it comes, up to its end or a signal, and gives it."""
    text, stream = "", stream or sys.stdout
    for event in events:
        stream.write(event.text)
        stream.flush()
        text += event.text
        if stop.received is not None:
            events.close()
            break
    return text


def _status(stop: signals.StopRequest) -> int:
    if stop.received is None:
        return 0
    return signals.INTERRUPTED if stop.received.name == "SIGINT" else signals.TERMINATED


def _load(flags: argparse.Namespace):
    loaded = job.load_model(flags, mesh=_mesh(flags.tensor))
    if loaded.tokenizer is None:
        raise UserError(f"{loaded.source} has no tokenizer.json: without it there are no texts")
    return loaded, loaded.tokenizer


def _mesh(tensor: int):
    """The devices that each hold a part of every matrix; None: one holds all."""
    import jax

    from gpt4jax.parallel.mesh import make_mesh

    devices = jax.local_devices()
    count = len(devices) if tensor == -1 else tensor
    if not 1 <= count <= len(devices):
        raise UserError(f"--tensor is {tensor}; the devices here number {len(devices)}")
    return None if count == 1 else make_mesh({"data": 1, "fsdp": 1, "tensor": count}, devices[:count])


def _engine(flags: argparse.Namespace, loaded, length: int):
    """An engine of one row: fewer weights are read a token than in a block of rows that nobody else uses."""
    from gpt4jax import weights
    from gpt4jax.inference.engine import Engine
    from gpt4jax.inference.speculative import Draft

    if length > loaded.config.max_seq_len:
        raise UserError(
            f"a prompt of {length - flags.max_tokens} tokens and {flags.max_tokens} more exceed the model's "
            f"max_seq_len {loaded.config.max_seq_len}"
        )
    draft = None
    if flags.draft is not None:
        small = weights.load(flags.draft, mesh=_mesh(flags.tensor), say=job.say)
        if small.tokenizer is None or small.tokenizer.pieces != loaded.tokenizer.pieces:
            raise UserError(f"--draft {flags.draft} has another tokenizer than {loaded.source}")
        draft = Draft(small.config, small.params)
    config = loaded.config
    if flags.dtype == "float32":  # then activations too
        config = dataclasses.replace(config, dtype="float32")
    try:
        return Engine(
            config, loaded.params, tokenizer=loaded.tokenizer, rows=1, max_len=length,
            weights=flags.dtype or "", mesh=_mesh(flags.tensor), draft=draft, consume=True,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
