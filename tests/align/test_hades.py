"""HADES: rows, tokens, features, the detector and the measures, beside counting and beside published figures."""

import itertools
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.align import hades, hades_scores
from gpt4jax.align.hades import Row
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.evals import stats
from tests.conftest import SHAPES, apply, perturbed

TEXT = "she moved to ===new york=== , and sang ."
GOOD = {"replaced": TEXT, "replaced_ids": [3, 4], "hallucination": 1}
ROW = Row(("she", "moved", "to", "new", "york", ",", "and", "sang", "."), 3, 4, True)


def test_rows_go_both_ways(tmp_path):
    assert hades.parse(GOOD) == ROW and ROW.span == "new york"
    assert hades.line(ROW) == GOOD
    one = {"replaced": "===it=== rains", "replaced_ids": [0, 0], "hallucination": 0}
    assert hades.line(hades.parse(one)) == one
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(one)}\n")
    assert hades.read(path) == [ROW, Row(("it", "rains"), 0, 0, False)]
    path.write_text(f"{json.dumps(GOOD)}\n{json.dumps(one | {'hallucination': 2})}\n")
    with pytest.raises(UserError, match=r"rows.jsonl, row 2: .hallucination. is 2; it must be 0 or 1"):
        hades.read(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"replaced": "she moved to new york"}, "has 0 marks ===; it must have two"),
        ({"replaced": "she moved to ===new york"}, "has 1 marks"),
        ({"replaced": "===she=== moved to ===new york==="}, "has 4 marks"),
        ({"replaced_ids": [3, 3]}, r"\[3, 3\], and the marks are at words 3 and 4"),
        ({"replaced_ids": [2, 4]}, r"\[2, 4\], and the marks are at words 3 and 4"),
        ({"replaced_ids": [4, 3]}, "words 0 to 8"),
        ({"replaced_ids": [-1, 4]}, "words 0 to 8"),
        ({"replaced_ids": [3, 9]}, "words 0 to 8"),
        ({"replaced_ids": [3]}, "two whole numbers"),
        ({"replaced_ids": [3, 4.0]}, "two whole numbers"),
        ({"replaced_ids": [False, True]}, "two whole numbers"),
        ({"replaced": "she moved to === york=== ."}, "without a space"),
        ({"replaced": "she moved to ====== york", "replaced_ids": [3, 3]}, "around some"),
        ({"replaced": None}, "must be a text"),
        ({"hallucination": True}, "must be 0 or 1"),
        ({"hallucination": None}, "must be 0 or 1"),
    ],
)
def test_wrong_rows_are_said_in_words(change, words):
    with pytest.raises(UserError, match=words):
        hades.parse(GOOD | change)


def test_windows_hold_the_span_and_as_much_as_fits():
    for count, most in itertools.product(range(1, 12), range(1, 14)):
        for start, end in itertools.combinations(range(count + 1), 2):
            if end - start > most:
                with pytest.raises(ValueError, match="a span from"):
                    hades.window(count, start, end, most, "offline")
                continue
            left, right = hades.window(count, start, end, most, "online")
            assert right == end and left <= start and right - left == min(most, end)
            left, right = hades.window(count, start, end, most, "offline")
            assert 0 <= left <= start < end <= right <= count and right - left == min(most, count)
            if left > 0 and right < count:  # neither end of the text: as much before the span as behind, up to a token
                assert abs((start - left) - (right - end)) <= 1
    # The example in the authors' code: "and promoted to the ===senior team===".
    words = ["he", "signed", "a", "professional", "contract", "and", "promoted", "to", "the", "senior", "team", "where"]
    left, right = hades.window(len(words), 9, 11, 6, "online")
    assert words[left:right] == ["and", "promoted", "to", "the", "senior", "team"]


def test_a_rows_tokens_are_the_texts_and_the_spans_are_its_bytes():
    bytes_ = tokenizer.from_bytes()
    for setting, text in (("online", "she moved to new york"), ("offline", "she moved to new york , and sang .")):
        found = hades.encode(ROW, bytes_, setting)
        assert bytes_.decode(found.tokens[1:]) == text and found.tokens[0] == bytes_.start[0]
        assert bytes_.decode(found.tokens[found.start : found.end]) == "new york"
        cut = hades.encode(ROW, bytes_, setting, context=10)
        assert len(cut.tokens) == 11 and bytes_.decode(cut.tokens[cut.start : cut.end]) == "new york"
    with pytest.raises(UserError, match="has 8 tokens, and 7 of a text are read"):
        hades.encode(ROW, bytes_, "online", context=7)
    accented = Row(("où", "à", "Đà", "?"), 1, 2, False)  # two bytes a letter
    found = hades.encode(accented, bytes_, "offline")
    assert bytes_.decode(found.tokens[found.start : found.end]) == "à Đà"


def test_a_token_that_reaches_into_the_span_is_the_spans(tmp_path):
    path = tmp_path / "tokenizer.json"
    tokenizer.train_bpe([" new york , " * 20 + "she moved to"] * 3, 300, path)
    bpe = tokenizer.load_bpe(path)
    found = hades.encode(ROW, bpe, "offline")
    assert bpe.decode(found.tokens[found.start : found.end]) == " new york"
    assert bpe.decode(found.tokens[1 : found.start]) == "she moved to"
    assert found.end - found.start < len(" new york")  # several letters a token


@pytest.fixture(scope="module")
def decoder():
    config = model.Config(**{**SHAPES["llama"], "vocab_size": 257, "max_seq_len": 128})
    return config, perturbed(config)


def test_features_are_maxima_over_states_and_a_mean_of_log_probabilities(decoder):
    config, params = decoder
    bytes_ = tokenizer.from_bytes()
    rows = [
        ROW,
        ROW._replace(words=("a", "b", "c"), first=2, last=2),
        ROW._replace(words=tuple("xyzuvw"), first=0, last=0),
    ]
    texts = [hades.encode(row, bytes_, "offline") for row in rows]
    found = hades.features(config, params, texts, rows=2)
    ids_bt = np.full((3, 48), 7)  # behind a text there is something else than padding: nothing may change
    for i, one in enumerate(texts):
        ids_bt[i, : len(one.tokens)] = one.tokens
    x_btd = np.asarray(jax.jit(model.features, static_argnums=0)(config, params, ids_bt)[0], np.float64)
    logprobs_btv = np.asarray(jax.nn.log_softmax(apply(config, params, ids_bt)), np.float64)
    for i, one in enumerate(texts):
        np.testing.assert_allclose(found.span_bd[i], x_btd[i, one.start : one.end].max(axis=0), rtol=1e-4, atol=1e-5)
        behind_td = x_btd[i, one.end : len(one.tokens)]
        after_d = behind_td.max(axis=0) if len(behind_td) else np.zeros(config.embed_dim)
        np.testing.assert_allclose(found.after_bd[i], after_d, rtol=1e-4, atol=1e-5)
        mean = np.mean([logprobs_btv[i, t - 1, one.tokens[t]] for t in range(one.start, one.end)])
        assert found.logprob_b[i] == pytest.approx(mean, rel=1e-5)
    assert (found.after_bd[1] == 0).all() and found.of("offline").shape == (3, 2 * config.embed_dim)
    # Online is blind to what follows; offline is not, but for the states of the span itself.
    online = [hades.encode(row, bytes_, "online") for row in rows]
    seen = hades.features(config, params, online)
    np.testing.assert_allclose(seen.of("online"), found.span_bd, rtol=1e-5, atol=1e-5)
    other = [hades.encode(rows[0]._replace(words=(*ROW.words[:5], "!")), bytes_, s) for s in ("online", "offline")]
    changed = hades.features(config, params, other)
    np.testing.assert_array_equal(changed.span_bd[0], changed.span_bd[1])
    assert other[0] == online[0] and np.abs(changed.after_bd[1] - found.after_bd[0]).max() > 0.1


def test_the_loss_is_the_weighted_mean_of_cross_entropies():
    rng = np.random.default_rng(0)
    logits_b2, gold_b, weight_b = rng.normal(size=(7, 2)), rng.random(7) < 0.5, rng.random(7)
    by_hand = 0.0
    for row, right, weight in zip(logits_b2, gold_b, weight_b, strict=True):
        by_hand += weight * (math.log(math.exp(row[0]) + math.exp(row[1])) - row[int(right)])
    found = hades.loss(jnp.asarray(logits_b2, jnp.float32), jnp.asarray(gold_b), jnp.asarray(weight_b, jnp.float32))
    assert float(found) == pytest.approx(by_hand / weight_b.sum(), rel=1e-6)
    gold = [True] * 3 + [False]
    weights_2 = hades.class_weights(gold)
    assert weights_2 == pytest.approx([0.75, 0.25])  # so that three rows of one weigh as much as one of the other
    with pytest.raises(ValueError, match="both classes are needed"):
        hades.class_weights([True, True])


def test_the_detectors_forward_pass_and_that_it_learns_what_no_linear_one_can():
    rng = np.random.default_rng(1)
    x_bd = rng.normal(size=(403, 6)) * 5 + 100  # far from 0 and not of deviation 1; a last batch that is short
    x_bd[:, :2] += rng.choice([-30, 30], (403, 2))
    gold_b = (x_bd[:, 0] > 100) ^ (x_bd[:, 1] > 100)
    found = hades.fit(x_bd[:303], gold_b[:303], epochs=30, batch_size=32, learning_rate=0.03, hidden=16)
    assert hades_scores.scores(hades.probability(found, x_bd[303:]), gold_b[303:]).accuracy.mean == 1
    one = {name: np.asarray(value, np.float64) for name, value in found._asdict().items()}
    np.testing.assert_allclose(one["mean_d"], x_bd[:303].mean(axis=0), rtol=1e-5)
    scaled_bd = (x_bd - one["mean_d"]) / one["deviation_d"]
    hidden_bh = 1 / (1 + np.exp(-(scaled_bd @ one["hidden_dh"] + one["hidden_bias_h"])))
    logits_b2 = hidden_bh @ one["out_h2"] + one["out_bias_2"]
    by_hand = 1 / (1 + np.exp(logits_b2[:, 0] - logits_b2[:, 1]))
    np.testing.assert_allclose(hades.probability(found, x_bd), by_hand, atol=1e-4)
    assert one["hidden_dh"].shape == (6, 16)
    again = hades.fit(x_bd[:303], gold_b[:303], epochs=30, batch_size=32, learning_rate=0.03, hidden=16)
    assert jax.tree.all(jax.tree.map(np.array_equal, found, again))
    with pytest.raises(ValueError, match="features of shape"):
        hades.fit(x_bd, gold_b[:5])


def test_training_ends_where_the_weighted_loss_is_least():
    """Of features that say nothing that is one half, however rare a class is; padding of a batch counts for nothing."""
    gold_b = np.arange(20) == 0
    found = hades.fit(np.zeros((20, 4)), gold_b, epochs=200, batch_size=32, learning_rate=0.03)
    np.testing.assert_allclose(hades.probability(found, np.zeros((1, 4))), 0.5, atol=0.01)
    assert found.hidden_dh.shape == (4, 2)  # half as many units as features


def test_measures_are_those_that_the_authors_print():
    """The output of their BERT-large detector, offline, on the validation set of 1000, in their README.

    Its recalls, 0.8109161793372319 and 0.6016427104722792, are 416 of 513 and 293 of 487: the whole confusion matrix.
    """
    gold = np.array([False] * 513 + [True] * 487)
    found = np.array([0.2] * 416 + [0.8] * 97 + [0.8] * 293 + [0.2] * 194)
    one = hades_scores.scores(found, gold)
    assert one.accuracy.mean == pytest.approx(0.709)
    for ours, f1, precision, recall in (
        (one.consistent, 0.7408726625111309, 0.6819672131147541, 0.8109161793372319),
        (one.hallucination, 0.6681870011402509, 0.7512820512820513, 0.6016427104722792),
    ):
        assert (ours.f1.mean, ours.precision.mean, ours.recall.mean) == pytest.approx((f1, precision, recall))
    assert one.g_mean.mean == pytest.approx(0.6984853671214227)
    assert one.brier.mean == pytest.approx(0.709 * 0.04 + 0.291 * 0.64)
    # Of two probabilities the ROC curve has one corner, and half the sum of the recalls below it.
    assert one.auc.mean == pytest.approx((416 / 513 + 293 / 487) / 2)


def pairs_area(score, gold):
    ours, others = score[gold][:, None], score[~gold][None]
    return np.mean((ours > others) + (ours == others) / 2)  # every pair


def test_the_area_is_a_count_of_all_pairs_and_its_error_delongs():
    rng = np.random.default_rng(4)
    gold = rng.random(60) < 0.4
    score = np.round(rng.normal(size=60) + gold, 1)  # with ties
    values = hades_scores.auc_values(score, gold)
    assert values.mean() == pytest.approx(pairs_area(score, gold))
    ours, others = score[gold], score[~gold]
    own_i = [np.mean([(a > b) + (a == b) / 2 for b in others]) for a in ours]
    own_j = [np.mean([(a > b) + (a == b) / 2 for a in ours]) for b in others]
    delong = math.sqrt(np.var(own_i, ddof=1) / len(ours) + np.var(own_j, ddof=1) / len(others))
    assert stats.mean(values).standard_error == pytest.approx(delong, rel=0.02)  # n / (n - 1) counted otherwise
    # Any increasing function of the scores has the same area; the opposite order the rest.
    assert hades_scores.auc_values(np.exp(score), gold).mean() == pytest.approx(values.mean())
    assert hades_scores.auc_values(-score, gold).mean() == pytest.approx(1 - values.mean())
    with pytest.raises(ValueError, match="the area needs both"):
        hades_scores.auc_values(score, np.ones(60, bool))


def test_errors_of_area_and_g_mean_are_those_of_the_jackknife():
    rng = np.random.default_rng(5)
    clusters = rng.integers(0, 80, 240)
    shared = rng.normal(size=80)[clusters]
    gold = rng.random(240) < 0.5
    p = 1 / (1 + np.exp(-(rng.normal(size=240) + shared + gold)))

    def g_mean(keep):
        recalls = [np.mean((p[keep & (gold == cls)] > 0.5) == cls) for cls in (True, False)]
        return math.sqrt(recalls[0] * recalls[1])

    one = hades_scores.scores(p, gold, clusters.tolist())
    names = np.unique(clusters)
    for ours, whole, of in (
        (one.auc, pairs_area(p, gold), lambda keep: pairs_area(p[keep], gold[keep])),
        (one.g_mean, g_mean(np.ones(240, bool)), g_mean),
    ):
        left_out = np.array([of(clusters != name) for name in names])
        jackknife = math.sqrt((len(names) - 1) / len(names) * np.sum((left_out - left_out.mean()) ** 2))
        assert ours.mean == pytest.approx(whole)
        assert ours.standard_error == pytest.approx(jackknife, rel=0.03)
        assert ours.clusters == len(names) and 0 <= ours.low < ours.mean < ours.high <= 1
    alone = hades_scores.scores(p, gold)
    assert alone.brier.mean == pytest.approx(sum((a - b) ** 2 for a, b in zip(p, gold, strict=True)) / 240)


def test_measures_at_their_ends():
    gold = np.array([True, True, False])
    perfect = hades_scores.scores([0.9, 1.0, 0.0], gold)
    assert (perfect.auc.mean, perfect.g_mean.mean, perfect.accuracy.mean) == (1, 1, 1)
    always = hades_scores.scores([1.0, 1.0, 1.0], gold)
    assert (always.auc.mean, always.g_mean.mean, always.brier.mean) == pytest.approx((0.5, 0, 1 / 3))
    assert math.isnan(always.g_mean.standard_error) and (always.g_mean.low, always.g_mean.high) == (0, 1)
    assert always.consistent.precision is None and always.hallucination.recall.mean == 1
    assert hades_scores.scores([0.5] * 3, gold).hallucination.recall.mean == 0  # no more likely than not
    one_class = hades_scores.scores([0.2, 0.7], [True, True])
    assert one_class.auc is None and one_class.g_mean is None and one_class.accuracy.mean == 0.5
    for wrong in ([0.2, 1.1, 0.3], [0.2, -0.1, 0.3], [0.2, float("nan"), 0.3]):
        with pytest.raises(ValueError, match="must be from 0 to 1"):
            hades_scores.scores(wrong, gold)
    with pytest.raises(ValueError, match="must be as many"):
        hades_scores.scores([0.2, 0.3], gold)
