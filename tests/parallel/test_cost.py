"""The model of a step's time, by hand arithmetic: links, tiles of attention, and what a schedule hides."""

import dataclasses
import itertools
import math
import types

import numpy as np
import pytest

from gpt4jax.model import parts, patterns
from gpt4jax.model.config import Config
from gpt4jax.model.kernels import tpu
from gpt4jax.model.vision_config import VisionConfig
from gpt4jax.parallel import cost, topology
from gpt4jax.parallel.schedule import Collective, Compute, Done, Kernel, Loop, Start

PLAIN = cost.Constants(products=1.0, elementwise=1.0, kernels=1.0, links=1.0)
GB = 10**9


@pytest.fixture
def _real_blocks(monkeypatch):
    """Those that users have: tests have smaller ones."""
    for module, values in ((tpu, {"MIN_BLOCK": 128, "MAX_BLOCK": 512}), (parts, {"SPLIT_ABOVE": 512})):
        for name, value in values.items():
            monkeypatch.setattr(module, name, value)
    parts.split.cache_clear()
    yield
    parts.split.cache_clear()


def placed(name, axes, cores=1):
    """A mesh in the order of the chips, x slowest."""
    kind = topology.parse(name)
    chips = itertools.product(range(kind.slices), *map(range, kind.sides), range(cores))
    devices = [types.SimpleNamespace(coords=chip, core_on_chip=core, slice_index=index) for index, *chip, core in chips]
    return cost.Placement(kind, axes, devices)


def test_the_axes_of_a_collective_are_those_in_which_its_members_differ():
    place = placed("v5p:2x2x2", {"data": 2, "fsdp": 2, "tensor": 2})
    for size, group, axes in (
        (2, ((0, 1), (2, 3)), "tensor"), (2, ((0, 2), (1, 3)), "fsdp"), (2, ((0, 4),), "data"),
        (4, ((0, 1, 4, 5),), "data+tensor"), (8, (tuple(range(8)),), "data+fsdp+tensor"),
    ):  # fmt: skip
        assert place.axes(Collective("all-gather", size, group)) == axes
    assert place.axes(Collective("collective-permute", 1, ((0, 2), (2, 0)))) == "fsdp"


def test_links_of_a_side_that_closes_count_twice_and_sides_add_up():
    """v5p: 90 GB/s a link one way; v6e closes sides of 16 alone; a chip of tpu7x is two devices."""
    three = placed("v5p:4x4x4", {"fsdp": 64})
    whole = Collective("all-gather", 64 * GB, (tuple(range(64)),))
    assert three.seconds(whole) == pytest.approx(63 * GB / (6 * 90 * GB))
    ring = Collective("all-reduce", 4 * GB, ((0, 1, 2, 3),))  # along z, which closes
    assert three.seconds(ring) == pytest.approx(2 * 3 * GB / (2 * 90 * GB))
    half = Collective("reduce-scatter", 2 * GB, ((0, 1),))  # two of a side of four: no ring
    assert three.seconds(half) == pytest.approx(1 * GB / (90 * GB))
    spread = Collective("reduce-scatter", 2 * GB, ((0, 2),))  # every second: over two links each way of the ring
    assert three.seconds(spread) == pytest.approx(1 * GB / (2 * 90 * GB / 2))
    open_side = placed("v6e:4x8", {"fsdp": 32})
    assert open_side.seconds(Collective("all-gather", 32 * GB, (tuple(range(32)),))) == pytest.approx(31 / 180)
    two = placed("tpu7x:4x4x4", {"fsdp": 128}, cores=2)
    every = Collective("all-gather", 128 * GB, (tuple(range(128)),))
    assert two.seconds(every) == pytest.approx(127 * GB / (6 * 90 * GB))


def test_a_permute_takes_as_long_as_the_links_that_it_passes():
    place = placed("v5p:4x4x4", {"fsdp": 64})
    ring = [(i, (i + 1) % 4) for i in range(4)]
    assert place.seconds(Collective("collective-permute", GB, tuple(ring))) == pytest.approx(1 / 90)
    far = tuple((i, (i + 2) % 4) for i in range(4))
    assert place.seconds(Collective("collective-permute", GB, far)) == pytest.approx(2 / 90)
    flat = placed("v6e:2x4", {"fsdp": 8})  # does not close: the last pair goes back over three links
    assert flat.seconds(Collective("collective-permute", GB, tuple(ring))) == pytest.approx((1 + 1 + 1 + 3) / 4 / 90)


def test_between_slices_only_what_is_left_after_the_sum_within_them_is_sent():
    place = placed("v5p:4x4x4*2", {"data": 2, "fsdp": 64})
    between = Collective("all-reduce", GB, ((0, 64),))
    assert place.axes(between) == "data"
    assert place.seconds(between) == pytest.approx(GB / topology.DCN_BANDWIDTH)
    both = Collective("all-reduce", GB, (tuple(range(128)),))
    sent = 2 * GB * 127 / 128
    assert place.seconds(both) == pytest.approx(sent / (540 * GB) + sent / 64 / topology.DCN_BANDWIDTH)
    halves = placed("tpu7x:2x2x1*2", {"data": 2, "fsdp": 8}, cores=2)  # two devices share what a chip has
    assert halves.seconds(Collective("all-reduce", GB, ((0, 8),))) == pytest.approx(2 * GB / topology.DCN_BANDWIDTH)


@pytest.mark.usefixtures("_real_blocks")
@pytest.mark.parametrize(("pattern", "seq_len"), [("dense", 2048), ("banded:256", 2048)])
def test_tiles_of_attention_are_those_that_show_a_pair(pattern, seq_len):
    """Against the mask at every pair, tile by tile."""
    shape = dict(num_heads=4, num_kv_heads=2, head_dim=128, max_seq_len=seq_len, attention=(pattern,))
    areas = cost.tile_areas(Config(vocab_size=8, num_layers=1, embed_dim=512, mlp_dim=8, **shape), seq_len)
    (((count, length), area),) = areas.items()
    size, place = math.isqrt(area), np.arange(seq_len)
    shown = patterns.from_pattern(pattern, 2)[0](place[:, None], place)
    assert size % 128 == 0 and length == seq_len
    assert count == shown.reshape(seq_len // size, size, seq_len // size, size).any(axis=(1, 3)).sum()


@pytest.mark.usefixtures("_real_blocks")
def test_a_pattern_of_several_parts_has_tiles_for_each():
    shape = dict(num_heads=4, num_kv_heads=2, head_dim=128, max_seq_len=4096, attention=("fixed:512:32", "dense"))
    areas = cost.tile_areas(Config(vocab_size=8, num_layers=2, embed_dim=512, mlp_dim=8, **shape), 4096)
    assert areas[8 * 9 // 2, 4096] == 512 * 512  # dense: blocks of 512, half of them and the diagonal
    assert len(areas) > 2 and all(area % 128**2 == 0 for area in areas.values())


@pytest.mark.usefixtures("_real_blocks")
def test_rows_with_images_have_tiles_of_the_decoder_the_vit_and_the_resampler():
    """16 images of 64 patches, 16 latents each: the decoder's mask shows an image's tokens to each other, both ways."""
    vision = VisionConfig(
        frontend="resampler", image_token=7, patch_size=8, max_patches=64, num_layers=1, embed_dim=256, num_heads=4,
        mlp_dim=8, resampler_layers=1, resampler_len=16,
    )  # fmt: skip
    shape = dict(num_heads=4, num_kv_heads=2, head_dim=128, max_seq_len=2048, vision=vision)
    config = Config(vocab_size=8, num_layers=1, embed_dim=512, mlp_dim=8, **shape)
    plain = cost.tile_areas(dataclasses.replace(config, vision=None), 2048)
    areas = cost.tile_areas(config, 2048, 1024, 16)
    assert plain == {(4 * 5 // 2, 2048): 512 * 512}
    # Of a tile's queries the last may be in an image of at most 16 tokens that reaches into the next tile's keys.
    assert areas == {
        (4 * 5 // 2 + 3, 2048): 512 * 512,
        (2 * 2, 1024): 512 * 512,  # patches
        (1 * 3, 256): 256 * 512,  # latents ask patches and latents, 1280 of them in blocks of 512 or less
    }


def spent(schedule, place, areas, constants=PLAIN):
    return cost.cost(cost.priced(schedule, place, areas), constants)


def kernel(tiles, results):
    """Of 2 rows, 3 key/value heads of 4 query heads each, 1024 tokens in heads of 128."""
    q, k = ("bf16", (1, 2, 3, 4, 1024, 128)), ("bf16", (1, 2, 3, 1024, 128))
    lists = (("s32", (tiles,)),) * 3
    return Kernel((*lists, q, k, k), (q,) * results)


def test_operations_of_attention_kernels_by_hand():
    pairs = 3 * 512 * 512 * 2 * 3 * 4
    areas = {(3, 1024): 512 * 512}
    for results, products in ((3, 2), (1, 3), (2, 4)):
        assert cost.kernel_flops(kernel(3, results), areas) == 2 * products * 128 * pairs
    with pytest.raises(ValueError, match="not attention's"):
        cost.kernel_flops(kernel(5, 3), areas)
    place = placed("v5p:2x2x1", {"fsdp": 4})
    forward = spent((kernel(3, 3),), place, areas)
    assert forward.busy["attention"] == forward.seconds == pytest.approx(2 * 2 * 128 * pairs / 459e12)
    narrow = spent((kernel(3, 3),), placed("v6e:2x2", {"fsdp": 4}), areas)  # 128 of 256 columns
    assert narrow.busy["attention"] == pytest.approx(2 * 2 * 128 * pairs / (918e12 / 2))


def test_what_runs_beside_a_collective_hides_it_and_loops_count_as_often_as_they_run():
    place = placed("v5p:4x4x4", {"fsdp": 16, "tensor": 4})
    second, ring = int(1.75e9), tuple(range(4))  # cycles of a second; a group along z
    three = Collective("all-gather", 4 * 180 * GB, (ring,))  # 3 of 4 shards over 2 x 90 GB/s: 3 s
    assert place.seconds(three) == pytest.approx(3)
    hidden = (Start("a", three), Compute(4 * second), Done("a"))
    assert spent(hidden, place, {}).seconds == pytest.approx(4)
    partly = (Start("a", three), Compute(second), Done("a"), Compute(second))
    found = spent(partly, place, {})
    assert (found.seconds, found.busy["elementwise"], found.exposed) == (
        pytest.approx(4), pytest.approx(2), {"tensor": pytest.approx(2)},
    )  # fmt: skip
    one_axis = (Start("a", three), Start("b", three), Done("a"), Done("b"))  # share their links
    assert spent(one_axis, place, {}).seconds == pytest.approx(6)
    other = Collective("all-gather", 16 * 360 * GB // 5, (tuple(range(0, 64, 4)),))
    apart = place.seconds(other)
    two_axes = (Start("a", three), Start("b", other), Done("a"), Done("b"))
    assert place.axes(other) == "fsdp"
    assert spent(two_axes, place, {}).seconds == pytest.approx(max(3, apart))
    looped = spent((Loop(5, (*partly, Loop(2, (Compute(second),)))), Compute(second)), place, {})
    assert looped.seconds == pytest.approx(5 * (4 + 2) + 1)
    assert looped.exposed == {"tensor": pytest.approx(10)} and looped.busy["elementwise"] == pytest.approx(5 * 4 + 1)
    assert looped.bytes == {("all-gather", "tensor"): pytest.approx(5 * 3 * 180 * GB)}
    assert looped.bound_by == "elementwise" and found.bound_by == "elementwise"
    half = spent(partly, place, {}, PLAIN._replace(links=0.5))  # 6 s, of which 1 is hidden
    assert half.exposed == {"tensor": pytest.approx(5)}
    assert spent(one_axis, place, {}).bound_by == "collectives over tensor"


def test_what_the_compiler_does_not_estimate_takes_as_long_as_its_bytes():
    place = placed("v5e:4x4", {"fsdp": 16})
    second = int(1.5e9)
    steps = (Compute(None, 82 * GB), Compute(2 * second), Compute(second, product=True))
    found = spent(steps, place, {}, PLAIN._replace(elementwise=0.5, products=0.9))
    assert dict(found.busy) == pytest.approx({"memory": 82e9 / 0.82e12, "elementwise": 0.5 * 2, "products": 0.9})
    assert found.seconds == pytest.approx(0.1 + 1 + 0.9)
