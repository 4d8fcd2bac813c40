"""The language of known entropy: its closed form beside samples, and beside a whole enumeration of a small part."""

import math

import numpy as np
import pytest

from gpt4jax.data import grammar

_BAD = ("(", "(w", "(w ", "(w ]", "(w ))", "()", "((w ))")  # behind a word


@pytest.fixture(scope="module")
def language():
    return grammar.language()


@pytest.fixture(scope="module")
def index(language):
    return {spelling: word for word, spelling in enumerate(language.spelling)}


def test_entropy_is_the_mean_log_probability_of_documents(language, index):
    """The closed form against texts that are drawn by one program and read by another, within four standard errors."""
    texts = list(grammar.documents(language, 5, 1_500_000))
    nats = np.array([-grammar.log_probability(language, text, index) for text in texts])
    size = np.array([len(text) for text in texts])
    assert np.isfinite(nats).all() and size.max() <= grammar.MAX_BYTES
    exact = grammar.entropy(language)
    for mean, sample in ((exact.nats, nats), (exact.bytes, size)):
        assert abs(sample.mean() - mean) < 4 * sample.std() / math.sqrt(len(sample))
    assert exact.nats_per_token == exact.nats / (exact.bytes + 1)
    assert exact.bits_per_byte == pytest.approx(exact.nats / exact.bytes / math.log(2))


def test_probabilities_of_all_continuations_add_up_to_one(language, index):
    """The probabilities of a start and of all that may follow it, up to the end: chance nodes leak nothing."""
    for kind in (0, grammar.KINDS):
        for inner in range(grammar.TYPES + 1):
            assert language.class_p[kind, inner].sum() == pytest.approx(1)
    assert language.rank_p.sum() == pytest.approx(1)
    for depth in range(grammar.MAX_DEPTH + 1):
        for must in (True, False):
            for words in (1, grammar.MAX_WORDS):
                assert sum(grammar.actions(depth, must, words).values()) == pytest.approx(1)
    # a document of one word, by hand: the word at depth 0 after the start, then the end
    word = index[language.spelling[3 * grammar.WORDS_A_CLASS + 7]]
    by_hand = math.log(language.class_p[grammar.KINDS, grammar.TYPES, 3] * language.rank_p[7]) + math.log(0.08)
    assert grammar.log_probability(language, language.spelling[word] + " ", index) == pytest.approx(by_hand)


def test_texts_outside_the_grammar(language, index):
    word = language.spelling[0]
    good = f"{word} ({word} )"
    assert grammar.log_probability(language, good, index) > -math.inf
    for text in ("", word, f"({word} )", f"{word}  ", f"{word} Q ", *(f"{word} {bad}" for bad in _BAD)):
        assert grammar.log_probability(language, text.replace("w", word), index) == -math.inf, text
    deep = f"{word} " + f"({word} " * 3 + ")" * 3
    assert grammar.log_probability(language, deep, index) > -math.inf
    assert grammar.log_probability(language, f"{word} " + f"({word} " * 4 + ")" * 4, index) == -math.inf
    assert grammar.log_probability(language, f"{word} " * grammar.MAX_WORDS, index) > -math.inf
    assert grammar.log_probability(language, f"{word} " * (grammar.MAX_WORDS + 1), index) == -math.inf


def test_documents_are_a_function_of_the_seed(language):
    first = list(grammar.documents(language, 0, 20_000))
    assert first == list(grammar.documents(language, 0, 20_000))
    assert first != list(grammar.documents(language, 1, 20_000))
    assert 20_000 <= sum(map(len, first)) < 20_000 + grammar.MAX_BYTES
    assert len(set(language.spelling)) == len(language.spelling) == grammar.CLASSES * grammar.WORDS_A_CLASS
