"""Training data that a model makes for itself, for the next stage: `python -m gpt4jax.align.own_data WHAT ...`.

    ... hallucinations --weights NAME --prompts FILE --out FILE [--all FILE]
    ... self_improve   --weights NAME --questions FILE --exemplars FILE --out FILE
    ... toolformer     --weights NAME --texts FILE --out FILE [--today 2024-02-29]

`hallucinations`: comparisons for the reward model, of responses with those that the model rewrote without what it found
to be made up (gpt4jax/align/hallucinations.py); prompts as PPO reads them. `self_improve`: demonstrations, the chains
of thought that reach the majority's answer, in four formats (gpt4jax/align/self_improve.py); questions are lines
{"question": TEXT}, exemplars {"question": TEXT, "path": TEXT}, whose path ends with "The answer is N.". `toolformer`:
demonstrations, texts ({"text": TEXT}) with calls that made what follows them likelier, of a calculator and, if it gets
a day, a calendar (gpt4jax/align/toolformer.py). `--config.STAGE.data=jsonl:FILE` trains on what is written; then the
new model can be asked again.
"""

import argparse
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

from gpt4jax import files, job
from gpt4jax.errors import UserError

WINDOW = 2048  # tokens that a text and its answer have room for, of a model whose window is longer
ASK = 'Some words are followed by the call of a tool: "3 times 4 is [Calculator(3*4) -> 12] 12."\n\n'  # P(x)

Rows = list[Mapping[str, Any]]


def texts(path: files.Path, name: str) -> list[str]:
    """The texts of that name, one of each line.

    Raises:
        UserError: as `examples.read`; a line without one.
    """
    from gpt4jax.align import examples

    found = [row.get(name) for row in examples.read(path)]
    for number, text in enumerate(found, 1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'{path}, row {number}: there is no text "{name}"')
    return found  # type: ignore[return-value]


def checked(model, flags: argparse.Namespace) -> Rows:
    """Comparisons by the closed-domain loop."""
    from gpt4jax.align import examples, hallucinations, human_scored
    from gpt4jax.evals.asking import Asker
    from gpt4jax.inference import chat

    rows = examples.read(flags.prompts)[: flags.limit]
    settings = hallucinations.Settings(
        max_tokens=flags.max_tokens, list_tokens=flags.max_tokens, temperature=flags.temperature
    )
    template = model.chat_template and chat.of_model(model.chat_template, model.tokenizer.roles, str(model.source))
    ask = Asker(_engine(model, flags), template or None, flags.rows, flags.seed).ask
    found = hallucinations.check(ask, rows, settings, as_text=not template)
    if flags.all is not None:
        human_scored.write(flags.all, ({**one._asdict(), "rewrites": one.rewrites} for one in found))
    print(", ".join(f"{name} {count}" for name, count in hallucinations.tally(found).items()))
    return list(hallucinations.comparisons(found))


def improved(model, flags: argparse.Namespace) -> Rows:
    """Demonstrations of the paths that agree with most."""
    from gpt4jax.align import self_improve

    worked = zip(texts(flags.exemplars, "question"), texts(flags.exemplars, "path"), strict=True)
    exemplars = [self_improve.Exemplar(*one) for one in worked]
    drawn = self_improve.Sampling(
        flags.paths, flags.temperature, top_k=flags.top_k, max_tokens=flags.max_tokens, seed=flags.seed
    )
    voted = self_improve.ask(_engine(model, flags), texts(flags.questions, "question"), exemplars, drawn)
    confidence = sum(one.confidence for one in voted) / len(voted)
    rows = self_improve.demonstrations(voted, exemplars, least_confidence=flags.least_confidence)
    print(
        f"{len(voted)} questions, {flags.paths} paths each; on average {confidence:.1%} of them reach the majority's "
        f"answer; {len(rows) // 4} paths kept"
    )
    return list(rows)


def annotated(model, flags: argparse.Namespace) -> Rows:
    """The texts that calls are of use to, with them."""
    from gpt4jax.align import toolformer, tools

    available: dict[str, tools.Tool] = {"Calculator": tools.calculator}
    if flags.today:
        available["Calendar"] = tools.calendar(flags.today)
    try:
        settings = toolformer.Settings(
            least_probability=flags.least_probability, positions=flags.positions, calls=flags.calls,
            least_gain=flags.least_gain, seed=flags.seed,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error)) from error
    plain = texts(flags.texts, "text")
    found = toolformer.annotate(_engine(model, flags), plain, available, settings, lambda text: flags.ask)
    with_calls = [text for text in found.texts if text is not None]
    share = f" ({found.share_kept:.1%})" if found.run else ""
    print(
        f"{len(found.texts)} texts: {found.drawn} calls drawn, {found.run} different ones run, {found.kept} kept"
        f"{share}, in {len(with_calls)} texts"
    )
    return [{"prompt": "", "response": text} for text in with_calls]


def _engine(model, flags: argparse.Namespace):
    from gpt4jax.inference import Engine

    longest = model.config.max_seq_len
    if flags.max_len > longest:
        raise UserError(f"--max_len is {flags.max_len}; this model's window has {longest} tokens")
    max_len = flags.max_len or min(WINDOW, longest)
    return Engine(model.config, model.params, tokenizer=model.tokenizer, rows=flags.rows, max_len=max_len, consume=True)


def _date(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2024-02-29") from error


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition(":")[0] + "."
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.align.own_data", description=about)
    what = parser.add_subparsers(dest="what", required=True)
    loop, paths, calls = (what.add_parser(name) for name in ("hallucinations", "self_improve", "toolformer"))
    for each in (loop, paths, calls):
        job.model_flags(each)
        each.add_argument("--out", required=True, type=files.user_path, help="JSONL for the next stage")
        each.add_argument("--rows", type=int, default=8, help="texts that are decoded at once; they change nothing")
        each.add_argument("--max_len", type=int, default=0, help=f"tokens of all; default: the window, or {WINDOW}")
        each.add_argument("--seed", type=int, default=0)
    for each in (loop, paths):
        each.add_argument("--max_tokens", type=int, default=256, help="of an answer")
    loop.add_argument("--prompts", required=True, type=files.user_path, help='JSONL with "messages" or "prompt"')
    loop.add_argument("--all", type=files.user_path, help="JSONL of every prompt with its versions and lists")
    loop.add_argument("--limit", type=int, help="the first so many prompts")
    loop.add_argument("--temperature", type=float, default=0.0, help="of responses")
    paths.add_argument("--questions", required=True, type=files.user_path)
    paths.add_argument("--exemplars", required=True, type=files.user_path)
    paths.add_argument("--paths", type=int, default=32, help="of each question (the paper's 32)")
    paths.add_argument("--temperature", type=float, default=0.7, help="the paper's; 1.2 of a model tuned so")
    paths.add_argument("--top_k", type=int, default=0)
    paths.add_argument("--least_confidence", type=float, default=0.0, help="share of the paths, of questions to keep")
    calls.add_argument("--texts", required=True, type=files.user_path)
    calls.add_argument("--least_probability", type=float, default=0.0, help="that a call begins")
    calls.add_argument("--positions", type=int, default=20, help="of a text, at most")
    calls.add_argument("--calls", type=int, default=10, help="drawn at each; all four are the paper's for a calculator")
    calls.add_argument("--least_gain", type=float, default=0.5, help="nats by which a call must help")
    calls.add_argument("--ask", default=ASK, help="what stands before a text to ask for calls")
    calls.add_argument("--today", type=_date, help="what the calendar says; without it there is none")
    return parser.parse_args(argv)


def main(argv: Sequence[str]) -> int:
    """Reads the flags, lets the model write, keeps what is of use; returns the exit status."""
    flags = _flags(argv)
    for name in ("rows", "limit", "max_tokens"):
        if (value := getattr(flags, name, None)) is not None and value < 1:
            raise UserError(f"--{name} is {value}; it must be at least 1")
    for name in ("out", "all"):
        if (path := getattr(flags, name, None)) is not None and path.is_dir():
            raise UserError(f"--{name} {path} is a folder, and must be a file")
    from gpt4jax.align import human_scored

    make = {"hallucinations": checked, "self_improve": improved, "toolformer": annotated}[flags.what]
    rows = make(job.load_model(flags), flags)
    if not rows:
        raise UserError(f"nothing was kept: {flags.out} is not written")
    human_scored.write(flags.out, rows)
    job.say(f"{len(rows)} examples in {flags.out}")
    return 0


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
