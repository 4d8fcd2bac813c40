"""The report's printed cells, worked out from its other printed cells."""

import pytest

from gpt4jax.evals import published, scoring, tables

CHECKS = tables.checks()


@pytest.mark.parametrize("table", ["1", "8", "9", "10", "Figure 5"])
def test_every_cell_that_others_determine_is_reproduced(table):
    own = [check for check in CHECKS if check.table == table]
    assert len(own) >= {"1": 27, "8": 2, "9": 46, "10": 85, "Figure 5": 1}[table]
    assert [check for check in own if not check.agrees] == []


def test_every_published_degradation_and_exam_is_among_them():
    degradations = {name for name, row in published.SECTIONS.items() if row.degradation is not None}
    assert degradations == {check.row for check in CHECKS if check.cell == "degradation %"} and len(degradations) == 29
    assert {check.row for check in CHECKS if check.cell == "contaminated %"} == set(published.EXAMS)


def test_a_wrong_cell_is_seen(monkeypatch):
    monkeypatch.setitem(published.SECTIONS, "LSAT", published.SECTIONS["LSAT"]._replace(clean=82.61))
    assert {(check.row, check.cell) for check in tables.checks() if not check.agrees} == {
        ("LSAT", "degradation %"), ("LSAT", "score %")
    }  # fmt: skip


def test_the_command_says_how_many_agree(capsys):
    assert tables.main() == 0
    assert "table 10: 85 of 85 cells agree" in capsys.readouterr().out


def test_scales_by_hand():
    assert [scoring.gre(x) for x in (0, 0.675, 0.825, 0.9, 0.975, 1)] == [130, 157, 163, 166, 169, 170]
    assert scoring.uniform_bar(0.745) == 298 and scoring.amc(10, 0) == 60 and scoring.amc(10, 4) == 66
    assert scoring.combined({"MCQ": (0.8, 0.5), "FRQ": (0.6, 0.5)}, [0.2, 0.4, 0.6, 0.7]) == 5
    assert scoring.combined({"MCQ": (0.8, 0.2), "FRQ": (0.6, 0.8)}, [0.2, 0.4, 0.6, 0.7]) == 4
    assert scoring.degradation(76.0, None) is None and scoring.lower_of_two(4, None) == 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: scoring.gre(1.2), "from 0 to 1"),
        (lambda: scoring.amc(20, 6), "25 questions"),
        (lambda: scoring.weighted([1.0], [0.0]), "weights"),
        (lambda: scoring.combined({"MCQ": (1.0, 1.0)}, [0.5, 0.4, 0.6, 0.7]), "rising"),
        (lambda: scoring.pass_at_k(5, 6, 1), "6 of 5"),
        (lambda: scoring.pass_at_k([5, 3], [1, 1], 4), "k is 4"),
        (lambda: scoring.pass_at_k(5, 1.5, 1), "whole numbers"),
    ],
)
def test_what_can_not_be_is_said(call, message):
    with pytest.raises(ValueError, match=message):
        call()
