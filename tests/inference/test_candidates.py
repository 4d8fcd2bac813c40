"""Scores of texts that begin alike, beside the plain forward pass over each of them, and their bits in any company."""

import jax
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.inference import Candidates, Engine, candidates, reader
from gpt4jax.parallel.mesh import make_mesh
from tests.conftest import SHAPES, apply, perturbed

SHAPES = SHAPES | {
    "banded": SHAPES["llama"] | {"attention": ("banded:7", "dense")},
    "induction": SHAPES["llama"] | {"attention": ("induction", "dense")},
}


@pytest.fixture(autouse=True, scope="module")
def short_chunks():
    patch = pytest.MonkeyPatch()
    patch.setattr(candidates, "CHUNK", 16)
    patch.setattr(candidates, "STEP", 8)
    yield
    patch.undo()


def drawn(count: int, vocab_size: int = 8, seed: int = 0) -> list[Candidates]:
    """Items of all forms: shared prefixes, one or many choices, choices that begin alike, or not at all."""
    rng = np.random.default_rng(seed)
    ids = lambda n: tuple(rng.integers(0, vocab_size, n).tolist())  # noqa: E731
    shots = [ids(rng.integers(1, 30)) for _ in range(3)]
    items = []
    for i in range(count):
        before = shots[i % 3] if i % 4 else ()
        context = before + ids(rng.integers(1, 12))
        texts = tuple(context + ids(rng.integers(0 if i % 5 == 0 else 1, 9)) for _ in range(rng.integers(1, 6)))
        if i % 7 == 6:  # no common beginning
            texts = tuple(ids(rng.integers(1, 30)) for _ in range(3))
            items.append(Candidates(texts, tuple(int(rng.integers(1, len(text) + 1)) for text in texts)))
        else:
            items.append(Candidates(texts, (len(context),) * len(texts), shared=len(before)))
    return items


def scores(engine: Engine, items: list[Candidates]) -> list:
    found = dict(engine.score(items))
    return [found[i] for i in range(len(items))]


@pytest.mark.parametrize("name", list(SHAPES))
def test_scores_are_those_of_each_text_alone_and_the_same_bits_in_any_order(name):
    config = model.Config(**SHAPES[name] | {"max_seq_len": 64})
    params = perturbed(config)
    items = drawn(28)
    engine = Engine(config, params, rows=2)
    ours = scores(engine, items)
    for item, found in zip(items, ours, strict=True):
        for text, start, one in zip(item.texts, item.score_from, found, strict=True):
            row = np.array([[*text, *[0] * (64 - len(text))]])
            logprob = np.asarray(jax.nn.log_softmax(apply(config, params, row)))[0, np.arange(start - 1, len(text) - 1)]
            assert one.logprob == pytest.approx(logprob[np.arange(len(text) - start), text[start:]].sum(), abs=1e-4)
            assert one.greedy == (logprob.argmax(-1) == text[start:]).all()
    order = np.random.default_rng(1).permutation(len(items))
    assert scores(engine, [items[i] for i in order]) == [ours[i] for i in order]
    assert scores(Engine(config, params, rows=5), items[:9]) == ours[:9]


def test_on_eight_devices_the_scores_are_the_same():
    config = model.Config(**SHAPES["llama"] | {"max_seq_len": 64})
    params, items = perturbed(config), drawn(40, seed=3)
    one = scores(Engine(config, params), items)
    many = scores(Engine(config, params, mesh=make_mesh({"data": 8, "fsdp": 1, "tensor": 1})), items)
    for ours, theirs in zip(one, many, strict=True):
        assert [s.greedy for s in ours] == [s.greedy for s in theirs]
        np.testing.assert_allclose([s.logprob for s in ours], [s.logprob for s in theirs], atol=1e-5)


def test_where_the_ends_do_not_fit_beside_each_other_they_take_turns():
    config = model.Config(**SHAPES["llama"] | {"max_seq_len": 32})
    params = perturbed(config)
    stem = tuple(range(1, 11))
    item = Candidates(tuple((*stem, i, *range(i, i + 15)) for i in range(40, 48)), (10,) * 8)
    assert len(candidates.plan(item, 32).rounds) == 8
    engine = Engine(config, params)
    for one, text in zip(scores(engine, [item])[0], item.texts, strict=True):
        alone = scores(engine, [Candidates((text,), (10,))])[0][0]
        assert one.logprob == pytest.approx(alone.logprob, abs=1e-4)


def test_what_items_share_is_read_once():
    config = model.Config(**SHAPES["llama"] | {"max_seq_len": 64})
    shots = tuple(range(40))
    items = [Candidates(tuple((*shots, i, 50 + i, c) for c in range(4)), (42,) * 4, shared=40) for i in range(10)]
    engine = Engine(config, perturbed(config))
    scores(engine, items)
    assert engine.tokens_scored == 16 + 16 + 8 + 10 * 8  # the prefix in three chunks, and each question in one


def test_what_an_interrupt_left_half_read_is_not_taken_for_read(monkeypatch):
    config = model.Config(**SHAPES["llama"] | {"max_seq_len": 64})
    engine = Engine(config, perturbed(config))
    first, second = ([Candidates(((*range(a, a + 40), 1, 2),), (41,), shared=40)] for a in (0, 3))
    expected = [scores(engine, first), scores(engine, second)]
    scores(engine, first)
    read, calls = reader.read, []

    def interrupted(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return read(*args)

    monkeypatch.setattr(reader, "read", interrupted)
    with pytest.raises(KeyboardInterrupt):
        scores(engine, second)
    monkeypatch.undo()
    assert scores(engine, second) == expected[1] and scores(engine, first) == expected[0]


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (((), ()), "0 texts"),
        ((((1, 2),), (0,)), "after a context of at least one token"),
        ((((1, 2),), (3,)), "2 tokens can't be scored from token 3"),
        ((((1, 2), (3,)), (1,)), "2 texts to score and 1 places"),
    ],
)
def test_items_that_can_not_be(item, message):
    with pytest.raises(UserError, match=message):
        Candidates(*item)


def test_a_text_that_is_too_long_is_told_before_anything_is_scored():
    config = model.Config(**SHAPES["llama"] | {"max_seq_len": 32})
    engine = Engine(config, perturbed(config))
    with pytest.raises(UserError, match="33 tokens .* exceed the model's max_seq_len 32"):
        engine.score([Candidates(((1, 2),), (1,)), Candidates(((1,) * 33,), (1,))])
    with pytest.raises(UserError, match="token 4000"):
        engine.score([Candidates(((1, 4000),), (1,))])
