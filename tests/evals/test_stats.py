"""Errors of means beside formulas written out, other estimators and simulated coverage."""

import json
import math

import numpy as np
import pytest
from scipy import stats as distributions

from gpt4jax.errors import UserError
from gpt4jax.evals import compare, stats


def test_items_that_stand_alone_have_the_usual_error_and_students_interval():
    x = np.random.default_rng(0).normal(3, 2, 40)
    found = stats.mean(x)
    t = distributions.ttest_1samp(x, 0).confidence_interval()
    assert found.standard_error == pytest.approx(distributions.sem(x))
    assert (found.low, found.high) == pytest.approx((t.low, t.high))


def test_clusters_as_miller_writes_it():
    rng = np.random.default_rng(1)
    x, clusters = rng.normal(size=30), rng.integers(0, 7, 30)
    e = x - x.mean()
    within = sum(e[i] * e[j] for i in range(30) for j in range(30) if clusters[i] == clusters[j])
    groups = len(set(clusters.tolist()))
    assert stats.mean(x, clusters.tolist()).standard_error == pytest.approx(
        math.sqrt(within * groups / (groups - 1)) / 30
    )
    doubled = stats.mean(np.repeat(x, 2), np.repeat(np.arange(30), 2).tolist())
    assert doubled.standard_error == pytest.approx(stats.mean(x).standard_error)  # a copy says nothing new
    assert (doubled.items, doubled.clusters) == (60, 30)


def test_wilsons_interval_of_independent_answers():
    x = [1.0] * 7 + [0.0] * 93
    ours = stats.mean(x)
    known = distributions.binomtest(7, 100).proportion_ci(method="wilson")
    # Ours has Student's t and n - 1 in the place of the normal quantile and n.
    assert (ours.low, ours.high) == pytest.approx((known.low, known.high), abs=0.003)
    assert stats.mean([1.0] * 50).low == pytest.approx(50 / (50 + distributions.t.ppf(0.975, 49) ** 2))


@pytest.mark.parametrize(("p", "groups", "size"), [(0.05, 100, 1), (0.3, 60, 1), (0.3, 60, 5), (0.9, 40, 3)])
def test_intervals_cover(p, groups, size):
    """Clusters share a difficulty, drawn around p."""
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(600):
        own = rng.beta(4 * p, 4 * (1 - p), groups) if size > 1 else np.full(groups, p)
        x = rng.random((groups, size)) < own[:, None]
        found = stats.mean(x.ravel().astype(float), np.repeat(np.arange(groups), size).tolist())
        inside += found.low <= p <= found.high
    assert 0.925 <= inside / 600 <= 0.98


def test_a_paired_difference_is_that_of_items():
    rng = np.random.default_rng(3)
    hard = rng.random(500)
    a, b = (hard < 0.6).astype(float), (hard < 0.55).astype(float)
    paired = stats.difference(a, b)
    assert paired.mean == pytest.approx(a.mean() - b.mean()) and paired.low > 0
    apart = math.hypot(stats.mean(a).standard_error, stats.mean(b).standard_error)
    assert paired.standard_error < apart / 2


def test_values_that_are_all_the_same_say_nothing_of_the_error_of_a_difference():
    found = stats.difference([0, 0, 1], [0, 0, 1])
    assert found.mean == 0 and found.as_dict()["low"] is None and found.as_dict()["high"] is None
    assert stats.bounded(stats.difference([0.5, 1], [0.25, 0.75])).as_dict()["low"] == 0


def test_groups_count_once_whatever_their_size():
    groups = [stats.mean([1.0, 0, 0, 0]), stats.mean([1.0] * 9 + [0.0] * 1)]
    found = stats.macro(groups)
    assert found.mean == pytest.approx((0.25 + 0.9) / 2)
    assert found.standard_error == pytest.approx(math.hypot(*(g.standard_error for g in groups)) / 2)


def test_one_cluster_says_nothing_of_errors():
    found = stats.mean([1.0, 0.0], ["a", "a"])
    assert (found.low, found.high) == (0, 1) and found.as_dict()["standard_error"] is None


def test_the_smallest_difference_that_is_found():
    assert stats.detectable(1.0) == pytest.approx(1.96 + 0.8416, abs=1e-3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: stats.mean([]), "one or more"),
        (lambda: stats.mean([1, math.nan]), "finite"),
        (lambda: stats.mean([1, 2], ["a"]), "1 clusters for 2"),
        (lambda: stats.difference([1.0], [1.0, 2]), "the same items"),
        (lambda: stats.macro([]), "no groups"),
    ],
)
def test_what_can_not_be_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_two_runs_are_compared_item_by_item(tmp_path, capsys):
    rng = np.random.default_rng(6)
    ours, theirs = rng.integers(0, 2, 30), rng.integers(0, 2, 30)
    for name, values, left_out in (("ours", ours, 3), ("theirs", theirs, 4)):
        lines = [
            {"id": f"i{i}", "cluster": f"c{i // 3}", "metrics": {"accuracy": float(value)}}
            for i, value in enumerate(values)
        ]
        lines[left_out] = {"id": f"i{left_out}", "cluster": "c1", "unscored": "too long"}
        (tmp_path / name).mkdir()
        (tmp_path / name / "items-sums.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (tmp_path / name / "results.json").write_text(json.dumps({"tasks": {"sums": {}}}))
    both = [i for i in range(30) if i not in (3, 4)]
    expected = stats.mean((ours - theirs)[both], [i // 3 for i in both])
    (found,) = compare.paired(*(compare.read(tmp_path / name)["sums"] for name in ("ours", "theirs"))).values()
    assert (found.mean, found.standard_error) == pytest.approx((expected.mean, expected.standard_error))
    assert compare.main([str(tmp_path / "ours"), str(tmp_path / "theirs")]) == 0
    assert f"sums: accuracy {expected.mean:+.4f} (95% " in capsys.readouterr().out
    assert compare.main([str(tmp_path / "ours"), str(tmp_path / "ours")]) == 0
    assert "sums: accuracy +0.0000 on each of 29 items: no interval" in capsys.readouterr().out
    with pytest.raises(UserError, match="no finished evaluation"):
        compare.main([str(tmp_path), str(tmp_path / "theirs")])
