"""The forward pass against float64 NumPy, and what must not change it: packing, layers, remat, a cache, the future."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from gpt4jax import model
from gpt4jax.model import layers, masks, patterns
from gpt4jax.training.loss import summed_loss
from tests.conftest import SHAPES, apply, perturbed
from tests.model import numpy_decoder

T = 24
SEGMENTS = np.array([1] * 9 + [2] * 11 + [0] * 4)
POSITIONS = np.array([*range(9), *range(11), *range(4)])
EXTRAS = {
    "plain": {},
    "all options": dict(qk_norm=True, attention_soft_cap=2.0, logit_soft_cap=3.0, attention=("dense", "banded:4")),
    "induction": dict(attention=("induction", "dense")),
    "sparse": dict(attention=("strided:4", "fixed:5:2")),
    "heads": dict(attention=("banded:4/column:3", "block:6|summary:4:1")),
}


@pytest.fixture(scope="module")
def tokens_bt():
    """Few different ones, so that a document repeats them."""
    return jax.random.randint(jax.random.key(5), (2, T), 0, 12)


@pytest.mark.parametrize("extra", EXTRAS)
def test_logits_equal_numpy_float64(shape, extra, tokens_bt):
    config = model.Config(**shape, **EXTRAS[extra])
    params = perturbed(config)
    segments_bt, positions_bt = (jnp.array([row, row]) for row in (SEGMENTS, POSITIONS))
    ours = apply(config, params, tokens_bt, segment_ids_bt=segments_bt, positions_bt=positions_bt)
    for row in range(2):
        theirs = numpy_decoder.logits(config, params, np.asarray(tokens_bt[row]), POSITIONS, SEGMENTS)
        np.testing.assert_allclose(ours[row], theirs, atol=2e-5 * np.abs(theirs).max())


def test_packed_equals_alone(shape, tokens_bt):
    config = model.Config(**shape)
    params = perturbed(config)
    packed = apply(
        config, params, tokens_bt, segment_ids_bt=jnp.array([SEGMENTS] * 2), positions_bt=jnp.array([POSITIONS] * 2)
    )
    np.testing.assert_allclose(packed[:, :9], apply(config, params, tokens_bt[:, :9]), atol=2e-5)
    np.testing.assert_allclose(packed[:, 9:20], apply(config, params, tokens_bt[:, 9:20]), atol=2e-5)


@pytest.mark.parametrize(
    ("layers", "remat", "first"),
    [("scan", "full", "dense"), ("unroll", "none", "strided:3|fixed:4:1"), ("scan", "none", "induction")],
)
def test_later_tokens_and_other_documents_leave_no_trace(shape, layers, remat, first, tokens_bt):
    config = model.Config(**shape, layers=layers, remat=remat, attention=(first, "banded:5"))
    params = perturbed(config)
    segments_bt, positions_bt = (jnp.array([row, row]) for row in (SEGMENTS, POSITIONS))

    @jax.jit
    def run(tokens_bt, weights_bt):
        def loss(params):
            x_btd, _ = model.features(config, params, tokens_bt, segment_ids_bt=segments_bt, positions_bt=positions_bt)
            # The targets are the row's own tokens at fixed places: only the weighted ones count.
            targets_bt = jnp.full_like(tokens_bt, 7)
            return summed_loss(config, params, x_btd, targets_bt, weights_bt).objective, x_btd

        grads, x_btd = jax.grad(loss, has_aux=True)(params)
        return model.unembed(config, params, x_btd), grads

    index = np.arange(T)
    # what is looked at -> which other places may change: later ones, or other documents' (earlier ones too)
    cases = {t: (index <= t) & (SEGMENTS[t] == SEGMENTS) for t in (0, 4, 8, 9, 14, 18)}
    for t, kept in cases.items():
        weights_bt = jnp.broadcast_to(jnp.asarray(kept, jnp.float32), (2, T))
        base_logits, base_grads = run(tokens_bt, weights_bt)
        changed_bt = jnp.where(kept, tokens_bt, (tokens_bt + 1 + index % 11) % 12)
        assert (changed_bt != tokens_bt).any()
        logits, grads = run(changed_bt, weights_bt)
        assert jnp.array_equal(logits[:, kept], base_logits[:, kept]), f"the logits up to {t} changed"
        for (path, a), b in zip(jax.tree.leaves_with_path(grads), jax.tree.leaves(base_grads), strict=True):
            assert jnp.array_equal(a, b), f"the gradient of {jax.tree_util.keystr(path)} changed (up to {t})"
        inside = jnp.where(index == t, (tokens_bt + 1) % 12, tokens_bt)
        assert not jnp.array_equal(run(inside, weights_bt)[0][:, kept], base_logits[:, kept])


def test_scan_unroll_and_remat_agree(shape, tokens_bt):
    base = model.Config(**{**shape, "num_layers": 4}, attention=("dense", "banded:4"))
    params = perturbed(base)

    def run(config):
        loss = lambda p: jnp.sum(jnp.square(model.apply(config, p, tokens_bt)))  # noqa: E731
        return jax.jit(jax.value_and_grad(loss))(params)

    loss, grads = run(base)
    for lowering, remat in (("scan", "full"), ("unroll", "none"), ("unroll", "dots")):
        other_loss, other_grads = run(dataclasses.replace(base, layers=lowering, remat=remat))
        assert float(other_loss) == pytest.approx(float(loss), rel=1e-6)
        difference = jax.tree.map(jnp.subtract, grads, other_grads)
        assert optax.tree.norm(difference) < 1e-5 * optax.tree.norm(grads)


def test_remat_recomputes_instead_of_saving(shape, tokens_bt):
    """The backward pass of a rematerialised decoder must hold fewer bytes; equal results alone would not show it."""

    def temporaries(remat):
        config = model.Config(**shape, remat=remat)
        params = model.init(config, jax.random.key(0))
        run = jax.jit(jax.grad(lambda p: jnp.sum(model.apply(config, p, jnp.tile(tokens_bt, (16, 1))))))
        return run.lower(params).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("full") < 0.6 * temporaries("none")


@pytest.mark.parametrize(
    ("layers", "first"), [("scan", "dense"), ("unroll", "strided:3/fixed:4:1"), ("unroll", "induction")]
)
def test_cached_steps_equal_the_whole_row(shape, layers, first, tokens_bt):
    config = model.Config(**shape, layers=layers, attention=(first, "banded:4"))
    params = perturbed(config)
    whole = apply(config, params, tokens_bt)
    step = jax.jit(lambda tokens, state: model.features(config, params, tokens, state=state))
    x, state = step(tokens_bt[:, :7], model.init_cache(config, 2, T))
    parts = [x]
    for t in range(7, T):
        x, state = step(tokens_bt[:, t : t + 1], state)
        parts.append(x)
    assert state.length_b.tolist() == [T, T]
    np.testing.assert_allclose(model.unembed(config, params, jnp.concatenate(parts, 1)), whole, atol=2e-5)


def test_cached_rows_of_different_lengths(shape, tokens_bt):
    """Rows prefilled with padding behind them go on as if alone: what lies past a row's length is never seen."""
    config = model.Config(**shape)
    params = perturbed(config)
    _, state = model.features(config, params, tokens_bt[:, :8], state=model.init_cache(config, 2, T))
    state = state._replace(length_b=jnp.array([8, 3]))
    tokens = jnp.stack([tokens_bt[0, 8:10], tokens_bt[1, 3:5]])
    x, _ = model.features(config, params, tokens, state=state)
    logits = model.unembed(config, params, x)
    np.testing.assert_allclose(logits[0], apply(config, params, tokens_bt[:1, :10])[0, 8:], atol=2e-5)
    np.testing.assert_allclose(logits[1], apply(config, params, tokens_bt[1:, :5])[0, 3:], atol=2e-5)


def test_bfloat16_stays_near_float32(shape, tokens_bt):
    config = model.Config(**{**shape, "init_std": 0.05})
    params = model.init(config, jax.random.key(0))
    exact = apply(config, params, tokens_bt)
    rough = apply(dataclasses.replace(config, dtype="bfloat16"), params, tokens_bt)
    assert rough.dtype == jnp.float32
    error = jnp.linalg.norm(rough - exact) / jnp.linalg.norm(exact)
    assert 1e-5 < error < 2e-2


def test_dropout_needs_a_key_and_keeps_the_mean(shape, tokens_bt):
    config = model.Config(**shape, dropout=0.25)
    params = perturbed(config)
    off = apply(dataclasses.replace(config, dropout=0.0), params, tokens_bt)
    assert jnp.array_equal(apply(config, params, tokens_bt), off)
    run = jax.jit(lambda key: model.features(config, params, tokens_bt, dropout_key=key)[0])
    one, two = run(jax.random.key(0)), run(jax.random.key(1))
    assert not jnp.array_equal(one, two) and jnp.array_equal(one, run(jax.random.key(0)))
    dropped = layers.dropout(jnp.ones((1000, 100)), 0.25, jax.random.key(0))
    assert float(jnp.mean(dropped == 0)) == pytest.approx(0.25, abs=0.01)
    assert float(dropped.mean()) == pytest.approx(1, abs=0.01)


def test_errors_in_words(tokens_bt):
    config = model.Config(**SHAPES["gpt"])
    params = model.init(config, jax.random.key(0))
    with pytest.raises(ValueError, match="33 tokens do not fit the position table of max_seq_len 32"):
        model.apply(config, params, jnp.zeros((1, 33), jnp.int32))
    with pytest.raises(ValueError, match="8 tokens do not fit a KV cache of 4"):
        model.features(config, params, tokens_bt[:, :8], state=model.init_cache(config, 2, 4))
    cache = model.init_cache(config, 2, T)
    with pytest.raises(ValueError, match="dropout_key and state exclude"):
        model.features(config, params, tokens_bt, state=cache, dropout_key=jax.random.key(0))
    with pytest.raises(ValueError, match="exclude each other"):
        model.features(config, params, tokens_bt, segment_ids_bt=tokens_bt, state=cache)
    with pytest.raises(ValueError, match="images"):
        model.features(config, params, tokens_bt, images=jnp.zeros((1,)))
    for name in ("stripes", "dense:", "induction:", "banded:", "banded:0"):
        with pytest.raises(ValueError, match=f"'{name}'; a pattern is"):
            patterns.from_pattern(name, 4)
    first = {name: leaf[0] for name, leaf in params["layers"].items()}
    no_tokens = layers.Rows(jnp.arange(4)[None], None, None)
    with pytest.raises(ValueError, match="needs the rows' tokens"):
        layers.self_attention(config, "induction", first, jnp.zeros((1, 4, 32)), no_tokens, None)


def test_masks_by_brute_force():
    q, k = jnp.arange(12)[:, None], jnp.arange(12)[None]
    both = masks.causal() & masks.banded(4)
    either = masks.causal() | masks.banded(4)
    for i in range(12):
        for j in range(12):
            assert bool(masks.banded(4)(q, k)[i, j]) == (i - j < 4)
            assert bool(both(q, k)[i, j]) == (j <= i and i - j < 4)
            assert bool(either(q, k)[i, j]) == (j <= i or i - j < 4)
