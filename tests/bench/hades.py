"""Does a small decoder's hidden state tell that a number or a name in a text is made up?

    python -m tests.bench.hades --workdir DIR [--train 600] [--held_out 300] [--write rows.jsonl]

HADES's own rows can't be had from a package, so these are made of real passages (of Wikipedia, from BoolQ), one of each
article: a span, a number or a name, is left as it is (0) or replaced by one of the same shape, behind the same word, of
another article (1). The span alone doesn't tell: spans that stay and spans that are put in are drawn from the same
pool, neither has a word that the passage has a second time, and one detector is given the spans by themselves, to show
that there is nothing to see. In HADES a language model put the spans in and humans judged them, so that they are
likelier and the labels harder: figures here are not comparable with that paper's.

Prints of each detector the measures on held-out articles: frozen SmolLM2-135M-Instruct under the published head, online
and offline; beside it the mean log probability of the span's tokens, with the threshold and slope of a logistic fit to
the training articles; and always saying the more frequent class. Hidden states are kept in DIR.
"""

import argparse
import collections
import pathlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from gpt4jax import files, weights
from gpt4jax.align import hades, hades_scores, human_scored
from gpt4jax.align.hades import Features, Row
from gpt4jax.evals import stats
from tests.bench.hallucinations import MODEL, order, passages
from tests.bench.rbrm import words as shown

HALLUCINATIONS = 0.545  # HADES's share
LEFT, MOST = 12, 75  # words before a span at least, and of a text at most: up to about 120 tokens
POOL = 20  # spans of a shape at least
SEEDS = 5  # of the head
_END = re.compile(r"(?<=[a-z0-9)])[.;:,)]+$")


class Found(NamedTuple):
    """A span of a text: words first..last, without the punctuation behind them, and its shape."""

    first: int
    last: int
    shape: str


def spans(words: Sequence[str]) -> Iterator[Found]:
    """Numbers, by how many digits they have, and names in the middle of a sentence, by how many words.

    Both also by the word before: what stood behind "in" is put behind "in".
    """
    bare = [_END.sub("", word) for word in words]
    i = 0
    while i < len(words):
        j = i
        if bare[i].isascii() and bare[i].isdecimal():
            yield Found(i, i, f"{words[i - 1]} number of {len(bare[i])}")
        elif i and bare[i - 1] == words[i - 1] and words[i - 1].islower():  # no sentence begins here
            while j < len(words) and re.fullmatch(r"[A-Z][a-z]+", bare[j]) and bare[i:j] == list(words[i:j]):
                j += 1
            if 1 <= j - i <= 2 and not (j < len(words) and bare[j - 1] == words[j - 1] and words[j][0].isupper()):
                yield Found(i, j - 1, f"{words[i - 1]} name of {j - i}")
        i = max(i + 1, j)


def rows(cache_dir: pathlib.Path, count: int) -> list[Row]:
    """One of each article, in the order of a hash of its title; whether a span is replaced is by another."""
    chosen = []
    pool = collections.defaultdict(list)
    for title, passage in passages(cache_dir).items():
        words = passage.split()[:MOST]
        here = [one for one in spans(words) if one.first >= LEFT and _alone(words, _span(words, one), once=1)]
        if here:
            one = min(here, key=lambda one: order(f"{title} {one.first}"))
            chosen.append((title, words, one))
            pool[one.shape].append(_span(words, one))
    found = []
    for title, words, one in [row for row in chosen if len(pool[row[2].shape]) >= POOL][:count]:
        bare, put = _span(words, one), _span(words, one)
        replaced = int(order(f"replaced {title}")[:8], 16) < HALLUCINATIONS * 2**32
        if replaced:
            others = [text for text in pool[one.shape] if text != bare and _alone(words, text, once=0)]
            put = others[int(order(f"by {title}")[:8], 16) % len(others)]
        # The span is a word by itself, as HADES has punctuation too.
        tail = " ".join(words[one.first : one.last + 1]).removeprefix(bare)
        text = (*words[: one.first], *put.split(), *([tail] if tail else []), *words[one.last + 1 :])
        found.append(Row(text, one.first, one.first + len(put.split()) - 1, replaced))
    return found


def _span(words: Sequence[str], one: Found) -> str:
    return _END.sub("", " ".join(words[one.first : one.last + 1]))


def _alone(words: Sequence[str], text: str, once: int) -> bool:
    """Whether each word of a span is in the text so many times and no more."""
    plain = [re.sub(r"\W|_", "", re.sub(r"['’]s\b", "", word)).lower() for word in words]
    return all(sum(part.lower() in word for word in plain) == once for part in text.split())


def kept(path: pathlib.Path, made: Sequence[Row], kind: str) -> Features:
    """The features of the rows, computed once: online, offline, or of the spans alone."""
    name = path / f"{kind}-{order(repr(made))[:12]}.npz"
    if not name.is_file():
        loaded, started = weights.load(MODEL), time.perf_counter()
        if kind == "alone":
            made = [row._replace(words=tuple(row.span.split()), first=0, last=row.last - row.first) for row in made]
        setting = "online" if kind == "alone" else kind
        texts = [hades.encode(row, loaded.tokenizer, setting) for row in made]
        found = hades.features(loaded.config, loaded.params, texts)
        tokens = sum(len(one.tokens) for one in texts)
        print(f"{kind}: {tokens} tokens, {tokens / len(texts):.0f} a text, in {time.perf_counter() - started:.0f} s")
        path.mkdir(parents=True, exist_ok=True)
        np.savez(name, **found._asdict())
    with np.load(name) as data:
        return Features(**data)


def show(name: str, probability_b: np.ndarray, gold_b: np.ndarray) -> None:
    one = hades_scores.scores(probability_b, gold_b)
    print(
        f"{name} | accuracy {shown(one.accuracy)} | AUC {shown(one.auc)} | G-mean {shown(one.g_mean)} | Brier "
        f"{shown(one.brier)} | F1 of hallucinations {shown(one.hallucination.f1)}, others {shown(one.consistent.f1)}",
        flush=True,
    )


def logistic(x_b: np.ndarray, gold_b: np.ndarray, train: int) -> np.ndarray:
    """Probabilities by one feature: Newton's method on the training rows."""
    both_b2 = np.stack([np.ones_like(x_b), (x_b - x_b[:train].mean()) / x_b[:train].std()], axis=1).astype(float)
    w_2 = np.zeros(2)
    for _ in range(20):
        p_b = 1 / (1 + np.exp(-both_b2[:train] @ w_2))
        hessian = (both_b2[:train] * (p_b * (1 - p_b))[:, None]).T @ both_b2[:train]
        w_2 -= np.linalg.solve(hessian, both_b2[:train].T @ (p_b - gold_b[:train]))
    return 1 / (1 + np.exp(-both_b2 @ w_2))


def main() -> None:
    """Makes rows, computes features, trains and tells."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", type=pathlib.Path, required=True)
    parser.add_argument("--train", type=int, default=600)
    parser.add_argument("--held_out", type=int, default=300)
    parser.add_argument("--write", type=pathlib.Path, help="the rows, in HADES's format")
    flags = parser.parse_args()
    made, train = rows(files.cache_dir(), flags.train + flags.held_out), flags.train
    if flags.write:
        human_scored.write(flags.write, map(hades.line, made))
        assert hades.read(flags.write) == made
    gold_b = np.array([row.hallucination for row in made])
    kinds = np.array([row.words[row.first].isdecimal() for row in made])
    print(f"{train} rows to train on, {gold_b[:train].mean():.3f} hallucinations, {kinds[:train].mean():.3f} numbers; "
          f"{len(made) - train} held out, {gold_b[train:].mean():.3f} and {kinds[train:].mean():.3f}")  # fmt: skip
    of = {kind: kept(flags.workdir, made, kind) for kind in ("online", "offline", "alone")}
    show(
        "always the more frequent class", np.full(len(made) - train, float(gold_b[:train].mean() > 0.5)), gold_b[train:]
    )
    told = {"mean log probability": logistic(of["online"].logprob_b, gold_b, train)}
    for name, x_bd in {
        "head, online": of["online"].span_bd, "head, offline": of["offline"].of("offline"),
        "head, the spans alone": of["alone"].span_bd,
    }.items():  # fmt: skip
        each = [hades.probability(hades.fit(x_bd[:train], gold_b[:train], seed=seed), x_bd) for seed in range(SEEDS)]
        areas = [hades_scores.auc_values(one[train:], gold_b[train:]).mean() for one in each]
        print(f"{name}: AUC of {SEEDS} seeds {min(areas):.3f} to {max(areas):.3f}; below it is seed 0's")
        told[name] = each[0]
    for name, p_b in told.items():
        show(f"{name}, train", p_b[:train], gold_b[:train])
        show(f"{name}, held out", p_b[train:], gold_b[train:])
        for kind, here in (("numbers", kinds[train:]), ("names", ~kinds[train:])):
            show(f"{name}, held out, {here.sum()} {kind}", p_b[train:][here], gold_b[train:][here])
    base = hades_scores.auc_values(told["mean log probability"][train:], gold_b[train:])
    for name in ("head, online", "head, offline"):
        ours = hades_scores.auc_values(told[name][train:], gold_b[train:])
        print(f"{name}, beside mean log probability: AUC {shown(stats.difference(ours, base))} more")


if __name__ == "__main__":
    sys.exit(main())
