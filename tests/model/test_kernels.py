"""The kernels' lowerings, interpreted on CPUs: random problems, meshes, and who is asked to do what."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from gpt4jax.model import Config, attention, masks
from gpt4jax.model.arrangement import Where
from gpt4jax.model.axes import MESH_AXES
from gpt4jax.model.kernels import cudnn, gpu, tiling, tpu
from tests.model import attention_cases as cases

CAUSAL = masks.causal()
BANDED = CAUSAL & masks.banded(6)
KERNELS = ("tpu", "gpu")


@pytest.mark.parametrize(("lowering", "seed"), [("tpu", 2006), ("gpu", 2006)])
def test_random_problems(seed, lowering):
    """A sample of `python -m tests.bench.attention_random`, which has 300 for each kernel."""
    assert cases.worst_error(cases.draw_case(random.Random(seed)), lowering, 2, seed) < 2e-6


@pytest.mark.parametrize("lowering", KERNELS)
def test_heads_of_different_patterns_with_an_offset_and_a_soft_cap(lowering):
    case = cases.Case((33, 45, 12), (2, 2), (BANDED, CAUSAL & masks.strided(5)), True, 3.0)
    assert cases.worst_error(case, lowering, 2, 0) < 2e-6


@pytest.mark.parametrize(("lowering", "one"), [("tpu", CAUSAL), ("gpu", BANDED), ("blockwise", BANDED)])
def test_images_are_seen_from_both_sides(lowering, one):
    case = cases.Case((45, 45, 0), (1, 2), (one,), True, 0.0, longest=11)
    assert cases.worst_error(case, lowering, 3, 0) < 2e-6


@pytest.mark.parametrize("lowering", KERNELS)
def test_bfloat16(lowering):
    case = cases.Case((45, 45, 0), (1, 2), (BANDED,), True, 0.0)
    assert cases.worst_error(case, lowering, 2, 0, jnp.bfloat16) < 2e-2


@pytest.mark.parametrize("lowering", KERNELS)
def test_an_induction_layer(lowering):
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 4, (1, 40))
    where = Where(token_bs=tokens, before_bs=np.pad(tokens[:, :-1], ((0, 0), (1, 0)), constant_values=-1))
    q, k, v = (jnp.asarray(rng.normal(size=(1, 40, 1, 4)), jnp.float32) for _ in range(3))
    ours, right = (jax.jit(lambda *a, n=n: attention.attend(*a, CAUSAL, where, lowering=n))(q, k, v)
                   for n in (lowering, "reference"))  # fmt: skip
    np.testing.assert_allclose(ours, right, atol=1e-6)


@pytest.fixture
def mesh():
    devices = jax.devices()[:4]
    with jax.set_mesh(jax.make_mesh((1, 2, 2, 1), MESH_AXES, axis_types=(AxisType.Auto,) * 4, devices=devices)) as mesh:
        yield mesh


@pytest.mark.parametrize(("lowering", "pattern"), [("tpu", lambda i: masks.fixed(8, 3, i)), ("gpu", lambda _: BANDED)])
def test_rows_and_heads_over_a_mesh(mesh, lowering, pattern):
    """Two rows and two heads, which may differ in their summaries: on a device each."""
    of_heads = tuple(CAUSAL & pattern(index) for index in (1, 0))
    assert cases.worst_error(cases.Case((45, 45, 0), (2, 2), of_heads, True, 0.0), lowering, 1, 0) < 2e-6


def test_what_does_not_divide_over_a_mesh_is_said(mesh):
    x = jnp.zeros((2, 8, 3, 4))
    with pytest.raises(ValueError, match="3 key/value heads of one pattern do not divide over mesh axis tensor = 2"):
        attention.attend(x, x, x, CAUSAL, lowering="tpu")
    with pytest.raises(ValueError, match="1 rows do not divide over mesh axis data x fsdp = 2"):
        attention.attend(*[x[:1, :, :2]] * 3, CAUSAL, lowering="gpu")


def test_only_tiles_that_are_seen_are_in_the_lists():
    """Of a band of 8 in blocks of 4: in each row the tile of the diagonal, the one before, and half of one more."""
    kinds = tiling._kinds(CAUSAL & masks.banded(8), 0, 16, 16, 4, 4, False)
    assert np.count_nonzero(kinds) == 1 + 2 + 3 + 3 and np.count_nonzero(kinds == masks.FULL) == 3
    # The last keys are followed by padding, which no tile may see as a whole.
    assert tiling._kinds(masks.full(), 0, 8, 10, 4, 4, True).tolist() == [[2, 2, 1]] * 2
    rows, columns, flags = tpu._tiles(kinds)
    assert list(rows) == [0, 1, 1, 2, 2, 2, 3, 3, 3] and list(columns) == [0, 0, 1, 0, 1, 2, 1, 2, 3]
    assert [int(f) & tpu.FIRST > 0 for f in flags] == [True, True, False, True, False, False, True, False, False]
    bounds, tiles = tiling.active(kinds)
    assert bounds.tolist() == [[0, 0, 1], [1, 2, 3], [3, 4, 6], [6, 7, 9]]
    assert tiles.tolist() == [0, 0, 1, 1, 0, 2, 2, 1, 3]


@pytest.mark.skipif(jax.__version_info__ >= (0, 11), reason="newer jax wants to see the GPU that it lowers for")
def test_the_triton_kernels_lower_for_a_gpu():
    """To Triton's language, which has no gathers, tables or sizes that are no powers of two."""
    q, k = (jax.ShapeDtypeStruct((1, 96, heads, 24), jnp.bfloat16) for heads in (4, 2))
    mask = CAUSAL & masks.fixed(24, 6) | masks.spans([(3, 9), (20, 31)])

    def both(q, k, v, segment):
        return jax.vjp(lambda *a: attention.attend(*a, mask, Where(None, segment), lowering="gpu"), q, k, v)[1](q)

    lowered = jax.jit(both).trace(q, k, k, jax.ShapeDtypeStruct((1, 96), jnp.int32)).lower(lowering_platforms=("cuda",))
    assert lowered.as_text().count("gpu.triton") >= 3


def chosen(monkeypatch, backend, mask=CAUSAL, dtype=jnp.bfloat16, where=Where(), heads=2, **options):  # noqa: B008
    """Which lowering `auto` takes on a backend."""
    taken = []
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    monkeypatch.setattr(attention, "by_parts", lambda passes, *_: taken.append(passes))
    monkeypatch.setattr(cudnn, "attention", lambda *_: taken.append(cudnn))
    q = jnp.zeros((1, 8, heads, 8), dtype)
    attention.attend(q, q, q, mask, where, **options)
    names = {cudnn: "cudnn", tpu.PASSES: "tpu", gpu.PASSES: "gpu", attention.blocks.TILES: "blockwise"}
    return names[taken[0]]


def test_auto_is_chosen_by_backend_and_what_it_can_do(monkeypatch):
    segments = Where(None, jnp.ones((1, 8), jnp.int32))
    assert chosen(monkeypatch, "cpu") == "blockwise"
    assert chosen(monkeypatch, "tpu") == chosen(monkeypatch, "tpu", where=segments, soft_cap=2.0) == "tpu"
    assert chosen(monkeypatch, "gpu") == chosen(monkeypatch, "gpu", BANDED) == "cudnn"
    assert chosen(monkeypatch, "gpu", where=segments) == "gpu"  # cuDNN would let packed documents see each other
    assert chosen(monkeypatch, "gpu", masks.banded(6)) == "gpu"  # cuDNN has no window without `causal`
    assert chosen(monkeypatch, "gpu", soft_cap=2.0) == chosen(monkeypatch, "gpu", dtype=jnp.float32) == "gpu"
    assert chosen(monkeypatch, "gpu", CAUSAL & masks.strided(3)) == "gpu"
    assert chosen(monkeypatch, "gpu", lowering="blockwise") == "blockwise"
    assert chosen(monkeypatch, "tpu", masks.segments(range(1, 100))) == "blockwise"


def test_what_a_lowering_cannot_do_is_said():
    q = jnp.zeros((1, 8, 2, 8), jnp.bfloat16)
    segment = Where(None, jnp.ones((1, 8), jnp.int32))
    for words, mask, where, options in (
        ("rows of several segments", CAUSAL, segment, {}),
        ("a soft cap", CAUSAL, Where(), dict(soft_cap=2.0)),
        ("a mask other than causal, or causal and banded", masks.banded(3), Where(), {}),
        ("a mask other than causal, or causal and banded", [CAUSAL, BANDED], Where(), {}),
    ):
        with pytest.raises(ValueError, match=f"'cudnn' cannot do {words}.*; blockwise and tpu and gpu can"):
            attention.attend(q, q, q, mask, where, lowering="cudnn", **options)
    with pytest.raises(ValueError, match="'cudnn' cannot do fewer queries than keys"):
        attention.attend(q[:, :4], q, q, CAUSAL, offset=4, lowering="cudnn")
    with pytest.raises(ValueError, match="'cudnn' cannot do float32, only bfloat16 and float16"):
        attention.attend(*[q.astype(jnp.float32)] * 3, CAUSAL, lowering="cudnn")
    with pytest.raises(ValueError, match="'tpu' cannot do a mask of 40 segments .*; blockwise can"):
        attention.attend(q, q, q, masks.segments(range(1, 41)), lowering="tpu")
    with pytest.raises(ValueError, match="model.attention_lowering is 'flash'; it must be one of auto, reference"):
        Config(
            vocab_size=8, num_layers=1, embed_dim=8, num_heads=1, num_kv_heads=1, head_dim=8, mlp_dim=8, max_seq_len=8,
            attention_lowering="flash",
        )  # fmt: skip


@pytest.mark.parametrize("mask", [CAUSAL, BANDED, masks.banded(4) & (CAUSAL & masks.banded(9))])
def test_cudnn_is_asked_for_the_same_keys(mask, monkeypatch):
    """With XLA in the place of cuDNN, which no CPU has. A window is never asked for without `is_causal`."""
    original = jax.nn.dot_product_attention

    def stand_in(*arrays, implementation, is_causal, **options):
        assert implementation == "cudnn" and is_causal
        return original(*arrays, implementation="xla", is_causal=True, **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    case = cases.Case((40, 40, 0), (2, 2), (mask,) * 2, False, 0.0)
    q, k, v, _ = (jnp.asarray(a, jnp.bfloat16) for a in cases.draw_arrays(case, np.random.default_rng(0)))
    q, k, v = (jnp.repeat(a, 2, axis=-1) for a in (q, k, v))  # heads of 8
    ours, right = (attention.attend(q, k, v, mask, lowering=lowering) for lowering in ("cudnn", "reference"))
    np.testing.assert_allclose(ours.astype(jnp.float32), right.astype(jnp.float32), atol=3e-2)
