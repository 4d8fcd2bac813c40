"""The best learning rate as a vertex, and the coordinate check's look inside a decoder."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.errors import UserError
from gpt4jax.model import mup
from gpt4jax.scaling import coordinates, sweep, transfer
from gpt4jax.training import optimizer
from tests.conftest import LLAMA, apply, perturbed
from tests.runs import ROOT, write_corpus

RATES = [2.0**-k for k in range(4, 11)]


def test_vertex_of_exact_parabolas():
    """Two seeds with minima at 2^-7.3 and 2^-6.9: the mean between them, and Student's interval by hand."""
    x = np.log2(RATES)
    losses = np.stack([3 + 0.1 * (x - at) ** 2 for at in (-7.3, -6.9)])
    found = transfer.vertex(list(x), losses)
    assert found.log2_rate == pytest.approx(-7.1)
    # standard error 0.4 / sqrt(2) / sqrt(2) = 0.2; t of one degree of freedom at 95% one-sided is 6.314
    assert found.half_width == pytest.approx(0.2 * 6.314, rel=1e-3)
    shuffled = np.random.default_rng(0).permutation(len(x))
    assert transfer.vertex(list(x[shuffled]), losses[:, shuffled]) == pytest.approx(found)
    moved, (low, high) = transfer.spread({1: found, 2: found._replace(log2_rate=-6.6), 3: found})
    assert moved == pytest.approx(2**0.5)
    # half widths of 1.263 each: together 1.786, more than the move of 0.5
    assert low == 1 and high == pytest.approx(2 ** (0.5 + 2**0.5 * found.half_width))
    assert transfer.spread({1: found._replace(half_width=math.nan), 2: found})[1] is None


def test_a_diverged_rate_is_left_out_but_not_the_others():
    x = np.log2(RATES)
    losses = np.tile(3 + 0.1 * (x + 7) ** 2, (3, 1))
    losses[:, 0] = np.nan  # the largest rate diverges for every seed
    assert transfer.vertex(list(x), losses).log2_rate == pytest.approx(-7)


@pytest.mark.parametrize("at", [-3.0, -12.0])
def test_no_vertex_at_the_end_of_the_rates(at):
    x = np.log2(RATES)
    with pytest.raises(ValueError, match="at the end of the learning rates"):
        transfer.vertex(list(x), (3 + 0.1 * (x - at) ** 2)[None])


def test_the_check_looks_at_the_decoder_that_is_trained():
    """Its own walk through the layers ends at the logits of `model.apply`, under muP away from the base shape."""
    config = model.Config(**LLAMA | dict(num_layers=4), parametrization="mup", base_embed_dim=16, base_num_layers=2)
    params = perturbed(config)
    tokens = jax.random.randint(jax.random.key(0), (2, 20), 0, 96)
    ours = coordinates.activations(config, params, tokens)
    assert set(ours) == set(coordinates.PLACES)
    theirs = apply(config, params, tokens)
    np.testing.assert_allclose(ours["logits"], theirs, atol=1e-4 * float(np.abs(theirs).max()))


def test_slopes_of_exact_powers():
    assert coordinates.slope({32: [2.0, 2.0], 64: [4.0, 4.0], 128: [8.0, 8.0]}) == pytest.approx(1)
    assert coordinates.slope({32: [3.0], 64: [3.0], 128: [3.0]}) == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """configs/mup.py at a size of seconds, and its cache."""
    root = tmp_path_factory.mktemp("mup")
    corpus = write_corpus(root / "corpus")
    flags = {
        "data.dataset": f"folder:{corpus}", "data.tokenizer": "bytes", "model.vocab_size": 257, "num_steps": 24,
        "batch_size": 2, "data.seq_len": 32, "optimizer.warmup_steps": 2, "sweep.widths": "(32,64)",
        "sweep.depths": "(2,)", "sweep.learning_rates": tuple(2.0**-k for k in range(3, 14, 2)), "sweep.seeds": 2,
        "sweep.coordinate_widths": "(64,256)", "sweep.coordinate_steps": 10, "data.cache_dir": root / "cache",
    }  # fmt: skip
    words = [f"--config.{key}={value}" for key, value in flags.items()]
    return root, ["--config", str(ROOT / "configs" / "mup.py"), *words]


def test_coordinates_are_flat_under_mup_only(tiny, capsys):
    """Widths 64 and 256, where muP is not yet at its limit: changes keep about their size, and grow in the standard.

    (The first output matrix adds to the logits' change what falls as 1 / sqrt(width).)
    """
    root, flags = tiny
    assert coordinates.main([*flags, "--config.sweep.seeds=1", "--workdir", str(root / "work")]) == 0
    slopes = json.loads((root / "work" / "coordinates.json").read_text())["slopes"]
    for place in ("attention", "mlp", "scores", "logits"):
        assert abs(slopes["mup"][place]) < 0.4 and slopes["standard"][place] > 0.5, (place, slopes)
    assert (root / "work" / "coordinates.png").is_file() and "mup" in capsys.readouterr().out


def test_the_sweep_resumes(tiny, capsys, monkeypatch):
    root, flags = tiny
    workdir = root / "transfer"
    assert transfer.main([*flags, "--workdir", str(workdir)]) == 0
    first = (workdir / "runs.jsonl").read_text()
    report = json.loads((workdir / "transfer.json").read_text())
    assert set(report) == {"mup", "standard"} and set(report["mup"]["width"]["best"]) == {"32", "64"}
    assert len(first.splitlines()) == 1 + 2 * 2 * 2 * 6 and (workdir / "transfer.png").is_file()
    monkeypatch.setattr(sweep, "losses", lambda *_: pytest.fail("ran again"))
    assert transfer.main([*flags, "--workdir", str(workdir)]) == 0
    assert (workdir / "runs.jsonl").read_text() == first
    for change in ("batch_size=3", "sweep.tail=0.5", "sweep.grow=num_heads"):
        with pytest.raises(UserError, match="begun with another config"):
            transfer.main([*flags, f"--config.{change}", "--workdir", str(workdir)])
    monkeypatch.undo()  # killed while it wrote its last line: that run is made again, and comes out the same
    (workdir / "runs.jsonl").write_text(first[:-20])
    assert transfer.main([*flags, "--workdir", str(workdir)]) == 0
    assert (workdir / "runs.jsonl").read_text() == first


def test_a_sweep_takes_seeds_and_rates_that_it_was_not_asked_for():
    """By hand: the rates that all seeds asked for have, the seeds that have all those rates."""
    shape = ("mup", 64, 2)
    losses = {(*shape, rate, seed): 10 * rate + seed for rate in (1, 2, 4) for seed in (0, 1, 5)}
    losses |= {(*shape, 8, 0): 80.0, (*shape, 1, 7): 17.0, (*shape, 2, 7): 27.0, ("mup", 64, 4, 1, 9): 0.0}
    rates, table = transfer.grid(losses, shape, [1, 2], [0, 1])  # 7 lacks a rate that was found at 0 and 1
    assert rates == [1, 2, 4] and table.tolist() == [[10, 20, 40], [11, 21, 41], [15, 25, 45]]
    options = sweep.default().sweep.copy_and_resolve_references()
    options.update(learning_rates=(1.0, 2.0), seeds=2)
    losses |= {("standard", *key[1:]): value for key, value in losses.items()}
    best = transfer.summary(losses, {("width", 64): (64, 2)}, options)["mup"]["width"]["best"]["64"]
    assert (best["seeds"], best["learning_rates"]) == (3, [1, 2, 4]) and "at the end" in best["error"]
    assert best["loss"] == [12, 22, 42]


def test_the_parabola_spans_as_many_octaves_on_any_grid():
    """Losses that are no parabola: half steps in between leave the reach, and so the vertex, about where it was."""

    def lost(x: np.ndarray) -> np.ndarray:
        return 3 + 0.1 * (x + 7) ** 2 + 0.02 * (x + 7) ** 3

    whole, half = np.arange(-11.0, -3), np.arange(-11.0, -3.4, 0.5)
    wide, fine = (transfer.vertex(list(x), lost(x)[None]).log2_rate for x in (whole, half))
    narrow = transfer.vertex(list(half), np.where(np.abs(half + 7) <= 1, lost(half), np.nan)[None]).log2_rate
    assert abs(wide - fine) < 0.5 * abs(narrow - wide)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("sweep.widths=(32,33)", "no whole head_dim at embed_dim 33"),
        ("sweep.seeds=0", "sweep.seeds is at least 1"),
        ("model.qk_norm=True", "the coordinate check knows decoders with"),
        ("model.attention=('banded:4',)", "only, not model.attention"),
    ],
)
def test_sizes_that_can_not_be_are_refused_before_any_run(tiny, change, words):
    root, flags = tiny
    job = coordinates if change.startswith("model.") else transfer
    with pytest.raises(UserError, match=words):
        job.main([*flags, f"--config.{change}", "--workdir", str(root / "refused")])
    assert not (root / "refused").exists()


def test_a_sweeps_run_is_a_training_run(tiny):
    """Losses of the sweep's own loop against the optimizer's steps written out."""
    from gpt4jax.training import state, step
    from gpt4jax.training.step import Batch

    config = dataclasses.replace(mup.grow(model.Config(**LLAMA), 32, 2), vocab_size=96)
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 96, (5, 2, 16)).astype(np.int32)
    ones, positions = np.ones_like(tokens), np.broadcast_to(np.arange(16, dtype=np.int32), tokens.shape)
    batches = Batch(*map(jax.numpy.asarray, (tokens, np.roll(tokens, -1, -1), ones, positions, ones)))
    from gpt4jax import config as configuration

    options = configuration.default().optimizer.copy_and_resolve_references()
    options.update(warmup_steps=1, learning_rate=0.3)
    ours = sweep.losses(config, options, batches, 0.01, 3)
    options.learning_rate = 0.01
    tx, schedule = optimizer.adamw(options, config, 5), optimizer.schedule(options, 5)
    now = state.new_state(config, tx, 3)
    for i in range(5):
        batch = jax.tree.map(lambda leaf, i=i: leaf[i], batches)
        now, scalars = jax.jit(step.train_step, static_argnums=(0, 1, 2), static_argnames="seed")(
            config, tx, schedule, now, batch, seed=0
        )
        assert ours[i] == pytest.approx(float(scalars["loss"]), rel=1e-5)
