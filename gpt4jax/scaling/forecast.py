"""A forecast as a document: made before the run it is about, sealed by a hash, and compared with what came."""

import dataclasses
import hashlib
import importlib.metadata
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
LACK_OF_FIT = 0.05  # a p-value below it: no one law fits these levels
FEWEST_LEVELS = 5  # to judge by: two more than a law has parameters
# What a training run executes; the rest may change between a ladder and its target.
TRAINING_CODE = ("train.py", "config.py", "data", "model", "parallel", "training")


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
            inside = segments == segment
            words += _words(row["tokens"][inside][0], row["targets"][inside], tokenizer)
    return Units(tokens, num_bytes, words)


def _words(before: int, targets: np.ndarray, tokenizer: Any) -> int:
    """Words that begin in these tokens; where a row cuts a document, `before` may hold the beginning of the first."""
    text = b"".join(tokenizer.pieces[t] for t in targets)
    inside_a_word = before != tokenizer.end and not tokenizer.pieces[before][-1:].isspace() and not text[:1].isspace()
    return len(text.split()) - (1 if inside_a_word and text else 0)


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


def code_digest(names: Sequence[str] = TRAINING_CODE) -> str:
    """A sha256 of source code of this package: of what a training run executes, unless other names are given."""
    root = pathlib.Path(gpt4jax.__file__).parent
    digest = hashlib.sha256()
    for name in names:
        for path in [root / name] if name.endswith(".py") else sorted((root / name).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Of the libraries that training runs on."""
    return {name: importlib.metadata.version(name) for name in ("jax", "jaxlib", "flax", "optax", "numpy", "gpt4jax")}


def provenance(code: str | None = None, libraries: Mapping[str, str] | None = None) -> str:
    """What trains a run, in a line: the digest of the code and the versions; by default those of here and now."""
    of = versions() if libraries is None else libraries
    return " ".join([code or code_digest(), *(f"{name}={version}" for name, version in sorted(of.items()))])


def usable(results: Sequence[Result], most_compute: float) -> tuple[list[Result], list[str], dict[str, str]]:
    """The runs that a law may be fitted on, the names of those that are too large, and why others came to nothing."""
    used, larger, failed = [], [], {}
    for result in results:
        if not result.ended:
            failed[result.run.name] = result.reason or f"its loss is {result.loss}"
        elif result.run.compute > most_compute:
            larger.append(result.run.name)
        else:
            used.append(result)
    return used, larger, failed


def fit(results: Sequence[Result], target: Run, ratio: float, level: float) -> dict[str, Any]:
    """The forecast of the target's loss by a power law through the runs of at most 1/ratio of its compute.

    The smallest runs are left out where the law bends (`of_one_law`). It has a c where the ladder speaks for one
    (`choose`); what both say is kept. Intervals are those of the law with c, which holds the other one (c = 0): so they
    cover the choice.

    Raises:
        UserError: too few runs, or losses that do not fall.
    """
    used, larger, failed = usable(results, target.compute / ratio)
    if not used:
        raise UserError(
            f"no run of at most 1/{ratio:g} of the target's compute is left to fit a law on: {failed or larger}"
        )
    try:
        used, bent = of_one_law(used)
        fitted = {name: laws.fit(*_columns(used), irreducible=with_c) for name, with_c in CANDIDATES.items()}
    except ValueError as error:
        raise UserError(f"no law from the runs of at most 1/{ratio:g} of the target's compute: {error}") from error
    choice, tested = choose(used, next(iter(fitted.values())).identified)
    law, widest = fitted[choice], next(iter(fitted.values()))
    out: dict[str, Any] = {
        "ratio": ratio,
        "actual_ratio": target.compute / max(r.run.compute for r in used),
        "loss": law.predict(target.compute),
        "choice": choice,
        "law": law.to_dict(),
        "by_law": {name: {"loss": one.predict(target.compute), "c": one.c} for name, one in fitted.items()},
        "warnings": [f"{name}: {warning}" for name, one in fitted.items() for warning in one.warnings],
        "backtest": tested,
        "runs": [r.run.name for r in used],
        "larger": larger,
        "left_out": failed | bent,
    }
    try:
        for kind in ("mean", "run"):
            out[f"interval_{kind}"] = widest.interval(target.compute, kind=kind, level=level)
    except ValueError as error:
        out["no_interval"] = str(error)
    return out


def of_one_law(used: Sequence[Result]) -> tuple[list[Result], dict[str, str]]:
    """The runs of the largest levels that one law with c fits, by the F test, and why each smaller one is left out.

    The smallest decoders may not have begun to learn what the larger ones get better at, and a law through both takes
    the step between them for curvature. As few of the smallest levels go as it takes for the test not to reject at
    LACK_OF_FIT. If FEWEST_LEVELS are still too many, the bend is not at the small end, and all stay; so they do where
    no level has two runs, as nothing then tells noise from a bend.

    Raises:
        ValueError: of `laws.fit`.
    """
    levels = sorted({result.run.compute for result in used})
    out: dict[str, str] = {}
    for smallest in levels[: len(levels) - FEWEST_LEVELS + 1] or levels[:1]:
        kept = [result for result in used if result.run.compute >= smallest]
        if (p := laws.lack_of_fit(laws.fit(*_columns(kept)))) >= LACK_OF_FIT:
            return kept, out
        level = [result.run.name for result in kept if result.run.compute == smallest]
        out |= dict.fromkeys(level, f"no one law fits its level and those above it (F test, p = {p:.2g})")
    return list(used), {}


def choose(used: Sequence[Result], identified: bool) -> tuple[str, dict[str, Any]]:
    """The report's law, with c, if the runs identify c and C^b does not forecast the ladder's largest levels better.

    A c that may as well be 0 is a parameter too many: in simulated ladders that don't identify theirs the median error
    is 3.5% without it and 4.6% with it (1,000 times ahead of four levels; `tests/bench/laws.py choice`). C^b does
    better if of the two largest levels, where both can be forecast from runs of at most a tenth of their compute,
    neither errs more; beside the choice come the errors of both laws, the mean of forecast / observed - 1 over a level,
    the largest level first.
    """
    columns = zip(*((r.run.num_params, r.run.num_tokens, r.loss, r.run.compute) for r in used), strict=True)
    runs = backtest.Runs(*(np.array(column, np.float64) for column in columns))
    top = np.unique(runs.compute)[-2:][::-1]
    of_error = np.sort(runs.compute[runs.compute >= top[-1]])[::-1]
    errors: dict[str, list[float]] = {}
    for name, with_c in CANDIDATES.items():
        each = backtest.errors(runs, backtest.power_law(irreducible=with_c), BACKTEST_RATIO, len(of_error))
        means = [float(each[of_error == held].mean()) for held in top]
        errors[name] = [error for error in means if math.isfinite(error)]
    first, other = CANDIDATES
    pairs = list(zip(errors[first], errors[other], strict=False))
    gains = [abs(with_c) - abs(without) for with_c, without in pairs]
    better = len(pairs) == 2 and min(gains) >= 0 and max(gains) > 0
    return other if better or not identified else first, {"ratio": BACKTEST_RATIO, "errors": errors}


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
        lines += [f"  {warning}" for warning in forecast["warnings"]]
        for name, one in forecast["by_law"].items():
            errors = ", ".join(f"{error:+.2%}" for error in forecast["backtest"]["errors"][name])
            ahead = f"; inside the ladder, {forecast['backtest']['ratio']:g}x ahead: {errors}" if errors else ""
            lines.append(f"  {'*' if name == forecast['choice'] else ' '} {name}: {one['loss']:.4f}{ahead}")
        lines += [f"  left out {name}: {why}" for name, why in forecast["left_out"].items()]
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
        if row["inside_interval_run"] is not None:
            inside = sum(row["inside_interval_run"])
            lines.append(f"  {inside} of {len(observed)} inside the interval of one run")
    lines += [
        f"the target {row['name']} came to no loss: {row['reason']}" for row in report["targets"] if row["reason"]
    ]
    if ended := [row["loss"] for row in report["targets"] if row["loss"] is not None]:
        lines.append(f"the target: {_in_units(sum(ended) / len(ended), units)}")
    return "\n".join(lines + [f"forced: {line}" for line in report["forced"]])


def _in_units(loss: float, units: Units) -> str:
    return (
        f"{loss:.4f} nats/token, {units.bits_per_byte(loss):.4f} bits/byte, {units.bits_per_word(loss):.3f} bits/word"
    )
