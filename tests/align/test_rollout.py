"""Answers drawn by the engine: with the token that ended them, and by the parameters of the moment."""

import jax
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.align import rollout
from gpt4jax.data import tokenizer
from gpt4jax.inference import Engine, Request
from tests.conftest import perturbed

CONFIG = model.Config(
    vocab_size=4, num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32, max_seq_len=16,
    init_std=0.3,
)  # fmt: skip
ABC = tokenizer.from_characters("abc")


@pytest.fixture(scope="module")
def params():
    return [perturbed(CONFIG, seed=seed) for seed in (0, 1)]


def engine_of(params):
    return Engine(CONFIG, params, tokenizer=ABC, rows=4)


def drawn(engine, seeds=range(40)):
    prompts = [[3, seed % 3] for seed in seeds]
    return rollout.draw(engine, prompts, seeds=np.array(seeds), length=8, room=5, temperature=1.0)


def test_an_answer_has_the_token_that_ended_it_and_fills_its_room_otherwise(params):
    some = drawn(engine_of(params[0]))
    lengths = []
    for row, (text, ended) in enumerate(zip(some.texts, some.ended_b, strict=True)):
        length = int(some.answers.length_b[row])
        answer = some.answers.tokens_bt[row, 2 : 2 + length].tolist()
        assert ABC.decode(answer) == text and (answer[-1] == 3) == ended
        assert 3 not in answer[:-1] and (ended or length == 5) and not some.answers.tokens_bt[row, 2 + length :].any()
        lengths.append(length)
    assert 0 < sum(some.ended_b) < 40 and len(set(lengths)) > 2


def test_an_engine_goes_on_with_other_parameters_as_a_new_one_would(params):
    engine = engine_of(params[0])
    first = drawn(engine)
    engine.update(params[1])
    second, new = drawn(engine), drawn(engine_of(params[1]))
    np.testing.assert_array_equal(second.answers.tokens_bt, new.answers.tokens_bt)
    assert (first.answers.tokens_bt != second.answers.tokens_bt).any()
    pair = [([3, 0], [1, 2])]
    (ours, _), (theirs, _) = engine.loglikelihood(pair)[0], engine_of(params[1]).loglikelihood(pair)[0]
    assert ours == theirs
    engine.update(jax.tree.map(lambda leaf: leaf, params[0]))
    np.testing.assert_array_equal(drawn(engine).answers.tokens_bt, first.answers.tokens_bt)


def test_parameters_stay_while_answers_are_drawn(params):
    engine = engine_of(params[0])
    number = engine.submit(Request([3, 0], 4))
    with pytest.raises(ValueError, match="an answer is by one set of parameters"):
        engine.update(params[1])
    engine.cancel(number)
    engine.update(params[1])
