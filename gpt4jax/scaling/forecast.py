"""A forecast as a document: made before the run it is about, sealed by a hash, and compared with what came."""

import dataclasses
import hashlib
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import gpt4jax
from gpt4jax.data import RandomAccess, grammar
from gpt4jax.data.loader import evaluated
from gpt4jax.errors import UserError
from gpt4jax.scaling import backtest, laws
from gpt4jax.scaling.ladder import Run

CANDIDATES = {"a C^b + c": True, "a C^b": False}  # with c? The report's law first
BACKTEST_RATIO = 10.0
# What a training run executes; the rest may change between a ladder and its target.
_TRAINING_CODE = ("train.py", "config.py", "data", "model", "parallel", "training")


class Result(NamedTuple):
    """A run and what became of it: its final held-out loss in nats per token, or NaN and why it has none."""

    run: Run
    loss: float
    reason: str = ""

    @property
    def ended(self) -> bool:
        """Whether it has a loss."""
        return math.isfinite(self.loss)


@dataclasses.dataclass(frozen=True)
class Units:
    """The held-out rows that every run is evaluated on: their tokens, bytes and words (split at white space)."""

    tokens: int
    bytes: int
    words: int

    def bits_per_byte(self, nats_per_token: float) -> float:
        """From a mean over these rows."""
        return nats_per_token * self.tokens / self.bytes / math.log(2)

    def bits_per_word(self, nats_per_token: float) -> float:
        """The report's unit; it does not say what a word is: ours is a run of characters that are no white space."""
        return nats_per_token * self.tokens / self.words / math.log(2)


def units(rows: RandomAccess[dict[str, np.ndarray]], tokenizer: Any, num_rows: int = 0) -> Units:
    """Counts the `num_rows` held-out rows that an evaluation reads (0: all)."""
    tokens = num_bytes = words = 0
    for i in evaluated(len(rows), num_rows):
        row = rows[i]
        segments = row["segment_ids"]
        tokens, num_bytes = tokens + int((segments > 0).sum()), num_bytes + int(row["bytes"].sum())
        for segment in range(1, int(segments.max()) + 1):
            targets = row["targets"][segments == segment]
            words += len(b"".join(tokenizer.pieces[t] for t in targets).split())
    return Units(tokens, num_bytes, words)


def least_loss(rows: RandomAccess[dict[str, np.ndarray]], tokenizer: Any, num_rows: int = 0) -> float:
    """The loss, nats per token, of a model that knows the grammar of known entropy, on these held-out rows.

    Raises:
        UserError: documents that rows cut, so that what follows is not known to any model.
    """
    language = grammar.language()
    index = {spelling: word for word, spelling in enumerate(language.spelling)}
    nats, tokens = 0.0, 0
    for i in evaluated(len(rows), num_rows):
        segments, targets = rows[i]["segment_ids"], rows[i]["targets"]
        for segment in range(1, int(segments.max()) + 1):
            ids = targets[segments == segment]
            text = b"".join(tokenizer.pieces[t] for t in ids).decode()
            log_probability = grammar.log_probability(language, text, index)
            if ids[-1] != tokenizer.end or not math.isfinite(log_probability):
                raise UserError(
                    f"rows of {len(segments)} tokens cut documents of up to {grammar.MAX_BYTES}: lengthen them"
                )
            nats, tokens = nats - log_probability, tokens + len(ids)
    return nats / tokens


def code_digest() -> str:
    """A sha256 of the source code that a training run executes."""
    root = pathlib.Path(gpt4jax.__file__).parent
    digest = hashlib.sha256()
    for name in _TRAINING_CODE:
        for path in [root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def usable(results: Sequence[Result], most_compute: float) -> tuple[list[Result], dict[str, str]]:
    """The runs that a law may be fitted on, and why each of the others is left out, by name."""
    used, left_out = [], {}
    for result in results:
        if not result.ended:
            left_out[result.run.name] = result.reason or f"its loss is {result.loss}"
        elif result.run.compute > most_compute:
            left_out[result.run.name] = f"its {result.run.compute:.3g} FLOPs are more than {most_compute:.3g}"
        else:
            used.append(result)
    return used, left_out


def fit(results: Sequence[Result], target: Run, ratio: float, level: float) -> dict[str, Any]:
    """The forecast of the target's loss by a power law through the runs of at most 1/ratio of its compute.

    Which law, with c or without, is chosen by how well each forecasts the largest of these runs from the smaller ones;
    what the other one says is kept beside it.

    Raises:
        UserError: too few runs, or losses that do not fall.
    """
    used, left_out = usable(results, target.compute / ratio)
    if not used:
        raise UserError(f"no run of at most 1/{ratio:g} of the target's compute is left to fit a law on: {left_out}")
    choice, tested = choose(used)
    try:
        fitted = {name: laws.fit(*_columns(used), irreducible=with_c) for name, with_c in CANDIDATES.items()}
    except ValueError as error:
        raise UserError(f"no law from the runs of at most 1/{ratio:g} of the target's compute: {error}") from error
    law = fitted[choice]
    out: dict[str, Any] = {
        "ratio": ratio,
        "actual_ratio": target.compute / max(r.run.compute for r in used),
        "loss": law.predict(target.compute),
        "choice": choice,
        "law": law.to_dict(),
        "by_law": {name: {"loss": one.predict(target.compute), "c": one.c} for name, one in fitted.items()},
        "backtest": tested,
        "runs": [r.run.name for r in used],
        "left_out": left_out,
    }
    try:
        for kind in ("mean", "run"):
            out[f"interval_{kind}"] = law.interval(target.compute, kind=kind, level=level)
    except ValueError as error:
        out["no_interval"] = str(error)
    return out


def choose(used: Sequence[Result]) -> tuple[str, dict[str, Any]]:
    """The law among `CANDIDATES` that forecasts the ladder's two largest levels best, and each one's errors.

    A ladder too short to tell gets the report's law, with c.
    """
    columns = zip(*((r.run.num_params, r.run.num_tokens, r.loss, r.run.compute) for r in used), strict=True)
    runs = backtest.Runs(*(np.array(column, np.float64) for column in columns))
    top = np.unique(runs.compute)[-2:]
    candidates = {name: backtest.power_law(irreducible=with_c) for name, with_c in CANDIDATES.items()}
    try:
        found = backtest.choose(runs, candidates, BACKTEST_RATIO, int((runs.compute >= top[0]).sum()))
    except ValueError as error:
        return next(iter(CANDIDATES)), {"none": str(error)}
    return found.name, {"ratio": found.ratio, "errors": {name: e.tolist() for name, e in found.errors.items()}}


def _columns(used: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([r.run.compute for r in used]), np.array([r.loss for r in used])


def seal(document: Mapping[str, Any]) -> dict[str, Any]:
    """The document with the sha256 of its own canonical JSON."""
    body = {key: value for key, value in document.items() if key != "sha256"}
    return {**body, "sha256": hashlib.sha256(_canonical(body)).hexdigest()}


def check_seal(document: Mapping[str, Any], where: str) -> None:
    """Checks that nothing in a forecast was changed after it was registered.

    Raises:
        UserError: it was.
    """
    if seal(document)["sha256"] != document.get("sha256"):
        raise UserError(f"{where} is not what was registered: its sha256 does not fit its content")


def _canonical(body: Mapping[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def compare(document: Mapping[str, Any], losses: Sequence[float]) -> list[dict[str, Any]]:
    """Each registered forecast beside the target's losses, one of each seed.

    Errors are forecast / observed - 1; `error_sds` is the error of the mean in standard deviations of one seed's loss
    (None with one seed).
    """
    observed = np.asarray(losses, np.float64)
    spread = float(observed.std(ddof=1)) if len(observed) > 1 else None
    rows = []
    for forecast in document["forecasts"]:
        guess, mean = forecast["loss"], float(observed.mean())
        rows.append(
            {
                "ratio": forecast["ratio"],
                "actual_ratio": forecast["actual_ratio"],
                "forecast": guess,
                "observed": [float(loss) for loss in observed],
                "errors": [float(guess / loss - 1) for loss in observed],
                "error_of_mean": guess / mean - 1,
                "seed_standard_deviation": spread,
                "error_sds": (guess - mean) / spread if spread else None,
                "inside_interval_run": _inside(forecast.get("interval_run"), observed),
            }
        )
    return rows


def _inside(interval: Sequence[float] | None, observed: np.ndarray) -> list[bool] | None:
    return None if interval is None else [bool(interval[0] <= loss <= interval[1]) for loss in observed]


def describe(document: Mapping[str, Any], units: Units) -> str:
    """The registered forecasts for a person."""
    target = document["target"]
    lines = [
        f"forecast registered {document['registered']}, sha256 {document['sha256'][:16]}: "
        f"{target['num_params']:,} parameters on {target['num_tokens']:,} tokens, {target['compute']:.3g} FLOPs"
    ]
    for forecast in document["forecasts"]:
        law = forecast["law"]
        line = f"from 1/{forecast['actual_ratio']:,.0f}: {_in_units(forecast['loss'], units)}"
        if "interval_run" in forecast:
            low, high = forecast["interval_run"]
            line += f"; {document['level']:.0%} for one run: {low:.4f} to {high:.4f}"
        lines.append(
            line + f"; L(C) = {law['a']:.4g} C^{law['b']:.4g} + {law['c']:.4g} of {len(forecast['runs'])} runs"
        )
        if (least := document["least_loss"]) is not None:
            c = forecast["by_law"]["a C^b + c"]["c"]
            lines.append(f"  c = {c:.4f}, and the truth is {least:.4f} ({c / least - 1:+.2%})")
        lines += [f"  {warning}" for warning in law["warnings"]]
        for name, errors in forecast["backtest"].get("errors", {}).items():
            mean = sum(map(abs, errors)) / len(errors)
            mark, loss = "*" if name == forecast["choice"] else " ", forecast["by_law"][name]["loss"]
            ahead = f"{forecast['backtest']['ratio']:.3g}x ahead"
            lines.append(f"  {mark} {name}: {loss:.4f}; inside the ladder, {ahead}, it errs by {mean:.2%}")
        odd = {name: why for name, why in forecast["left_out"].items() if "more than" not in why}
        lines += [f"  left out {name}: {why}" for name, why in odd.items()]
    lines += [f"no forecast: {why}" for why in document["without_forecast"].values()]
    lines += [f"forced: {line}" for line in document["forced"]]
    return "\n".join(lines)


def verdict(report: Mapping[str, Any], units: Units) -> str:
    """What came of the forecasts, for a person."""
    lines = []
    for row in report["forecasts"]:
        observed = row["observed"]
        lines.append(
            f"from 1/{row['actual_ratio']:,.0f}: forecast {row['forecast']:.4f}, observed "
            + ", ".join(f"{loss:.4f} ({error:+.2%})" for loss, error in zip(observed, row["errors"], strict=True))
            + f" nats/token; error of the mean {row['error_of_mean']:+.3%}"
            + (f", {row['error_sds']:+.1f} seed standard deviations" if row["error_sds"] is not None else "")
        )
    mean = sum(report["forecasts"][0]["observed"]) / len(report["forecasts"][0]["observed"])
    lines.append(f"the target: {_in_units(mean, units)}")
    return "\n".join(lines + [f"forced: {line}" for line in report["forced"]])


def _in_units(loss: float, units: Units) -> str:
    return (
        f"{loss:.4f} nats/token, {units.bits_per_byte(loss):.4f} bits/byte, {units.bits_per_word(loss):.3f} bits/word"
    )
