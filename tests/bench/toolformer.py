"""Does a model find out by itself when to use a calculator? `python -m tests.bench.toolformer --workdir DIR`.

The texts are stories with one sum and its result: "Ann has 47 figs, gets 38. How many now? 85." A decoder of 0.9M
parameters is trained from scratch on such texts; on some with a call behind the story, marked as such ("Calls: "); and
on some behind a call and its result. These calls are of any operator and either order of the two numbers: it has seen
what calls look like, not which are of use. Other texts are then annotated by Toolformer's filter, the model is
fine-tuned on these, and asked sums that it has not seen. Beside it: the model before, which is made to call too; one
fine-tuned on the same texts without their calls; and the Toolformer without its calculator.
All training is `gpt4jax.train` with a JSONL file. Runs that are done already in DIR are not trained again.
"""

import argparse
import pathlib
import re
import sys
import time

import numpy as np

from gpt4jax.align import arithmetic, toolformer, tools
from gpt4jax.align.arithmetic import Problem
from gpt4jax.align.tools import Call
from gpt4jax.evals import stats
from tests.bench.self_improve import serve, told, train

SUMS = arithmetic.Difficulty(fewest=1, most=1, largest=99, operators="+-*")
ASK = "Calls: "
TOOLS = {"Calculator": tools.calculator}
VOCABULARY = 512


def text_of(one: Problem) -> str:
    """A story, its question and the answer."""
    return f"{one.question} {one.answer}."


def random_call(rng: np.random.Generator, one: Problem) -> Call:
    """Any sum of the two numbers."""
    a, b = rng.permutation([one.start, one.steps[0][1]])
    return Call("Calculator", f"{a}{rng.choice(list(SUMS.operators))}{b}")


def is_own(call: Call, one: Problem) -> bool:
    """Whether a call is the text's own sum, in either order where that is the same."""
    operator, other = one.steps[0]
    return call.input == one.expression or (operator != "-" and call.input == f"{other}{operator}{one.start}")


def corpus(seed: int, problems: list[Problem], with_calls: int) -> list[dict[str, str]]:
    """The texts; of the first ones also with a call at a random place behind the story, and behind a call."""
    rng = np.random.default_rng(seed)
    out = [text_of(one) for one in problems]
    for one in problems[:with_calls]:
        text, inside, before = text_of(one), random_call(rng, one), random_call(rng, one)
        at = int(rng.choice([place for place in toolformer.places(text) if place > text.index(".")]))
        out.append(f"{ASK}{text[:at]}{tools.write(inside, tools.run(inside, TOOLS))}{text[at:]}")
        out.append(f"{tools.write(before, tools.run(before, TOOLS)).lstrip()} {text}")
    return [{"prompt": "", "response": text} for text in out]


def right(engine, problems: list[Problem], **settings) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each question: whether its greedy answer is right, whether a call was run, and of the right sum."""
    answers = toolformer.generate(engine, [one.question for one in problems], TOOLS, max_tokens=12, **settings)
    said = [re.match(r" (\d+)\.", tools.strip(one.text)) for one in answers]
    calls = [[found.call for found in tools.find(one.text)] for one in answers]
    return (
        np.array(
            [found is not None and found[1] == str(one.answer) for found, one in zip(said, problems, strict=True)]
        ),
        np.array([one.calls > 0 for one in answers]),
        np.array([any(is_own(call, one) for call in some) for some, one in zip(calls, problems, strict=True)]),
    )


def report(
    name: str, workdir: pathlib.Path, problems: list[Problem], flags: argparse.Namespace
) -> dict[str, np.ndarray]:
    """Prints a model's accuracy without calls, and with those that it begins at k = 1 and k = 10."""
    engine, out = serve(workdir, flags.rows), {}
    print(name, flush=True)
    for how, settings in (("no calls", dict(max_calls=0)), ("top 1", dict(top_k=1)), ("top 10", dict(top_k=10))):
        out[how], called, own = right(engine, problems, **settings)
        told(f"accuracy, {how}", stats.mean(out[how]))
        if how != "no calls":
            print(f"    calls {called.mean():.3f} of the questions, the right sum for {own.mean():.3f}", flush=True)
    return out


def annotated(base: pathlib.Path, problems: list[Problem], flags: argparse.Namespace) -> list[tuple[str, str]]:
    """The texts with a kept call, as they were and with it; prints what the filter kept."""
    settings = toolformer.Settings(
        least_probability=flags.least_probability, positions=flags.positions, calls=flags.calls,
        least_gain=flags.least_gain, seed=flags.seed,
    )  # fmt: skip
    texts = [text_of(one) for one in problems]
    found = toolformer.annotate(serve(base, flags.rows), texts, TOOLS, settings, lambda text: ASK)
    kept = [one for one in found.judged if one.gain >= settings.least_gain]
    print(f"{len(texts)} texts: {found.drawn} calls drawn, {found.run} different ones run", flush=True)
    told("share of these kept by the filter", stats.mean([one.gain >= settings.least_gain for one in found.judged]))
    for name, some in (("run", found.judged), ("kept", kept)):
        if some:
            own = [is_own(one.sampled.call, problems[one.sampled.text]) for one in some]
            last = [one.sampled.at == toolformer.places(texts[one.sampled.text])[-1] for one in some]
            told(f"of those {name}, the text's own sum", stats.mean(own))
            told(f"of those {name}, right before the answer", stats.mean(last))
    pairs = [(text, new) for text, new in zip(texts, found.texts, strict=True) if new is not None]
    print(f"  {len(pairs)} texts with calls; the first:", *(new for _, new in pairs[:3]), sep="\n    ", flush=True)
    return pairs


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--texts", type=int, default=3000, help="that the first model learns from")
    parser.add_argument("--with_calls", type=int, default=2000, help="of these also with calls, and behind calls")
    parser.add_argument("--annotate", type=int, default=1000, help="texts that are annotated")
    parser.add_argument("--held_out", type=int, default=400, help="sums that models are compared on")
    parser.add_argument("--least_probability", type=float, default=0.05)
    parser.add_argument("--positions", type=int, default=5)
    parser.add_argument("--calls", type=int, default=5)
    parser.add_argument("--least_gain", type=float, default=0.3)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--tune_steps", type=int, default=60)
    parser.add_argument("--tune_rate", type=float, default=5e-4)
    parser.add_argument("--rows", type=int, default=64, help="texts that are written at once; they change nothing")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    began = time.perf_counter()
    flags.workdir = flags.workdir.absolute()
    held_out = arithmetic.problems(flags.seed, "held_out", flags.held_out, SUMS)
    data = corpus(flags.seed, arithmetic.problems(flags.seed, "questions", flags.texts, SUMS), flags.with_calls)
    base = train(
        flags.workdir / "base", data, num_steps=flags.steps, seed=flags.seed,
        **{"model.vocab_size": VOCABULARY, "data.tokenizer": f"bpe:{VOCABULARY}", "optimizer.learning_rate": 2e-3},
    )  # fmt: skip
    before = report("the model before", base, held_out, flags)
    pairs = annotated(base, arithmetic.problems(flags.seed, "demonstrations", flags.annotate, SUMS), flags)
    tuned = {}
    for number, name in enumerate(("without", "with")):
        rows = [{"prompt": "", "response": pair[number]} for pair in pairs]
        options = {
            "data.tokenizer": "weights",
            "optimizer.learning_rate": flags.tune_rate,
            "model.vocab_size": VOCABULARY,
        }
        run = train(flags.workdir / name, rows, num_steps=flags.tune_steps, init_from=base, **options)
        tuned[name] = report(f"fine-tuned on these texts {name} their calls", run, held_out, flags)
    print("differences, question by question", flush=True)
    calls, disabled = tuned["with"]["top 10"], tuned["with"]["no calls"]
    told("Toolformer with the calculator - without it", stats.difference(calls, disabled))
    told("Toolformer - fine-tuned without calls", stats.difference(calls, tuned["without"]["no calls"]))
    told("Toolformer - before", stats.difference(calls, before["no calls"]))
    print(f"{time.perf_counter() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
