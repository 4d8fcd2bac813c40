"""What a decoder says of answers, beside the plain forward pass; adapters beside sums by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.align import answers, lora
from gpt4jax.align.answers import Answers
from gpt4jax.align.form import Form
from gpt4jax.errors import UserError
from gpt4jax.model import parameters
from tests.conftest import LLAMA, apply, perturbed

CONFIG = model.Config(**LLAMA, init_std=0.3)
PROMPTS, ANSWERS = [[5, 6, 7], [9], [3, 4]], [[1, 2], [8, 8, 8, 2], [2]]
ROOM = 5


@pytest.fixture(scope="module")
def params():
    return perturbed(CONFIG)


def batch(padding=0, width=12):
    tokens = np.full((3, width), padding, np.int32)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        tokens[row, : len(prompt) + len(answer)] = prompt + answer
    lengths = [np.array([len(one) for one in some], np.int32) for some in (PROMPTS, ANSWERS)]
    return Answers(jnp.asarray(tokens), *map(jnp.asarray, lengths))


def test_log_probs_scores_and_values_are_those_of_each_answer_alone(params):
    rng = np.random.default_rng(0)
    head = {"score_d": jnp.asarray(rng.normal(size=CONFIG.embed_dim), jnp.float32), "bias": jnp.asarray(0.25)}
    some = batch()
    x_btd = answers.features(CONFIG, params, some)
    log_p = np.asarray(answers.log_probs(CONFIG, params, some, x_btd, ROOM, temperature=0.7))
    scores, values = answers.scores(head, some, x_btd), np.asarray(answers.values(head, some, x_btd, ROOM))
    mask = np.asarray(answers.mask(some, ROOM))
    logits_btv = np.asarray(apply(CONFIG, params, some.tokens_bt), np.float64) / 0.7  # padding stands behind it all
    log_p_btv = logits_btv - np.logaddexp.reduce(logits_btv, axis=-1, keepdims=True)
    plain_btd = np.asarray(model.features(CONFIG, params, some.tokens_bt)[0], np.float64)
    for row, (prompt, answer) in enumerate(zip(PROMPTS, ANSWERS, strict=True)):
        log_p_tv, x_td = log_p_btv[row], plain_btd[row, : len(prompt) + len(answer)]
        first = len(prompt) - 1
        wanted = [float(log_p_tv[first + t, token]) for t, token in enumerate(answer)]
        np.testing.assert_allclose(log_p[row], wanted + [0] * (ROOM - len(answer)), rtol=1e-4, atol=1e-5)
        by_hand = x_td @ np.asarray(head["score_d"]) + 0.25
        assert float(scores[row]) == pytest.approx(by_hand[-1], rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(values[row, : len(answer)], by_hand[first:-1], rtol=1e-4, atol=1e-4)
        assert mask[row].tolist() == [t < len(answer) for t in range(ROOM)]
        assert not values[row, len(answer) :].any()


def test_what_stands_behind_an_answer_changes_nothing(params):
    for room in (ROOM, 11):  # more places than the row has behind some prompts
        one, other = (
            answers.log_probs(CONFIG, params, some, answers.features(CONFIG, params, some), room)
            for some in (batch(0), batch(17))
        )
        np.testing.assert_array_equal(one, other)


def test_adapters_are_a_sum_of_products_and_begin_as_nothing(params):
    form = Form(CONFIG, rank=3, scale=2.0, targets=("query", "out", "down"))
    adapters = form.begin(params, jax.random.key(1))
    assert sorted(adapters) == ["down_fd", "out_nhd", "query_dnh"]
    for name, leaf in parameters.tree(CONFIG, lambda row: row.name)["layers"].items():
        np.testing.assert_array_equal(form.whole(adapters, params)["layers"][name], params["layers"][leaf])
    rng = np.random.default_rng(0)
    adapters = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), jnp.float32), adapters)
    whole = form.whole(adapters, params)["layers"]
    sums = {"query_dnh": "ldr,lrnh->ldnh", "out_nhd": "lnhr,lrd->lnhd", "down_fd": "lfr,lrd->lfd"}
    for name, sum_ in sums.items():
        product = np.einsum(sum_, *(np.asarray(adapters[name][side], np.float64) for side in "ab"))
        np.testing.assert_allclose(whole[name], np.asarray(params["layers"][name]) + 2 * product, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(whole["up_df"], params["layers"]["up_df"])
    variance = float(jnp.var(lora.init(CONFIG, 64, ("down",), jax.random.key(0))["down_fd"]["a"]))
    assert variance == pytest.approx(1 / CONFIG.mlp_dim, rel=0.1)


def test_adapters_that_cannot_be():
    options = dict(lora_rank=2, lora_alpha=4.0, lora_targets=("query", "quary"))
    with pytest.raises(UserError, match="adapters are for quary; the layers have down, gate, key, out, query, up, val"):
        Form.of(_Options(**options), CONFIG)
    with pytest.raises(UserError, match="lora_rank is -1"):
        Form.of(_Options(**{**options, "lora_rank": -1}), CONFIG)
    assert Form.of(_Options(**{**options, "lora_targets": ("query",)}), CONFIG).scale == 2
    assert Form.of(_Options(**{**options, "lora_rank": 0}), CONFIG) == Form(CONFIG)


@dataclasses.dataclass
class _Options:
    lora_rank: int
    lora_alpha: float
    lora_targets: tuple
