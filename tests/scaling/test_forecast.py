"""Forecasts as documents: exclusions by name, seals, units by hand, and comparison with what came."""

import json
import math
import pathlib
import tempfile

import numpy as np
import pytest

from gpt4jax.errors import UserError
from gpt4jax.scaling import forecast, ladder, laws
from gpt4jax.scaling.forecast import Result


def run(name: str, compute: float) -> ladder.Run:
    return ladder.Run(name, compute, 1000, int(compute / 6000), 0, None)


def results(noise: float = 0.0) -> list[Result]:
    rng = np.random.default_rng(0)
    return [
        Result(run(f"run-{i}-{seed}", c), (30 * c**-0.1 + 2.0) * math.exp(noise * rng.normal()))
        for i, c in enumerate(np.geomspace(1e10, 1e12, 6))
        for seed in (0, 1)
    ]


TARGET = run("target", 1e14)
TRUTH = 30 * 1e14**-0.1 + 2.0


def test_the_forecast_of_a_law_without_noise_is_exact():
    found = forecast.fit(results(), TARGET, 100.0, 0.9)
    assert found["loss"] == pytest.approx(TRUTH, rel=1e-5)
    assert found["actual_ratio"] == pytest.approx(100) and len(found["runs"]) == 12
    low, high = found["interval_run"]
    assert low <= TRUTH * (1 + 1e-9) and high >= TRUTH * (1 - 1e-9)
    assert found["choice"] == "a C^b + c" and found["by_law"]["a C^b + c"]["loss"] == found["loss"]
    assert not found["backtest"]["errors"]["a C^b + c"]  # six levels over two decades are too short a ladder
    # without c the same runs' forecast is too low: steeper than the truth further on
    assert found["by_law"]["a C^b"]["loss"] < TRUTH * 0.99
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(("c", "seed", "choice"), [(2.0, 1, "a C^b + c"), (0.0, 3, "a C^b")])
def test_a_long_ladder_chooses_its_law(c, seed, choice):
    """Ten levels over three decades: each law on its own truth, and the errors that it is chosen by, by hand."""
    rng = np.random.default_rng(seed)
    computes = np.repeat(np.geomspace(1e9, 1e12, 10), 2)
    losses = (30 * computes**-0.1 + c) * np.exp(3e-3 * rng.normal(size=20))
    runs = [Result(run(f"run-{i}", *at[:1]), at[1]) for i, at in enumerate(zip(computes, losses, strict=True))]
    found = forecast.fit(runs, TARGET, 100.0, 0.9)
    assert found["choice"] == choice and found["loss"] == found["by_law"][choice]["loss"]
    for name, with_c in forecast.CANDIDATES.items():
        for error, held in zip(found["backtest"]["errors"][name], np.unique(computes)[::-1][:2], strict=True):
            below = computes <= held / 10
            law = laws.fit(computes[below], losses[below], irreducible=with_c)
            assert error == pytest.approx(np.mean(law.predict(held) / losses[computes == held] - 1), rel=1e-6)
    low, high = found["interval_run"]
    assert low < 30 * 1e14**-0.1 + c < high  # of the law with c, whichever was chosen


@pytest.mark.parametrize(
    ("c", "noise", "choice"), [(2.0, 1e-4, "a C^b + c"), (2.0, 5e-3, "a C^b"), (0.0, 1e-3, "a C^b")]
)
def test_a_short_ladder_has_a_c_where_its_runs_speak_for_one(c, noise, choice):
    """Four levels over a decade: too short to test a law by its own largest levels."""
    rng = np.random.default_rng(3)
    computes = np.repeat(np.geomspace(1e10, 1e11, 4), 3)
    losses = (30 * computes**-0.1 + c) * np.exp(noise * rng.normal(size=12))
    runs = [
        Result(run(f"run-{i}", compute), loss) for i, (compute, loss) in enumerate(zip(computes, losses, strict=True))
    ]
    found = forecast.fit(runs, TARGET, 1000.0, 0.9)
    assert found["choice"] == choice and not found["backtest"]["errors"]["a C^b"]
    assert any("c is not identified" in line for line in found["warnings"]) == (choice == "a C^b")
    assert found["loss"] == found["by_law"][choice]["loss"]


def test_small_levels_before_a_bend_are_left_out_by_name():
    """Eight levels; the two smallest lie 5% and 2% above the law of the others, which alone makes the forecast."""
    rng = np.random.default_rng(0)
    computes = np.repeat(np.geomspace(1e9, 1e12, 8), 3)
    losses = (30 * computes**-0.1 + 2) * np.exp(1e-3 * rng.normal(size=24))
    straight, bent = (
        [Result(run(f"run-{i // 3}-{i % 3}", c), y) for i, (c, y) in enumerate(zip(computes, some, strict=True))]
        for some in (losses, losses * np.repeat([1.05, 1.02, 1, 1, 1, 1, 1, 1], 3))
    )
    found = forecast.fit(bent, TARGET, 100.0, 0.9)
    assert set(found["left_out"]) == {f"run-{level}-{seed}" for level in (0, 1) for seed in (0, 1, 2)}
    assert all("no one law fits its level" in why for why in found["left_out"].values())
    assert found["loss"] == forecast.fit(straight[6:], TARGET, 100.0, 0.9)["loss"]
    assert not forecast.fit(straight, TARGET, 100.0, 0.9)["left_out"]
    steps = losses * np.repeat([1, 1, 1, 1, 1, 1, 1.02, 1], 3)  # a bend that leaving out small levels can't mend
    high = [r._replace(loss=y) for r, y in zip(straight, steps, strict=True)]
    assert not forecast.fit(high, TARGET, 100.0, 0.9)["left_out"]
    alone = forecast.fit(bent[::3], TARGET, 100.0, 0.9)  # one run a level: a bend can't be told from noise
    assert not alone["left_out"] and len(alone["runs"]) == 8


def test_levels_that_no_law_fits_are_said():
    """A bend of 2% where runs of one level agree to 0.1%: the F test sees it, and not where there is none."""
    bent = [r._replace(loss=r.loss * (1.02 if "run-3" in r.run.name else 1.0)) for r in results(1e-3)]
    for runs, misfit in ((bent, True), (results(1e-3), False)):
        warnings = forecast.fit(runs, TARGET, 100.0, 0.9)["warnings"]
        assert any(line.startswith("a C^b + c: The levels lie further") for line in warnings) == misfit


def test_only_runs_below_the_ratio_count_and_the_others_are_named():
    all_of_them = results(1e-3)
    all_of_them[3] = Result(all_of_them[3].run, math.nan, "diverged: not finite at step 7")
    found = forecast.fit(all_of_them, TARGET, 1000.0, 0.9)
    assert all(name.split("-")[1] < "3" for name in found["runs"])
    assert found["left_out"]["run-1-1"] == "diverged: not finite at step 7"
    assert "run-5-0" in found["larger"]
    assert "no_interval" in found  # three levels for three parameters
    assert len(found["runs"]) + len(found["larger"]) + len(found["left_out"]) == len(all_of_them)


def test_no_forecast_from_nothing_or_from_losses_that_rise():
    with pytest.raises(UserError, match="no run of at most 1/1e"):
        forecast.fit(results(), TARGET, 1e6, 0.9)
    rising = [Result(r.run, 1 / r.loss) for r in results()]
    with pytest.raises(UserError, match="no law from the runs"):
        forecast.fit(rising, TARGET, 100.0, 0.9)
    with pytest.raises(UserError, match="more than one level"):
        forecast.fit(results()[:2], TARGET, 100.0, 0.9)


def test_a_seal_shows_every_change():
    document = forecast.seal({"forecasts": [{"loss": 2.5, "runs": ["a"]}], "registered": "2023-03-14"})
    forecast.check_seal(json.loads(json.dumps(document)), "x")
    for change in ({"registered": "2023-03-15"}, {"forecasts": [{"loss": 2.4, "runs": ["a"]}]}, {"more": 1}):
        with pytest.raises(UserError, match="not what was registered"):
            forecast.check_seal({**document, **change}, "x")


def test_comparison_by_hand():
    document = {"forecasts": [{"ratio": 100.0, "actual_ratio": 120.0, "loss": 2.02, "interval_run": [1.9, 2.005]}]}
    (row,) = forecast.compare(document, [2.0, 2.01])
    assert row["errors"] == pytest.approx([0.01, 2.02 / 2.01 - 1])
    assert row["error_of_mean"] == pytest.approx(2.02 / 2.005 - 1)
    assert row["seed_standard_deviation"] == pytest.approx(0.01 / math.sqrt(2))
    assert row["error_sds"] == pytest.approx(0.015 / (0.01 / math.sqrt(2)))
    assert row["inside_interval_run"] == [True, False]
    (alone,) = forecast.compare(document, [2.0])
    assert alone["error_sds"] is None


def test_units_by_hand():
    """Two documents in a row and one in the next: "ab cd", "e", and "f g h"; the third row is not evaluated."""

    class Tokenizer:
        pieces = (b"", b"ab", b" c", b"d", b"e", b"f", b" ", b"g h", b"unseen words here")
        end = 0

    def row(segments, targets, sizes):
        targets = np.array(targets)
        tokens = np.concatenate([[0], targets[:-1]])
        return {"segment_ids": np.array(segments), "tokens": tokens, "targets": targets, "bytes": np.array(sizes)}

    rows = [
        row([1, 1, 1, 1, 2, 2, 0], [1, 2, 3, 0, 4, 0, 8], [2, 2, 1, 0, 1, 0, 0]),
        row([1, 1, 1, 1, 0, 0, 0], [5, 6, 7, 0, 8, 8, 8], [1, 1, 3, 0, 0, 0, 0]),
        row([1] * 7, [8] * 7, [17] * 7),
    ]
    units = forecast.units(rows[:2], Tokenizer)
    assert units == forecast.Units(tokens=10, bytes=11, words=6)
    assert units.bits_per_byte(1.1 * math.log(2)) == pytest.approx(1.0)
    assert units.bits_per_word(0.6 * math.log(2)) == pytest.approx(1.0)
    assert forecast.units(rows, Tokenizer, 1) == forecast.Units(tokens=6, bytes=6, words=3)
    assert forecast.units(rows, Tokenizer).words == 6 + 15  # "...here" and "unseen..." are one word


@pytest.mark.parametrize("seq_len", [7, 16, 100])
def test_words_are_counted_once_however_rows_cut_them(tmp_path, seq_len):
    from gpt4jax.data import cache, tokenizer

    tok = tokenizer.from_bytes()
    texts = ["def f(x):\n    return x + 1\n", "  two words ", "one", "été à la mer, " * 9]
    built = cache.build([text.encode() for text in texts], tok, tmp_path, 10**6)
    found = forecast.units(cache.PackedRows(built, tok, seq_len), tok)
    assert found.words == sum(len(text.encode().split()) for text in texts)
    assert found.bytes == sum(len(text.encode()) for text in texts)


def test_the_least_loss_of_the_grammar_is_its_own_probability():
    """Documents in a few rows, by the grammar's own reading of each; rows that cut one are refused."""
    from gpt4jax.data import cache, grammar, tokenizer

    tok = tokenizer.from_bytes()
    language = grammar.language()
    texts = list(grammar.documents(language, 3, 400))
    index = {spelling: word for word, spelling in enumerate(language.spelling)}
    nats = -sum(grammar.log_probability(language, text, index) for text in texts)
    tokens = sum(len(text) + 1 for text in texts)

    def rows(seq_len, folder):
        return cache.PackedRows(cache.build([text.encode() for text in texts], tok, folder, 10**6), tok, seq_len)

    with tempfile.TemporaryDirectory() as folder:
        whole = rows(512, pathlib.Path(folder) / "a")
        assert forecast.least_loss(whole, tok) == pytest.approx(nats / tokens, rel=1e-12)
        with pytest.raises(UserError, match="rows of 16 tokens cut documents"):
            forecast.least_loss(rows(16, pathlib.Path(folder) / "b"), tok)


def test_the_code_digest_is_of_what_trains(tmp_path, monkeypatch):
    import shutil

    import gpt4jax

    root = tmp_path / "gpt4jax"
    shutil.copytree(gpt4jax.__path__[0], root, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(gpt4jax, "__file__", str(root / "__init__.py"))
    before = forecast.code_digest()
    (root / "scaling" / "figures.py").write_text("other colours")
    assert forecast.code_digest() == before
    (root / "model" / "layers.py").write_text("another decoder")
    assert forecast.code_digest() != before
