"""The ladder's runs: sizes, tokens and batches by hand, and configs that make no ladder."""

import math

import pytest

from gpt4jax import config as configuration
from gpt4jax.errors import UserError
from gpt4jax.model.flops import flops_per_token
from gpt4jax.scaling import ladder
from tests.runs import ROOT


def config(**changes):
    c = ladder.default().unlock()
    c.batch_size = 2
    c.model.update(
        vocab_size=512, num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=96,
        max_seq_len=256, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        parametrization="mup", base_embed_dim=32, base_num_layers=2, base_head_dim=16,
    )  # fmt: skip
    c.ladder.update(min_compute=1e10, max_compute=3e11, levels=5, target_compute=3e13, base_tokens=1e6)
    c.ladder.update(changes)
    return c


def test_every_run_has_what_its_level_asks_for():
    plan = ladder.plan(config())
    computes = sorted({run.compute for run in plan.runs})
    assert len(computes) >= 4 and len(plan.runs) == 2 * len(computes) and len(plan.targets) == 2
    for run in (*plan.runs, *plan.targets):
        shape = configuration.model_config(run.config)
        # by hand: q, k, v, out and three matrices of the MLP a layer, and the output matrix
        d, layers = shape.embed_dim, shape.num_layers
        assert run.num_params == layers * (4 * d * d + 3 * d * 3 * d) + 512 * d
        assert shape.num_heads == 2 and shape.head_dim == d / 2 and shape.mlp_dim == 3 * d
        assert run.num_tokens == run.config.num_steps * run.config.batch_size * 256
        assert run.num_tokens == pytest.approx(20 * run.num_params, rel=0.02)
        assert run.compute == run.num_tokens * flops_per_token(shape, 256)["train"]
        ideal = 2 * math.sqrt(20 * run.num_params / 1e6)
        assert run.config.batch_size == max(1, round(ideal))
        rate = config().optimizer.learning_rate * math.sqrt(run.config.batch_size / ideal)
        assert run.config.optimizer.learning_rate == pytest.approx(rate)
        assert "ladder" not in run.config
    assert max(computes) <= plan.targets[0].compute / 100
    assert abs(math.log(plan.targets[0].compute / 3e13)) < 0.3
    assert len({run.seed for run in (*plan.runs, *plan.targets)}) == len(plan.runs) + 2  # noise is independent
    assert len({run.name for run in (*plan.runs, *plan.targets)}) == len(plan.runs) + 2


def test_smaller_levels_have_more_runs():
    runs = ladder.plan(config(seeds=3, seeds_exponent=0.25)).runs
    counts = {run.compute: sum(other.compute == run.compute for other in runs) for run in runs}
    most = max(counts)
    assert counts[most] == 3 and counts[min(counts)] > 5
    for compute, count in counts.items():
        assert abs(count - 3 * (most / compute) ** 0.25) < 0.6
    assert len({run.seed for run in runs}) == len({run.name for run in runs}) == len(runs)


def test_a_long_runs_last_evaluation_is_at_its_end_and_there_is_no_other_beside_it():
    for run in ladder.plan(config(curve_points=7)).runs:
        every, steps = run.config.eval.eval_every_steps, run.config.num_steps
        assert 6 * every < steps <= 7 * every


def test_the_learning_rate_follows_the_horizon():
    plan = ladder.plan(config(rate_exponent=0.3))
    first, last = plan.runs[0], plan.targets[0]
    rates = [run.config.optimizer.learning_rate / math.sqrt(run.config.batch_size) for run in (first, last)]
    # the ideal batch grows by the power 0.5, whose root the rate is divided by
    assert rates[1] / rates[0] == pytest.approx((last.num_tokens / first.num_tokens) ** (-0.3 - 0.25), rel=0.02)


def test_schedules_are_parts_of_a_run():
    """Of warmup_stable_decay as of the cosine: every run warms up and decays over the same share of its steps."""
    from gpt4jax.training import optimizer

    own = config(decay_fraction=0.25).unlock()
    own.optimizer.schedule = "warmup_stable_decay"
    plan = ladder.plan(own.lock())
    for run in (plan.runs[0], plan.targets[0]):
        options, steps = run.config.optimizer, run.config.num_steps
        rate = optimizer.schedule(options, steps)
        assert float(rate(round(0.74 * steps))) == pytest.approx(options.learning_rate)
        middle = (1 + options.final_fraction) / 2 * options.learning_rate
        assert float(rate(round(0.875 * steps))) == pytest.approx(middle, rel=0.02)


def test_rows_are_multiples_of_what_devices_share():
    plan = ladder.plan(config(rows_multiple=4))
    assert all(run.config.batch_size % 4 == 0 for run in (*plan.runs, *plan.targets))


@pytest.mark.parametrize("name", ["ladder_cpu", "ladder_cpu_long", "ladder_gpu", "ladder_tpu", "ladder_tasks"])
def test_the_ladders_of_configs_have_levels_enough_for_intervals(name):
    own = configuration.load(str(ROOT / "configs" / f"{name}.py"), (), ladder.default)
    plan = ladder.plan(own)
    target = plan.targets[0].compute
    for ratio in own.ladder.ratios:
        assert len({run.compute for run in plan.runs if run.compute <= target / ratio}) >= 4, ratio
    for run in (*plan.runs, *plan.targets):  # rounding a batch changes it by a quarter at most
        ideal = own.batch_size * (run.num_tokens / own.ladder.base_tokens) ** own.ladder.batch_exponent
        assert 0.75 < run.config.batch_size / ideal < 1.34, run.name


def test_more_heads_instead_of_wider_ones():
    for run in ladder.plan(config(grow="num_heads", min_compute=1e11, max_compute=3e12, target_compute=3e14)).runs:
        assert run.config.model.head_dim == 16 and run.config.model.num_heads * 16 == run.config.model.embed_dim


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(levels=1), "one compute level"),
        (dict(max_compute=1e10), "one compute level"),
        (dict(min_compute=2.9e11), "one compute level"),
        (dict(target_compute=1e12), "more than 1/100 of the target's"),
        (dict(max_compute=1e8, min_compute=1e7), "the smallest decoder"),
        (dict(seeds=0), "ladder.seeds is 0"),
        (dict(seeds_exponent=25.0), "ladder.seeds_exponent is 25"),
        (dict(tokens_per_parameter=0.0), "tokens_per_parameter is 0"),
        (dict(ratios=()), "ratios"),
        (dict(grow="depth"), "grow is 'depth'"),
    ],
)
def test_what_makes_no_ladder(changes, words):
    with pytest.raises(UserError, match=words):
        ladder.plan(config(**changes))
