"""What a model does with prompts that ask for harm and with benign ones like them, before and after training.

    python -m tests.bench.refusals write --weights smollm2-135m-instruct --out own.jsonl
    python -m gpt4jax.align --config configs/align_refusals.py --workdir DIR --config.sft.data=jsonl:own.jsonl
    python -m tests.bench.refusals rate --weights smollm2-135m-instruct --weights DIR/sft/export --out replies.jsonl

`write`: demonstrations of the training twins (gpt4jax/align/twins.json), a made refusal of each prompt that asks for
harm, and the model's own answer to each benign one, so that it keeps answering. `rate`: greedy replies to the held-out
twins; the shares of compliance and of over-refusal, with intervals, and ten pairs of replies. Classes are told by words
(`rules.lexical_class`), which take whatever is no refusal of a prompt that asks for harm for compliance.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from gpt4jax import weights
from gpt4jax.align import rules, safety_scores
from gpt4jax.inference import Engine, Request, chat

TOKENS, SHOWN = 60, 10


def replies(name: str, prompts: Sequence[str]) -> list[str]:
    """Greedy replies of a model."""
    loaded = weights.load(name)
    template = chat.of_model(loaded.chat_template, loaded.tokenizer.roles, name)
    engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=16, max_len=192, consume=True)
    asked = [chat.encode(template, loaded.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    return [result.text for result in engine.generate(Request(ids, TOKENS, temperature=0.0) for ids in asked)]


def sides(held_out: bool) -> tuple[list[rules.Twins], list[tuple[str, str]]]:
    """The twins of one side, and their prompts with their kinds."""
    some = [pair for pair in rules.twins() if rules.twins_held_out(pair) == held_out]
    return some, [one for pair in some for one in ((pair.disallowed, pair.kind), (pair.allowed, "benign"))]


def write(name: str, out: pathlib.Path) -> None:
    """Demonstrations of the training side."""
    some, _ = sides(held_out=False)
    rows = rules.demonstrations([(pair.disallowed, pair.kind) for pair in some])
    for pair, reply in zip(some, replies(name, [pair.allowed for pair in some]), strict=True):
        messages = [{"role": "user", "content": pair.allowed}, {"role": "assistant", "content": reply}]
        rows.append({"messages": messages})
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} demonstrations in {out}")


def rate(names: Sequence[str], out: pathlib.Path) -> None:
    """The rates of each model on the held-out side."""
    some, prompts = sides(held_out=True)
    clusters = [number for number in range(len(some)) for _ in range(2)]
    said = {name: replies(name, [prompt for prompt, _ in prompts]) for name in names}
    for name, texts in said.items():
        classes = [rules.lexical_class(text, kind) for text, (_, kind) in zip(texts, prompts, strict=True)]
        found = safety_scores.safety([kind for _, kind in prompts], classes, clusters)._asdict()
        shares = ", ".join(
            f"{what} {one.mean:.3f} ({one.low:.3f} to {one.high:.3f})"
            for what, one in found.items() if what in ("disallowed", "desired", "over_refusal")
        )  # fmt: skip
        print(f"{name}: {shares}; {len(some)} pairs of prompts")
    rows = [
        {"prompt": prompt, "kind": kind, "replies": {name: said[name][i] for name in names}}
        for i, (prompt, kind) in enumerate(prompts)
    ]
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows[: 2 * SHOWN]:
        print(f"\n[{row['kind']}] {row['prompt']}")
        for name, text in row["replies"].items():
            print(f"    {pathlib.Path(name).parts[-1]}: {text[:160]!r}")


def main() -> None:
    """Writes demonstrations, or rates models."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("write", "rate"))
    parser.add_argument("--weights", action="append", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    if flags.what == "write":
        write(flags.weights[0], flags.out)
    else:
        rate(flags.weights, flags.out)


if __name__ == "__main__":
    sys.exit(main())
