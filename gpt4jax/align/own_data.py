"""Training data that a model makes for itself, for the next SFT: `python -m gpt4jax.align.own_data WHAT ...`.

    python -m gpt4jax.align.own_data self_improve --weights NAME --questions FILE --exemplars FILE --out FILE
    python -m gpt4jax.align.own_data toolformer   --weights NAME --texts FILE --out FILE [--today 2024-02-29]

`self_improve`: chains of thought for questions without answers; those that reach the majority's answer, in four formats
(gpt4jax/align/self_improve.py). Questions are lines {"question": TEXT}, exemplars {"question": TEXT, "path": TEXT},
whose path ends with "The answer is N.". `toolformer`: texts, lines {"text": TEXT}, with calls that made what follows
them likelier, of a calculator and, if it gets a day, a calendar (gpt4jax/align/toolformer.py). What is written is for
the stage of demonstrations, `--config.sft.data=jsonl:FILE`; then the new model can be asked again.
"""

import argparse
import datetime
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gpt4jax import files, job
from gpt4jax.align import examples, human_scored, self_improve, toolformer, tools
from gpt4jax.errors import UserError
from gpt4jax.inference import Engine

ASK = 'Some words are followed by the call of a tool: "3 times 4 is [Calculator(3*4) -> 12] 12."\n\n'  # P(x)


def texts(path: files.Path, name: str) -> list[str]:
    """The texts of that name, one of each line.

    Raises:
        UserError: as `examples.read`; a line without one.
    """
    found = [row.get(name) for row in examples.read(path)]
    for number, text in enumerate(found, 1):
        if not isinstance(text, str) or not text.strip():
            raise UserError(f'{path}, row {number}: there is no text "{name}"')
    return found  # type: ignore[return-value]


def improved(engine: Engine, flags: argparse.Namespace) -> list[Mapping[str, Any]]:
    """Demonstrations of the paths that agree with most."""
    worked = zip(texts(flags.exemplars, "question"), texts(flags.exemplars, "path"), strict=True)
    exemplars = [self_improve.Exemplar(*one) for one in worked]
    drawn = self_improve.Sampling(
        flags.paths, flags.temperature, top_k=flags.top_k, max_tokens=flags.max_tokens, seed=flags.seed
    )
    voted = self_improve.ask(engine, texts(flags.questions, "question"), exemplars, drawn)
    kept = [one for one in voted if one.answer is not None and one.confidence >= flags.least_confidence]
    confidence = np.mean([one.confidence for one in voted])
    print(
        f"{len(voted)} questions, {flags.paths} paths each; on average {confidence:.1%} of them reach the majority's "
        f"answer; kept {len(kept)} questions, {sum(len(one.kept) for one in kept)} paths"
    )
    return list(self_improve.demonstrations(kept, exemplars))


def annotated(engine: Engine, flags: argparse.Namespace) -> list[Mapping[str, Any]]:
    """The texts that calls are of use to, with them."""
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
    ask = flags.ask or ASK
    found = toolformer.annotate(engine, texts(flags.texts, "text"), available, settings, lambda text: ask)
    with_calls = [text for text in found.texts if text is not None]
    share = f" ({found.share_kept:.1%})" if found.run else ""
    print(
        f"{len(found.texts)} texts: {found.drawn} calls drawn, {found.run} different ones run, {found.kept} kept"
        f"{share}, in {len(with_calls)} texts"
    )
    return [{"prompt": "", "response": text} for text in with_calls]


def _date(text: str) -> datetime.date:
    try:
        return datetime.date.fromisoformat(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no date such as 2024-02-29") from error


def _flags(argv: Sequence[str]) -> argparse.Namespace:
    about = __doc__.partition(":")[0] + "."
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.align.own_data", description=about)
    what = parser.add_subparsers(dest="what", required=True)
    one, other = what.add_parser("self_improve"), what.add_parser("toolformer")
    for each in (one, other):
        job.model_flags(each)
        each.add_argument("--out", required=True, type=files.user_path, help="JSONL for the stage of demonstrations")
        each.add_argument("--rows", type=int, default=16, help="texts that are decoded at once; they change nothing")
        each.add_argument("--max_len", type=int, default=0, help="of prompt and answer, tokens; default: the window")
        each.add_argument("--seed", type=int, default=0)
    one.add_argument("--questions", required=True, type=files.user_path)
    one.add_argument("--exemplars", required=True, type=files.user_path)
    one.add_argument("--paths", type=int, default=self_improve.PATHS, help="of each question")
    one.add_argument("--temperature", type=float, default=self_improve.TEMPERATURE)
    one.add_argument("--top_k", type=int, default=0)
    one.add_argument("--max_tokens", type=int, default=self_improve.Sampling().max_tokens, help="of a path")
    one.add_argument("--least_confidence", type=float, default=0.0, help="share of the paths, of questions to keep")
    paper = toolformer.Settings()
    other.add_argument("--texts", required=True, type=files.user_path)
    other.add_argument("--least_probability", type=float, default=paper.least_probability, help="that a call begins")
    other.add_argument("--positions", type=int, default=paper.positions, help="of a text, at most")
    other.add_argument("--calls", type=int, default=paper.calls, help="drawn at each")
    other.add_argument("--least_gain", type=float, default=paper.least_gain, help="nats by which a call must help")
    other.add_argument("--ask", help="what stands before a text to ask for calls, in place of our words")
    other.add_argument("--today", type=_date, help="what the calendar says; without it there is none")
    return parser.parse_args(argv)


def _engine(flags: argparse.Namespace) -> Engine:
    loaded = job.load_model(flags)
    if flags.max_len > loaded.config.max_seq_len:
        raise UserError(f"--max_len is {flags.max_len}; this model's window has {loaded.config.max_seq_len} tokens")
    return Engine(
        loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=flags.rows,
        max_len=flags.max_len or loaded.config.max_seq_len, consume=True,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Reads the flags, lets the model write, keeps what is of use; returns the exit status."""
    flags = _flags(argv)
    if flags.rows < 1 or flags.max_len < 0:
        raise UserError(f"--rows is {flags.rows}, --max_len {flags.max_len}: at least one row, and a length or 0")
    engine = _engine(flags)
    rows = (improved if flags.what == "self_improve" else annotated)(engine, flags)
    if not rows:
        raise UserError(f"nothing was kept: {flags.out} is not written")
    human_scored.write(flags.out, rows)
    job.say(f"{len(rows)} demonstrations in {flags.out}")
    return 0


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
