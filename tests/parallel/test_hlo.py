"""The scheduled program's text: trip counts, groups, bytes and order, on programs small enough to count."""

import itertools
import math

import numpy as np
import pytest

from gpt4jax.parallel import hlo, schedule
from gpt4jax.parallel.schedule import Collective, Compute, Done, Kernel, Loop, Start

LOOP = """HloModule m, is_scheduled=true

%%body (s: (s32[], bf16[8,16])) -> (s32[], bf16[8,16]) {
  %%s = (s32[]{:T(128)}, bf16[8,16]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %%i = s32[]{:T(128)} get-tuple-element(%%s), index=0
  %%x = bf16[8,16]{1,0} get-tuple-element(%%s), index=1
  %%step = s32[]{:T(128)} constant(%(step)d)
  %%next = s32[]{:T(128)} add(%%i, %%step)
  %%f = bf16[8,16]{1,0} fusion(%%x), kind=kLoop, calls=%%twice\
, backend_config={"window_config":{"estimated_cycles":"100"}}
  ROOT %%t = (s32[]{:T(128)}, bf16[8,16]{1,0}) tuple(%%next, %%f)
}

%%twice (p: bf16[8,16]) -> bf16[8,16] {
  %%p = bf16[8,16]{1,0} parameter(0)
  ROOT %%sum = bf16[8,16]{1,0} add(%%p, %%p)
}

%%less (a: s32[], b: s32[]) -> pred[] {
  %%a = s32[] parameter(0)
  %%b = s32[] parameter(1)
  ROOT %%c = pred[] compare(%%b, %%a), direction=%(test)s
}

%%condition (s2: (s32[], bf16[8,16])) -> pred[] {
  %%s2 = (s32[]{:T(128)}, bf16[8,16]{1,0}) parameter(0)
  %%i2 = s32[]{:T(128)} get-tuple-element(%%s2), index=0
  %%bound = s32[]{:T(128)} constant(%(bound)d)
  ROOT %%r = pred[] fusion(%%bound, %%i2), kind=kLoop, calls=%%less
}

ENTRY %%main (x0: bf16[8,16]) -> bf16[8,16] {
  %%x0 = bf16[8,16]{1,0} parameter(0)
  %%zero = s32[]{:T(128)} constant(%(first)d)
  %%start = s32[]{:T(128)} copy(%%zero)
  %%t0 = (s32[]{:T(128)}, /*index=1*/bf16[8,16]{1,0}) tuple(%%start, %%x0)
  %%w = (s32[]{:T(128)}, bf16[8,16]{1,0}) while(%%t0), condition=%%condition, body=%%body
  ROOT %%out = bf16[8,16]{1,0} get-tuple-element(%%w), index=1
}
"""


@pytest.mark.parametrize(
    ("first", "bound", "step", "test"),
    [(0, 96, 1, "LT"), (0, 8, 2, "LT"), (0, 7, 2, "LT"), (3, 10, 1, "LE"), (9, 0, -1, "GT"), (5, 5, 1, "LT")],
)
def test_a_loop_runs_as_often_as_it_counts(first, bound, step, test):
    """Also behind a fusion, a copy and with the sides changed; against counting."""
    passes = {"LT": lambda i: i < bound, "LE": lambda i: i <= bound, "GT": lambda i: i > bound}[test]
    count, i = 0, first
    while passes(i):
        count, i = count + 1, i + step
    module = hlo.parse(LOOP % {"first": first, "bound": bound, "step": step, "test": test})
    assert schedule.schedule(module) == (Loop(count, (Compute(100),)),)


def test_a_loop_that_does_not_count_is_an_error():
    text = LOOP % {"first": 0, "bound": 9, "step": 0, "test": "LT"}
    with pytest.raises(hlo.HloError, match="steps of 0"):
        schedule.schedule(hlo.parse(text))
    with pytest.raises(hlo.HloError, match="ENTRY"):
        hlo.parse("HloModule empty")


def test_the_three_notations_of_groups():
    assert hlo.groups("channel_id=1, replica_groups={{0,2},{1,3}}, x=1") == ((0, 2), (1, 3))
    assert hlo.groups("source_target_pairs={{0,1},{1,0}}, metadata={}") == ((0, 1), (1, 0))
    assert hlo.groups("replica_groups=[2,4]<=[8], use=true") == ((0, 1, 2, 3), (4, 5, 6, 7))
    assert hlo.groups("replica_groups=[4,2]<=[2,4]T(1,0), use=true") == ((0, 4), (1, 5), (2, 6), (3, 7))
    assert hlo.groups("replica_groups=mesh['a'=2,'b'=2] {'b'}, use=true") == ((0, 1), (2, 3))
    with pytest.raises(hlo.HloError, match="without groups"):
        hlo.groups("dimensions={0}")


@pytest.mark.parametrize("sizes", [(2, 3, 4), (4, 1, 2)])
def test_groups_along_axes_of_a_mesh_are_the_places_that_differ_in_them_alone(sizes):
    """Brute force over all pairs of devices."""
    names = ["a", "b", "c"]
    places = list(itertools.product(*map(range, sizes)))
    shown = ",".join(f"'{name}'={size}" for name, size in zip(names, sizes, strict=True))
    for count in (1, 2, 3):
        for along in itertools.combinations(range(3), count):
            axes = ",".join(f"'{names[i]}'" for i in along)
            found = hlo.groups(f"replica_groups=mesh[{shown}] {{{axes}}}, use_global_device_ids=true")
            together = {frozenset(group) for group in found}
            for one, place in enumerate(places):
                mates = {
                    i for i, other in enumerate(places) if all(other[k] == place[k] for k in range(3) if k not in along)
                }
                assert frozenset(mates) in together, (along, one)
            assert sorted(itertools.chain(*found)) == list(range(math.prod(sizes)))


def test_a_part_of_an_axis():
    """Of an axis of 8, the middle 2 of 2 x 2 x 2: devices that differ by 2."""
    found = hlo.groups("replica_groups=mesh['a'=8] {'a':(2)2}, use_global_device_ids=true")
    assert found == tuple((i, i + 2) for i in (0, 1, 4, 5))


COLLECTIVES = """HloModule m, is_scheduled=true

%scattered (input: f32[8,64]) -> f32[8,32] {
  %input = f32[8,64]{1,0} parameter(0)
  %all = f32[8,64]{1,0} all-reduce(%input), channel_id=3, replica_groups={{0,1},{2,3}}, to_apply=%add
  %no = s32[] constant(0)
  ROOT %part = f32[8,32]{1,0} dynamic-slice(%all, %no, %no), dynamic_slice_sizes={8,32}
}

%twice (v: bf16[4,4]) -> bf16[4,4] {
  %v = bf16[4,4]{1,0} parameter(0)
  ROOT %vv = bf16[4,4]{1,0} add(%v, %v)
}

%begin (p: bf16[4,4]) -> (bf16[4,4], bf16[16,4]) {
  %p = bf16[4,4]{1,0} parameter(0)
  %ag1 = bf16[16,4]{1,0} all-gather(%p), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}\
, frontend_attributes={chain_id="0"}
  ROOT %cc = (bf16[4,4]{1,0}, bf16[16,4]{1,0}) custom-call(%ag1), custom_call_target="AsyncCollectiveStart"
}

%middle (q: bf16[4,4], r: bf16[4,4]) -> (bf16[4,4], bf16[16,4]) {
  %q = bf16[4,4]{1,0} parameter(0)
  %r = bf16[4,4]{1,0} parameter(1)
  %ag2 = bf16[16,4]{1,0} all-gather(%q), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}\
, frontend_attributes={chain_id="0"}
  %conv = bf16[4,4]{1,0} convolution(%r, %r), dim_labels=bf_io->bf
  ROOT %tu = (bf16[4,4]{1,0}, bf16[16,4]{1,0}) tuple(%conv, %ag2)
}

%end (u: bf16[4,4]) -> bf16[16,4] {
  %u = bf16[4,4]{1,0} parameter(0)
  %ag3 = bf16[16,4]{1,0} all-gather(%u), channel_id=7, replica_groups=[1,4]<=[4], dimensions={0}\
, frontend_attributes={chain_id="0"}
  ROOT %cd = bf16[16,4]{1,0} custom-call(%u, %ag3), custom_call_target="AsyncCollectiveDone"
}

ENTRY %main (a: bf16[4,4], b: f32[8,64]) -> f32[8,32] {
  %a = bf16[4,4]{1,0:T(8,128)(2,1)} parameter(0)
  %b = f32[8,64]{1,0} parameter(1)
  %s = (bf16[4,4]{1,0}, bf16[4,4]{1,0}, u32[]) collective-permute-start(%a), channel_id=1\
, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  %f = bf16[4,4]{1,0} fusion(%a), kind=kLoop, calls=%twice, backend_config={"estimated_cycles":"11"}
  %d = bf16[4,4]{1,0} collective-permute-done(%s)
  %one = (bf16[4,4]{1,0}, bf16[16,4]{1,0}) fusion(%a), kind=kCustom, calls=%begin
  %two = (bf16[4,4]{1,0}, bf16[16,4]{1,0}) fusion(%a, %f), kind=kOutput, calls=%middle\
, backend_config={"estimated_cycles":"22"}
  %three = bf16[16,4]{1,0} fusion(%a), kind=kCustom, calls=%end
  %rs = f32[8,32]{1,0} fusion(%b), kind=kCustom, calls=%scattered
  %alone = f32[8,32]{1,0} all-reduce(%rs), channel_id=5, replica_groups={{0},{1},{2},{3}}, to_apply=%add
  %sum = (f32[8,32]{1,0}, f32[8,64]{1,0}) all-reduce(%rs, %b), channel_id=6, replica_groups={{0,1,2,3}}, to_apply=%add
  ROOT %copied = f32[8,32]{1,0} copy(%rs)
}
"""


def test_collectives_begin_and_end_where_the_schedule_has_them_and_count_once():
    """One that is spread over a chain of fusions is one; an all-reduce of which a part is kept is a reduce-scatter."""
    steps = schedule.schedule(hlo.parse(COLLECTIVES))
    everyone = ((0, 1, 2, 3),)
    pairs = ((0, 1), (1, 2), (2, 3), (3, 0))
    assert steps == (
        Start("s", Collective("collective-permute", 4 * 4 * 2, pairs)),
        Compute(11),
        Done("s"),
        Start("channel_id=7", Collective("all-gather", 16 * 4 * 2, everyone)),
        Compute(22, product=True),
        Done("channel_id=7"),
        Start("rs", Collective("reduce-scatter", 8 * 64 * 4, ((0, 1), (2, 3)))),
        Done("rs"),
        Start("sum", Collective("all-reduce", 8 * 32 * 4 + 8 * 64 * 4, everyone)),
        Done("sum"),
        Compute(None, 2 * 8 * 32 * 4),
    )


SPARSE_CORE = """HloModule m, is_scheduled=true

%deep (p: bf16[4,4]) -> bf16[16,4] {
  %p = bf16[4,4]{1,0} parameter(0)
  ROOT %g = bf16[16,4]{1,0} all-gather(%p), channel_id=1, replica_groups=[1,4]<=[4], dimensions={0}
}

%asynchronous (q: bf16[4,4]) -> bf16[16,4] {
  %q = bf16[4,4]{1,0} parameter(0)
  ROOT %c = bf16[16,4]{1,0} call(%q), to_apply=%deep
}

ENTRY %main (a: bf16[4,4]) -> bf16[16,4] {
  %a = bf16[4,4]{1,0} parameter(0)
  %s = ((bf16[4,4]{1,0}), bf16[16,4]{1,0}) async-start(%a), async_execution_thread="sparsecore", calls=%asynchronous
  %x = bf16[4,4]{1,0} copy(%a)
  ROOT %d = bf16[16,4]{1,0} async-done(%s)
}
"""


def test_what_a_sparse_core_gathers_is_found_behind_its_calls():
    gathered = Collective("all-gather", 16 * 4 * 2, ((0, 1, 2, 3),))
    expected = (Start("s", gathered), Compute(None, 2 * 4 * 4 * 2), Done("s"))
    assert schedule.schedule(hlo.parse(SPARSE_CORE)) == expected


def test_bytes_that_a_device_sends_are_those_of_a_ring():
    """Counted on rings of n: a gather passes on n - 1 shards, a sum goes round twice."""
    for n in (2, 3, 8):
        group, shard = (tuple(range(n)),), 24
        passed = sum(shard for _ in range(n - 1))
        assert Collective("all-gather", n * shard, group).sent == pytest.approx(passed)
        assert Collective("reduce-scatter", n * shard, group).sent == pytest.approx(passed)
        assert Collective("all-reduce", n * shard, group).sent == pytest.approx(2 * passed)
    assert Collective("collective-permute", 24, ((0, 1), (1, 0))).sent == 24


def test_shapes_have_the_bytes_of_their_arrays():
    shape = "(bf16[3,8]{1,0:T(8,128)(2,1)}, /*index=1*/f32[]{:T(128)}, pred[5]{0}, s8[7]{0}, u32[2]{0:S(2)})"
    assert hlo.arrays(shape)[:2] == (("bf16", (3, 8)), ("f32", ()))
    assert hlo.size(shape) == 3 * 8 * 2 + 4 + 5 + 7 + 8
    assert hlo.size(shape) == sum(
        np.zeros(s, t).nbytes for s, t in [((3, 8), "f2"), ((), "f4"), (5, "?"), (7, "i1"), (2, "u4")]
    )


def test_kernels_keep_their_shapes_and_other_custom_calls_cost_nothing():
    text = """HloModule m

ENTRY %main (a: s32[10]) -> (f32[4,8], f32[4]) {
  %a = s32[10]{0} parameter(0)
  %q = bf16[4,8]{1,0} custom-call(), custom_call_target="AllocateBuffer"
  ROOT %k = (f32[4,8]{1,0}, f32[4]{0}) custom-call(%a, %q), custom_call_target="tpu_custom_call"
}
"""
    assert schedule.schedule(hlo.parse(text)) == (
        Kernel((("s32", (10,)), ("bf16", (4, 8))), (("f32", (4, 8)), ("f32", (4,)))),
    )
