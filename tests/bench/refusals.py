"""What configs/align_refusals.py is trained on: a model's own answers, and made refusals, of the training twins.

    python -m tests.bench.refusals demonstrations --weights smollm2-135m-instruct --out own.jsonl
    python -m tests.bench.refusals comparisons --weights smollm2-135m-instruct --out ranked.jsonl
    python -m gpt4jax.align --config configs/align_refusals.py --workdir DIR
    python -m gpt4jax.align.measure --measures safety --weights smollm2-135m-instruct --weights DIR/dpo/export --out OUT

`demonstrations`: a made refusal of each prompt that asks for harm, and the model's own answer to each benign one
(gpt4jax/align/twins.json), so that it keeps answering. `comparisons`: of every prompt the model's own answer and a made
refusal, ranked by rules. The last command has the rates on the held-out twins.
"""

import argparse
import json
import pathlib
import sys
from collections.abc import Sequence

from gpt4jax import weights
from gpt4jax.align import rules
from gpt4jax.inference import Engine, Request, chat

TOKENS = 60


def replies(name: str, prompts: Sequence[str]) -> list[str]:
    """Greedy replies of a model."""
    loaded = weights.load(name)
    template = chat.of_model(loaded.chat_template, loaded.tokenizer.roles, name)
    engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=16, max_len=192, consume=True)
    asked = [chat.encode(template, loaded.tokenizer, [{"role": "user", "content": prompt}]) for prompt in prompts]
    return [result.text for result in engine.generate(Request(ids, TOKENS, temperature=0.0) for ids in asked)]


def demonstrations(name: str) -> list[dict]:
    """Of the training side."""
    some = [pair for pair in rules.twins() if not rules.twins_held_out(pair)]
    rows = rules.demonstrations([(pair.disallowed, pair.kind) for pair in some])
    for pair, reply in zip(some, replies(name, [pair.allowed for pair in some]), strict=True):
        messages = [{"role": "user", "content": pair.allowed}, {"role": "assistant", "content": reply}]
        rows.append({"messages": messages})
    return rows


def comparisons(name: str) -> list[dict]:
    """Of the training side; where both replies are of the same class there is nothing to compare."""
    asked = [one for pair in rules.twins() if not rules.twins_held_out(pair)
             for one in ((pair.disallowed, pair.kind), (pair.allowed, "benign"))]  # fmt: skip
    said = replies(name, [prompt for prompt, _ in asked])
    rows = [
        rules.comparison(prompt, kind, [reply, rules.refusal(prompt, kind if kind != "benign" else "harmful")])
        for (prompt, kind), reply in zip(asked, said, strict=True)
    ]
    return [row for row in rows if len(set(row["ranks"])) > 1]


def main() -> None:
    """Writes the file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("demonstrations", "comparisons"))
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    rows = (demonstrations if flags.what == "demonstrations" else comparisons)(flags.weights)
    flags.out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} {flags.what} in {flags.out}")


if __name__ == "__main__":
    sys.exit(main())
