"""What the stages of alignment did, as one page of HTML, drawn from their files.

In the known world, where gold reward and KL are exact, the page shows a policy beside the best one at its KL, and how
its reward model's score goes on rising where gold no longer does (Gao et al. 2023).
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from gpt4jax import files
from gpt4jax.align import overoptimisation
from gpt4jax.align.config import STAGES
from gpt4jax.errors import UserError
from gpt4jax.evals import page
from gpt4jax.training import metrics

# Of each stage, what is drawn over its steps: the axis, and the series by their names in metrics.jsonl.
_CURVES: Mapping[str, Mapping[str, Mapping[str, str]]] = {
    "sft": {"nats a token": {"train/loss": "trained on", "eval/heldout/loss": "held out"}},
    "reward": {
        "loss of a pair": {"train/loss": "trained on", "eval/align/loss": "held out"},
        "pairs in order": {"align/pair_accuracy": "trained on", "eval/align/pair_accuracy": "held out"},
    },
    "dpo": {
        "loss of a pair": {"train/loss": "trained on", "eval/align/loss": "held out"},
        "pairs in order": {"align/pair_accuracy": "trained on", "eval/align/pair_accuracy": "held out"},
    },
    "ppo": {
        "score": {"ppo/score": "a round's answers", "eval/align/score": "evaluated"},
        "KL, nats an answer": {"ppo/kl": "estimated", "eval/align/kl": "exact"},
        "entropy, nats an answer": {"ppo/entropy": "a round's answers"},
        "share of answers that end": {"ppo/ended": "a round's answers", "eval/align/ended": "evaluated"},
    },
}

_LEAST_KL = 1e-3  # below that KL and gain are rounding errors

Lines = Sequence[Mapping[str, float]]


def write(workdir: files.Path) -> files.Path:
    """Writes DIR/report.html of the stages that are there.

    Raises:
        UserError: no stage has said anything yet.
    """
    found = {name: metrics.read(workdir / name) for name in STAGES if (workdir / name / "metrics.jsonl").exists()}
    if not found:
        raise UserError(f"{workdir} has no stage of an alignment with metrics")
    told = {name: _done(workdir / name) for name in found}
    files.replace(workdir / "report.html", of(workdir.name, found, told))
    return workdir / "report.html"


def _done(here: files.Path) -> Mapping[str, Any]:
    path = here / "done.json"
    return json.loads(path.read_text()) if path.exists() else {}


def of(name: str, lines: Mapping[str, Lines], done: Mapping[str, Mapping[str, Any]]) -> str:
    """The page of a job.

    Args:
        name: its title.
        lines: of each stage, what its metrics.jsonl has.
        done: of each stage that is done, what it found at its end.
    """
    parts = [f"<h1>{page.text(name)}</h1>"]
    for stage, some in lines.items():
        parts.append(f"<h2>{stage}</h2>")
        found = [(key.removeprefix("eval/"), f"{value:.4f}") for key, value in done.get(stage, {}).items()
                 if key.startswith("eval/")]  # fmt: skip
        steps = f"{done[stage]['num_steps']} steps" if done.get(stage) else "not done yet"
        parts.append(f'<p class="note">{steps}</p>')
        parts.append(page.table(("at the end", ""), found) if found else "")
        parts.append(page.picture(curves(stage, some)))
        known = in_the_known_world(some)
        if len(known) > 1:
            parts.append(page.picture(gain_figure(known)))
            parts.append(f"<p>{page.text(gain_words(known))}</p>")
    return page.document(name, parts)


def series(lines: Lines, name: str) -> tuple[list[float], list[float]]:
    """The steps at which a run says something, and what."""
    some = [(line["step"], line[name]) for line in lines if name in line]
    return [step for step, _ in some], [value for _, value in some]


def curves(stage: str, lines: Lines) -> Figure:
    """What a stage says over its steps: lines for what it is trained on, points for evaluations."""
    panels = _CURVES[stage]
    figure, axes = page.axes(3.2 * len(panels), 2.6, panels=len(panels))
    for one, (label, names) in zip(axes, panels.items(), strict=True):
        for name, meaning in names.items():
            evaluated = name.startswith("eval/")
            points, line = {"marker": "o", "ls": "", "ms": 4, "color": page.OURS}, {"lw": 1, "color": page.INK}
            steps, values = series(lines, name)
            if steps:
                one.plot(steps, values, label=meaning, **(points if evaluated else line))
        one.set(xlabel="round" if stage == "ppo" else "step", ylabel=label)
        if one.lines:
            one.legend(frameon=False, fontsize=8)
    return figure


def in_the_known_world(lines: Lines) -> list[Mapping[str, float]]:
    """The evaluations that have an exact gold reward and KL."""
    return [line for line in lines if "eval/align/gold" in line]


def _gains(known: Lines) -> dict[str, np.ndarray]:
    """KL, and what PPO gained over the policy before it: in gold, in the score, and the most that is possible."""
    kl, gold, score = (np.array([line[f"eval/align/{name}"] for line in known]) for name in ("kl", "gold", "score"))
    before = known[0]["eval/align/gold_before"]
    best = np.array([line.get("eval/align/gold_best", before) for line in known]) - before
    return {"kl": np.maximum(kl, 0), "gold": gold - before, "score": score - score[0], "best": best}


def gain_figure(known: Lines) -> Figure:
    """Gains over sqrt(KL): gold, the score, the best policy's gold; with the law where there are enough policies."""
    gains = _gains(known)
    d, order = np.sqrt(gains["kl"]), np.argsort(gains["kl"])
    figure, axes = page.axes(6, 4)
    axes.plot(d[order], gains["best"][order], color=page.FAINT, label="gold of the best policy at this KL")
    axes.plot(d, gains["score"], ".", color="C1", label="the reward model's score")
    axes.plot(d, gains["gold"], ".", color=page.OURS, label="gold")
    if (law := _law(gains)) is not None:
        grid = np.linspace(0, d.max(), 100)
        axes.plot(grid, law.gain(grid**2), color=page.OURS, label=f"d ({law.a:.2f} {-law.b:+.2f} log d)")
    axes.set(xlabel="d = sqrt(KL), KL in nats an answer", ylabel="gain over the policy before PPO")
    axes.legend(frameon=False, fontsize=8)
    return figure


def gain_words(known: Lines) -> str:
    """What `gain_figure` shows, in a sentence."""
    gains = _gains(known)
    words = f"Gold gained {gains['gold'][-1]:.3f} at the end, at a KL of {gains['kl'][-1]:.2f} nats an answer"
    if gains["best"][-1] > 0:
        words += f": {gains['gold'][-1] / gains['best'][-1]:.1%} of what the best policy at this KL gains"
    if (law := _law(gains)) is not None:
        peak = f"largest at a KL of {law.peak_kl:.2f} nats" if np.isfinite(law.peak_kl) else "which only grows"
        words += (
            f". Fitted to {np.sum(gains['kl'] > _LEAST_KL)} policies: d ({law.a:.3f} {-law.b:+.3f} log d), {peak}, "
            f"root mean squared error {law.error:.3f}; the largest gain measured is {gains['gold'].max():.3f}"
        )
    return words + "."


def _law(gains: Mapping[str, np.ndarray]) -> overoptimisation.Law | None:
    """The law, which has two parameters, of five policies or more."""
    moved = gains["kl"] > _LEAST_KL
    return overoptimisation.fit(gains["kl"][moved], gains["gold"][moved]) if moved.sum() >= 5 else None
