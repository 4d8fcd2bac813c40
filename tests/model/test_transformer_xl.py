"""Transformer-XL: the layers against float64 NumPy, and what a memory must and must not do."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.inference.engine import Engine
from gpt4jax.model import masks, mup, parameters, transformer_xl
from gpt4jax.weights import layout
from tests.conftest import GPT, LLAMA, perturbed
from tests.model import numpy_transformer_xl

XL = dict(position="transformer_xl", memory_len=8, init_std=0.3)
SHAPES = {
    "gpt": dict(GPT, **XL, attention_soft_cap=4.0),
    "llama": dict(LLAMA, **XL, xl_untie_biases=True, xl_clamp_len=5, attention=("dense", "banded:6"), layers="unroll"),
}
T = 8
TOKENS = jax.random.randint(jax.random.key(5), (2, 3 * T), 0, 96)
# Documents go on over the ends of rows (at 8 and 16), and one ends just there.
SEGMENTS = jnp.array([[1] * 5 + [2] * 11 + [3] * 8, [1] * 12 + [2] * 7 + [3] * 5])


@jax.jit(static_argnums=0)
def forward(config, params, tokens_bt, segments_bt, memory):
    x_btd, memory = model.features(config, params, tokens_bt, segment_ids_bt=segments_bt, state=memory)
    return model.unembed(config, params, x_btd), memory


def parts(config, params, memory, tokens_bt=TOKENS, length=T):
    """Logits (B, 3T, V) of pieces read one after another, and the last memory."""
    out = []
    for at in range(0, tokens_bt.shape[1], length):
        piece = slice(at, at + length)
        logits, memory = forward(config, params, tokens_bt[:, piece], SEGMENTS[:, piece], memory)
        out.append(logits)
    return jnp.concatenate(out, axis=1), memory


CONFIGS = {name: model.Config(**shape) for name, shape in SHAPES.items()}


@pytest.fixture(scope="module", params=list(SHAPES))
def decoder(request):
    return CONFIGS[request.param], perturbed(CONFIGS[request.param])


def test_rows_behind_a_memory_equal_numpy_float64(decoder):
    config, params = decoder
    ours, memory = parts(config, params, model.init_memory(config, 2))
    for row in range(2):
        theirs, before = [], None
        for at in range(0, 3 * T, T):
            piece = slice(at, at + T)
            logits, (inputs, segments) = numpy_transformer_xl.logits(
                config, params, np.asarray(TOKENS[row, piece]), SEGMENTS[row, piece].tolist(), before
            )
            before = [h[-8:] for h in inputs], segments[-8:]
            theirs.append(logits)
        theirs = np.concatenate(theirs)
        np.testing.assert_allclose(ours[row], theirs, atol=2e-5 * np.abs(theirs).max())
        np.testing.assert_allclose(memory.h_lbmd[:, row], before[0], atol=1e-4)
        assert memory.segment_bm[row].tolist() == before[1]


def test_no_memory_is_an_empty_one():
    config, params = CONFIGS["gpt"], perturbed(CONFIGS["gpt"])
    alone, fresh = forward(config, params, TOKENS[:, :T], SEGMENTS[:, :T], None)
    behind, memory = forward(config, params, TOKENS[:, :T], SEGMENTS[:, :T], model.init_memory(config, 2))
    np.testing.assert_allclose(alone, behind, atol=2e-5)
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, memory)
    np.testing.assert_allclose(fresh.h_lbmd, memory.h_lbmd, atol=2e-5)


def test_pieces_equal_the_whole_when_the_memory_reaches_back():
    """With 16 places, twice what the decoder is trained with; with 8 only the first two pieces see all before them."""
    config, params = CONFIGS["llama"], perturbed(CONFIGS["llama"])
    whole, _ = parts(config, params, None, length=3 * T)
    longer, memory = parts(config, params, model.init_memory(config, 2, 16))
    np.testing.assert_allclose(longer, whole, atol=2e-5)
    assert memory.segment_bm.tolist() == SEGMENTS[:, 8:].tolist()
    shorter, _ = parts(config, params, model.init_memory(config, 2))
    np.testing.assert_allclose(shorter[:, : 2 * T], whole[:, : 2 * T], atol=2e-5)
    without, none = parts(config, params, model.init_memory(config, 2, 0))
    assert none.segment_bm.shape == (2, 0)
    np.testing.assert_allclose(without[:, :T], whole[:, :T], atol=2e-5)
    assert np.abs(without[1, T : T + 4] - whole[1, T : T + 4]).max() > 0.01  # a document that began before this piece


def test_no_gradient_flows_into_the_memory():
    config = dataclasses.replace(CONFIGS["gpt"], tie_embeddings=False)
    params = perturbed(config)
    first, second = TOKENS[:, :T] // 2, 48 + TOKENS[:, T : 2 * T] // 2  # no token is in both pieces
    one_document = jnp.ones((2, T), jnp.int32)

    @jax.jit
    def grads(params, memory):
        def loss(params, memory):
            _, memory = model.features(config, params, first, segment_ids_bt=one_document, state=memory)
            x_btd, _ = model.features(config, params, second, segment_ids_bt=one_document, state=memory)
            return jnp.sum(jnp.square(x_btd))

        return jax.grad(loss, (0, 1), allow_int=True)(params, memory)

    by_params, by_memory = grads(params, model.init_memory(config, 2))
    by_token = by_params["embed"]["token_vd"]
    assert not by_memory.h_lbmd.any() and not by_token[:48].any() and by_token[48:].any()


def test_other_documents_in_the_memory_leave_no_trace(decoder):
    config, params = decoder
    base, _ = parts(config, params, model.init_memory(config, 2))
    for row, at in ((0, 10), (1, 14), (0, 18), (1, 20)):
        other = SEGMENTS[row] != SEGMENTS[row, at]
        other_bt = jnp.zeros_like(TOKENS, bool).at[row].set(other)
        changed, _ = parts(config, params, model.init_memory(config, 2), jnp.where(other_bt, 95 - TOKENS, TOKENS))
        assert jnp.array_equal(changed[row, ~other], base[row, ~other])
    inside, _ = parts(config, params, model.init_memory(config, 2), TOKENS.at[0, 6].set(95 - TOKENS[0, 6]))
    assert not jnp.array_equal(inside[0, T : T + 3], base[0, T : T + 3])  # the same document, in the memory


def test_scanned_layers_equal_unrolled_ones():
    """Two cycles of two patterns: which layer's memory is whose."""
    config = dataclasses.replace(CONFIGS["llama"], num_layers=4)
    params = perturbed(config)
    ours, memory = parts(config, params, model.init_memory(config, 2))
    theirs, same = parts(dataclasses.replace(config, layers="scan", remat="full"), params, model.init_memory(config, 2))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    np.testing.assert_allclose(memory.h_lbmd, same.h_lbmd, atol=1e-4)


def test_scores_are_float32_in_a_bfloat16_decoder():
    q, k, v = (jax.random.normal(jax.random.key(i), (1, 4, 2, 8), jnp.bfloat16) for i in range(3))

    def run(dtype):
        arrays = (x.astype(dtype) for x in (q, q, k, v, k[0]))
        return transformer_xl.attend_relative(*arrays, [masks.causal()] * 2, jnp.ones((1, 4), int))

    assert "f32[1,2,1,4,4] = exp" in str(jax.make_jaxpr(run, static_argnums=0)(jnp.bfloat16))
    rough, exact = jax.jit(lambda: (run(jnp.bfloat16), run(jnp.float32)))()
    assert rough.dtype == jnp.bfloat16
    np.testing.assert_allclose(rough.astype(jnp.float32), exact, atol=0.03)


def test_the_shift_is_a_look_up_by_distance():
    t, s = 4, 7
    x_ts = np.arange(2 * t * s).reshape(2, t, s)
    shifted = transformer_xl.rel_shift(jnp.asarray(x_ts))
    for i in range(t):
        for j in range(s - t + i + 1):
            distance = s - t + i - j
            assert shifted[0, i, j] == x_ts[0, i, s - 1 - distance] and shifted[1, i, j] == x_ts[1, i, s - 1 - distance]


def test_distances_by_hand():
    config = model.Config(**GPT | XL | dict(embed_dim=4, xl_clamp_len=2))
    rows = [[np.sin(d), np.sin(d / 100), np.cos(d), np.cos(d / 100)] for d in (2, 2, 1, 0)]
    np.testing.assert_allclose(transformer_xl.encoded_distances(config, 4), rows, atol=1e-6)


def test_the_table_of_parameters(decoder):
    config, _ = decoder
    names = {row.name: row for row in parameters.table(config)}
    biases = [names["content_bias_nh"], names["distance_bias_nh"]]
    shape = (2, 4, 8) if config.xl_untie_biases else (4, 8)
    for row in biases:
        assert row.shape == shape and row.role == "vector" and not row.decay and row.std == config.init_std
    assert names["relative_dkh"].shape == (2, 32, config.num_kv_heads, 8)
    plain = model.Config(**{**SHAPES["gpt" if config.use_bias else "llama"], "position": "rope", "memory_len": 0}
                         | dict(xl_clamp_len=0, xl_untie_biases=False))  # fmt: skip
    more = 2 * 32 * config.num_kv_heads * 8 + 2 * np.prod(shape)
    counts = [parameters.count(c) for c in (config, plain)]
    assert counts[0]["attention"] - counts[1]["attention"] == counts[0]["total"] - counts[1]["total"] == more
    in_files = [row for held in layout.expected(config).values() for row, _ in held]
    assert sum(row.size // (row.shape[0] if row.group == "layers" else 1) for row in in_files) == counts[0]["total"]


def test_mup_folds_into_the_weights():
    base = dict(base_embed_dim=8, base_num_layers=1, base_head_dim=4)
    config = dataclasses.replace(CONFIGS["gpt"], parametrization="mup", **base)
    params = perturbed(config)
    folded_config, folded = mup.fold(config, params)
    ours, _ = parts(config, params, None)
    theirs, _ = parts(folded_config, folded, None)
    np.testing.assert_allclose(ours, theirs, atol=2e-5 * np.abs(ours).max())
    plain, _ = parts(folded_config, params, None)
    assert np.abs(plain - ours).max() > 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(position="rope"), "model.memory_len 8 needs position='transformer_xl', not 'rope'"),
        (dict(position="rope", memory_len=0, xl_clamp_len=3), "model.xl_clamp_len 3 needs"),
        (dict(memory_len=-1), "model.memory_len is -1; it must be 0"),
        (dict(embed_dim=33), "model.embed_dim 33 is odd"),
        (dict(qk_norm=True), "model.qk_norm with"),
        (dict(attention=("induction",)), "a memory keeps no tokens"),
        (dict(attention=("fixed:4:1",)), "a memory knows distances and no positions"),
        (dict(attention=("banded:4",), attention_lowering="tpu"), "scores are computed all at once"),
    ],
)
def test_impossible_configs_say_why(changes, words):
    with pytest.raises(ValueError, match=words):
        model.Config(**GPT | XL | changes)


def test_states_of_another_kind_are_refused():
    config, plain = model.Config(**GPT | XL), model.Config(**GPT)
    params, tokens = perturbed(config), TOKENS[:, :T]
    with pytest.raises(ValueError, match=r"is a memory \(init_memory\), not a KV cache"):
        model.features(config, params, tokens, state=model.init_cache(plain, 2, T))
    with pytest.raises(ValueError, match=r"is a KV cache \(init_cache\), not a memory"):
        model.features(plain, perturbed(plain), tokens, state=model.init_memory(config, 2))
    with pytest.raises(ValueError, match="has no KV cache"):
        model.init_cache(config, 2, T)
    with pytest.raises(ValueError, match="'learned' has no memory"):
        model.init_memory(plain, 2)
    with pytest.raises(ValueError, match="a memory of -1 places"):
        model.init_memory(config, 2, -1)
    with pytest.raises(ValueError, match="not sampled from"):
        Engine(config, params)
