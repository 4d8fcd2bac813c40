"""Demonstrations of refusals that a model's own answers to benign prompts stand beside, and how it is then measured.

    python -m tests.bench.refusals write --weights smollm2-135m-instruct --out own.jsonl
    python -m gpt4jax.align --config configs/align_refusals.py --workdir DIR --config.sft.data=jsonl:own.jsonl
    python -m gpt4jax.align.measure --measures safety --weights smollm2-135m-instruct --weights DIR/sft/export --out OUT

`write`: demonstrations of the training twins (gpt4jax/align/twins.json), a made refusal of each prompt that asks for
harm, and the model's own answer to each benign one, so that it keeps answering. The last command has the rates on the
held-out twins.
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


def write(name: str, out: pathlib.Path) -> None:
    """Demonstrations of the training side."""
    some = [pair for pair in rules.twins() if not rules.twins_held_out(pair)]
    rows = rules.demonstrations([(pair.disallowed, pair.kind) for pair in some])
    for pair, reply in zip(some, replies(name, [pair.allowed for pair in some]), strict=True):
        messages = [{"role": "user", "content": pair.allowed}, {"role": "assistant", "content": reply}]
        rows.append({"messages": messages})
    out.write_text("".join(json.dumps(row) + "\n" for row in rows))
    print(f"{len(rows)} demonstrations in {out}")


def main() -> None:
    """Writes demonstrations."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("write",))
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    flags = parser.parse_args()
    write(flags.weights, flags.out)


if __name__ == "__main__":
    sys.exit(main())
