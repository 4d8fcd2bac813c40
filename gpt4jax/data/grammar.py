"""A language of exactly known entropy: Zipfian words, a grammar of brackets, and words that choose their successors.

A document is a sequence of choices, each a word, an opening or closing bracket, or the end. A word is drawn from a
class whose distribution depends on the word before and on the innermost bracket; inside a class by Zipf's law, so
that a learner meets ever rarer words, and its loss falls by a power law. (Zipf's exponent is 2, above that of natural
languages, so that a CPU's ladder comes nearer to the entropy.) Spellings are distinct and end with a space and brackets
are characters of their own, so a text has one derivation: the entropy of the text is that of the choices. It is summed
here in closed form, without a sample.

    choices       at depth 0: word 0.81, open 0.11, end 0.08; deeper: word 0.64, open 0.11, close 0.25
    an opening bracket is followed by a word, as is the start; at depth 3 nothing opens (a word instead);
    after the 48th word brackets only close, and the text ends

Our own design; Zipf's law as the cause of power laws: Hutter 2021 (Learning Curve Theory), Michaud et al. 2023.
"""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

CLASSES, WORDS_A_CLASS = 8, 2**13
ZIPF = 2.0  # the r-th word of a class has a probability proportional to r^-2
KINDS = 8  # of words, by what may follow them
OPENING, CLOSING = "([{<", ")]}>"
TYPES, MAX_DEPTH, MAX_WORDS = 4, 3, 48
OPEN_TYPES = (0.4, 0.3, 0.2, 0.1)
OPEN, CLOSE, END = 0.11, 0.25, 0.08
MAX_BYTES = MAX_WORDS * (7 + 1 + 2)  # a word of 7 letters, a space, and two brackets at most
_START = KINDS  # the kind of what stands before the first word


@dataclasses.dataclass(frozen=True)
class Language:
    """The tables of the language, drawn once from a fixed seed.

    Attributes:
        spelling: of word w = class * WORDS_A_CLASS + rank.
        rank_p: (rank,) probability inside a class.
        kind_w: (word,) the kind of each word.
        class_p: (kind before, innermost bracket or none, class) probabilities.
    """

    spelling: tuple[str, ...]
    rank_p: np.ndarray
    kind_w: np.ndarray
    class_p: np.ndarray


def language() -> Language:
    """The language; always the same one."""
    rng = np.random.default_rng(20230315)
    rank_p = np.arange(1, WORDS_A_CLASS + 1) ** -ZIPF
    kind_w = rng.integers(KINDS, size=CLASSES * WORDS_A_CLASS)
    # A low concentration: a kind of word has few classes that follow it, and a bracket changes which.
    class_p = rng.dirichlet(np.full(CLASSES, 0.3), size=(KINDS + 1, TYPES + 1))
    class_p = 0.98 * class_p + 0.02 / CLASSES
    return Language(_spellings(rng), rank_p / rank_p.sum(), kind_w, class_p)


def _spellings(rng: np.random.Generator) -> tuple[str, ...]:
    """Distinct random words; the commoner a word, the shorter: 2 letters and one more for each factor of 6 in rank."""
    taken: set[str] = set()
    words = []
    for word in range(CLASSES * WORDS_A_CLASS):
        length = 2 + int(math.log(1 + word % WORDS_A_CLASS, 6))
        while (spelling := "".join(chr(97 + i) for i in rng.integers(26, size=length))) in taken:
            pass
        taken.add(spelling)
        words.append(spelling)
    return tuple(words)


def actions(depth: int, must_be_word: bool, words: int) -> dict[str, float]:
    """Probabilities of "word", "open", "close" and "end" in a state of the grammar."""
    if must_be_word:
        return {"word": 1.0}
    leave = {"close": CLOSE} if depth else {"end": END}
    if words == MAX_WORDS:
        return dict.fromkeys(leave, 1.0)
    opening = {"open": OPEN} if depth < MAX_DEPTH else {}
    return {"word": 1 - sum(leave.values()) - sum(opening.values()), **opening, **leave}


def log_probability(language: Language, text: str, index: dict[str, int]) -> float:
    """The natural log of a document's probability, by reading it; minus infinity if the grammar has no such text.

    `index` is the word of each spelling.
    """
    stack: list[int] = []
    kind, words, must, total, at = _START, 0, True, 0.0, 0
    while True:
        allowed = actions(len(stack), must, words)
        mark = text[at : at + 1]
        name = "end" if not mark else "open" if mark in OPENING else "close" if mark in CLOSING else "word"
        if name not in allowed:
            return -math.inf
        total += math.log(allowed[name])
        if name == "end":
            return total
        at += 1
        if name == "open":
            stack.append(OPENING.index(mark))
            total += math.log(OPEN_TYPES[stack[-1]])
            must = True
        elif name == "close":
            if stack.pop() != CLOSING.index(mark):
                return -math.inf
        else:
            spelling, space, _ = text[at - 1 :].partition(" ")
            word = index.get(spelling)
            if word is None or not space:
                return -math.inf
            class_, rank = divmod(word, WORDS_A_CLASS)
            total += math.log(language.class_p[kind, stack[-1] if stack else TYPES, class_] * language.rank_p[rank])
            kind, words, must, at = int(language.kind_w[word]), words + 1, False, at + len(spelling)


def documents(language: Language, seed: int, size: int) -> Iterator[str]:
    """Documents of at least `size` bytes together, at most MAX_BYTES each; a pure function of (seed, size)."""
    while size > 0:
        rng = np.random.default_rng([20230316, seed, size])
        for text in _draw(language, rng, min(8192, 1 + size // 16)):
            yield text
            size -= len(text)
            if size <= 0:
                return


def _draw(language: Language, rng: np.random.Generator, count: int) -> list[str]:
    """`count` documents, drawn side by side, a choice of each at a time."""
    class_cdf, rank_cdf = np.cumsum(language.class_p, axis=-1), np.cumsum(language.rank_p)
    type_cdf = np.cumsum(OPEN_TYPES)
    parts: list[list[str]] = [[] for _ in range(count)]
    document = np.arange(count)  # of those that have not ended, as is each array below
    stack = np.full((count, MAX_DEPTH + 1), TYPES)  # [depth] is the innermost bracket; [0] says there is none
    depth, words, kind = np.zeros(count, int), np.zeros(count, int), np.full(count, _START)
    must = np.ones(count, bool)
    while count := len(document):
        coin, leave_p = rng.random(count), np.where(depth > 0, CLOSE, END)
        full = words == MAX_WORDS
        leave = ~must & (full | (coin < leave_p))
        opens = ~must & ~full & ~leave & (depth < MAX_DEPTH) & (coin < leave_p + OPEN)
        word, close = ~leave & ~opens, leave & (depth > 0)
        types = np.searchsorted(type_cdf, rng.random(count)).clip(max=TYPES - 1)
        at = np.arange(count)
        mode_cdf = class_cdf[kind, stack[at, depth]]
        class_ = (rng.random(count)[:, None] > mode_cdf).sum(axis=1).clip(max=CLASSES - 1)
        drawn = class_ * WORDS_A_CLASS + np.searchsorted(rank_cdf, rng.random(count)).clip(max=WORDS_A_CLASS - 1)
        for i, w in zip(document[word].tolist(), drawn[word].tolist(), strict=True):
            parts[i].append(language.spelling[w] + " ")
        for i, t in zip(document[opens].tolist(), types[opens].tolist(), strict=True):
            parts[i].append(OPENING[t])
        for i, t in zip(document[close].tolist(), stack[at, depth][close].tolist(), strict=True):
            parts[i].append(CLOSING[t])
        kind, words, must = np.where(word, language.kind_w[drawn], kind), words + word, (must & ~word) | opens
        depth = depth + opens - close
        stack[at[opens], depth[opens]] = types[opens]
        left = ~leave | close
        document, stack, depth, words, kind, must = (
            array[left] for array in (document, stack, depth, words, kind, must)
        )
    return ["".join(part) for part in parts]


@dataclasses.dataclass(frozen=True)
class Entropy:
    """Of one document, in expectation: nats, and bytes without the end of text."""

    nats: float
    bytes: float

    @property
    def nats_per_token(self) -> float:
        """The least loss there is with byte tokens, the end of text being one more."""
        return self.nats / (self.bytes + 1)

    @property
    def bits_per_byte(self) -> float:
        """The same in bits for each byte of text."""
        return self.nats / math.log(2) / self.bytes


def entropy(language: Language) -> Entropy:
    """The exact entropy and length of a document: a sum over all states of the grammar, without a sample.

    A state is (open brackets, kind of the last word, whether a word must follow); visits to each are summed by solving
    for all choices between two words at once, word by word.
    """
    stacks: list[tuple[int, ...]] = [()]
    for stack in stacks:  # grows while it is read: all stacks up to the greatest depth
        stacks += [(*stack, t) for t in range(TYPES)] if len(stack) < MAX_DEPTH else []
    number = {stack: i for i, stack in enumerate(stacks)}
    class_of = np.repeat(np.arange(CLASSES), WORDS_A_CLASS)
    rank_p = np.tile(language.rank_p, CLASSES)
    kind_p = np.stack([np.bincount(language.kind_w[class_of == c], language.rank_p, KINDS) for c in range(CLASSES)])
    length = np.array([len(word) + 1 for word in language.spelling]) * rank_p
    length_c = np.bincount(class_of, length)
    rank_h = -float(np.sum(language.rank_p * np.log(language.rank_p)))
    type_h = -sum(p * math.log(p) for p in OPEN_TYPES)
    class_h = -np.sum(language.class_p * np.log(language.class_p), axis=-1)

    shape = (len(stacks), KINDS + 1, 2)
    size = math.prod(shape)

    def tables(words: int):
        """Moves by a word, other moves, and what a visit costs in nats and bytes, with `words` words so far."""
        by_word, other = np.zeros((size, size)), np.zeros((size, size))
        nats, num_bytes = np.zeros(size), np.zeros(size)
        for at in range(size):
            s, kind, must = np.unravel_index(at, shape)
            stack = stacks[s]
            inner = stack[-1] if stack else TYPES
            chances = actions(len(stack), bool(must), words)
            nats[at] = -sum(p * math.log(p) for p in chances.values())
            if p := chances.get("word"):
                nats[at] += p * (class_h[kind, inner] + rank_h)
                num_bytes[at] += p * language.class_p[kind, inner] @ length_c
                row = by_word[at].reshape(shape)
                row[s, :KINDS, 0] += p * language.class_p[kind, inner] @ kind_p
            if p := chances.get("open"):
                nats[at] += p * type_h
                num_bytes[at] += p
                for t, share in enumerate(OPEN_TYPES):
                    other[at].reshape(shape)[number[*stack, t], kind, 1] += p * share
            if p := chances.get("close"):
                num_bytes[at] += p
                other[at].reshape(shape)[number[stack[:-1]], kind, 0] += p
        return by_word, np.linalg.inv(np.eye(size) - other), nats, num_bytes

    arriving = np.zeros(size)
    arriving.reshape(shape)[0, _START, 1] = 1
    total_nats = total_bytes = 0.0
    inside, last = tables(1), tables(MAX_WORDS)  # the choices are the same before the last word
    for words in range(MAX_WORDS + 1):
        by_word, closure, nats, num_bytes = last if words == MAX_WORDS else inside
        visits = arriving @ closure
        total_nats, total_bytes = total_nats + visits @ nats, total_bytes + visits @ num_bytes
        arriving = visits @ by_word
    return Entropy(float(total_nats), float(total_bytes))
