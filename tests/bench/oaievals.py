"""OpenAI Evals' basic classes: which load, and whether ours give the library's own verdicts on recorded completions.

    pip install '.[test]'
    python -m tests.bench.oaievals load
    python -m tests.bench.oaievals compare          against tests/fixtures/oaievals.json.gz

The fixture is made by the library itself, whose classes run on made-up completions (`completions`):

    pip install --no-deps --target LIBRARY evals==3.0.1.post1
    python -m tests.bench.oaievals record --library LIBRARY

What the library imports beside its scoring (clients, storage) is replaced by empty modules there.
"""

import argparse
import collections
import gzip
import importlib
import importlib.abc
import importlib.machinery
import json
import pathlib
import random
import sys
import unittest.mock

from gpt4jax import files
from gpt4jax.evals import oai_scoring, oai_tasks, registry
from gpt4jax.evals.calls import Generated

FIXTURE = pathlib.Path(__file__).parents[1] / "fixtures" / "oaievals.json.gz"
SAMPLES = 4  # of each eval
GRADED_TEXTS = (
    "A", "(B)", "Yes", "No.", "Y", "N", "C\nbecause of this", "I think\n\nthe answer is\nD.", "1", "5",
    "Yes, but\nNo", "", "neither", "E\nA", "  yes", "2\n\n3", "A and B", "unsure", "\"B\"", "4.", "The choice is C",
    "Equal", "a", "b\n",
)  # fmt: skip


def completions(ideals: list[str], others: list[str]) -> list[str]:
    """What a model may have said: right, nearly right, and wrong."""
    gold, other = ideals[0], others[0]
    return [
        gold, ideals[-1], f"{gold}. That is all.", f" {gold}", f"The answer is {gold}", gold.upper(), gold.lower(),
        other, "", gold[:-1], f"{other} or {gold}", f"[{gold}]", gold.replace(" ", "  "), f"the {gold}!",
        gold.replace('":', '" : '), "null",
    ]  # fmt: skip


def picked_samples(name: str, count: int) -> list[int]:
    """Which samples of an eval are taken."""
    return sorted(random.Random(name).sample(range(count), min(SAMPLES, count)))


def load(library_registry: registry.Registry) -> None:
    """Prints how many evals of each class load, and why others don't."""
    loaded, failed = collections.Counter(), []
    for spec in registry.specs(library_registry, (*oai_tasks.BASIC, oai_tasks.GRADED)):
        try:
            task = oai_tasks.task(library_registry, spec.name)
            next(task.solve(task.items[0]))
            loaded[spec.cls.rpartition(":")[2], bool(task.malformed)] += 1
        except Exception as error:
            failed.append(f"{spec.name}: {error!r}")
    for (kind, malformed), count in sorted(loaded.items()):
        print(f"{kind}: {count} evals load{' with malformed samples' if malformed else ''}")
    print(f"{len(failed)} do not: {failed}")


class Empty(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds whatever else can't be found."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"evals", *sys.stdlib_module_names}:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = unittest.mock.MagicMock()
        module.__spec__, module.__path__, module.__name__ = spec, [], spec.name
        return module

    def exec_module(self, module):
        pass


def record(library: pathlib.Path) -> None:
    """Runs the library's classes on made-up completions and keeps what they say."""
    sys.path.append(str(library))
    sys.meta_path.append(Empty())
    import evals.record as recording
    from evals.elsuite.modelgraded import classify_utils
    from evals.registry import Registry

    ours = registry.of_folder(library / "evals" / "registry")
    kept: dict = {"basic": {}, "graded": {}}
    for spec in registry.specs(ours, oai_tasks.BASIC):
        try:
            rows = [row for _, row in ours.samples(spec.args["samples_jsonl"])]
        except Exception as error:
            print(f"{spec.name}: {error!r}")
            continue
        module, _, name = spec.cls.partition(":")
        made = getattr(importlib.import_module(module), name)(
            completion_fns=[unittest.mock.MagicMock()], eval_registry_path=library / "evals" / "registry",
            name=spec.name, registry=unittest.mock.MagicMock(), **spec.args,
        )  # fmt: skip
        verdicts = []
        for i in picked_samples(spec.name, len(rows)):
            ideals = rows[i]["ideal"] if isinstance(rows[i]["ideal"], list) else [rows[i]["ideal"]]
            other = rows[(i + 1) % len(rows)]["ideal"]
            for text in completions(ideals, other if isinstance(other, list) else [other]):
                verdicts.append(_verdict(recording, made, rows[i], text))
        kept["basic"][spec.name] = verdicts
    for name, grader in ours.graders.items():
        among = classify_utils.get_choice_strings(grader["choice_strings"], n=2)
        for kind in oai_scoring.ANSWER_PROMPTS:
            for match_fn in oai_scoring.MATCHES:
                said = [classify_utils.get_choice(text, kind, match_fn, among) for text in GRADED_TEXTS]
                scores = [classify_utils.get_choice_score(one, among, grader.get("choice_scores")) for one in said]
                kept["graded"][f"{name} {kind} {match_fn}"] = [said, scores]
    FIXTURE.write_bytes(gzip.compress(json.dumps(kept, separators=(",", ":")).encode(), mtime=0))
    print(
        f"{len(kept['basic'])} evals, {sum(map(len, kept['basic'].values()))} verdicts; {FIXTURE.stat().st_size} bytes"
    )
    assert Registry


def _verdict(recording, made, row: dict, text: str) -> list:
    """Correct or not, and F1, as the library records them; or the name of the error that it raises."""
    made.completion_fns[0].return_value.get_completions.return_value = [text]
    matches, metrics = [], {}
    with unittest.mock.patch.object(recording, "record_match", lambda correct, **_: matches.append(correct)), \
            unittest.mock.patch("evals.api.record_match", lambda correct, **_: matches.append(correct)), \
            unittest.mock.patch.object(recording, "record_metrics", lambda **given: metrics.update(given)):  # fmt: skip
        try:
            made.eval_sample(json.loads(json.dumps(row)), random.Random(0))
        except Exception as error:
            return [type(error).__name__]
    (correct,) = matches
    return [int(bool(correct)), *([round(metrics["f1_score"], 6)] if "f1_score" in metrics else [])]


def compare(library_registry: registry.Registry, names: list[str] | None = None) -> tuple[int, int, int, list[str]]:
    """Evals, verdicts, verdicts that agree, and those that don't."""
    kept = json.loads(gzip.decompress(FIXTURE.read_bytes()))["basic"]
    total = same = 0
    different = []
    for name in names or kept:
        spec, verdicts = library_registry.resolve(name), iter(kept[name])
        kind = spec.cls.rpartition(":")[2]
        task = oai_tasks.task(library_registry, name)
        items = {int(item.id.rpartition(".")[2]): item for item in task.items}
        rows = [row for _, row in library_registry.samples(spec.args["samples_jsonl"])]
        for i in picked_samples(spec.name, len(rows)):
            ideals = rows[i]["ideal"] if isinstance(rows[i]["ideal"], list) else [rows[i]["ideal"]]
            other = rows[(i + 1) % len(rows)]["ideal"]
            for text in completions(ideals, other if isinstance(other, list) else [other]):
                theirs = next(verdicts)
                ours = _ours(task, items.get(i), text, kind)
                total += 1
                same += ours == theirs
                if ours != theirs:
                    different.append(f"{name} {i} {text[:40]!r}: {ours} and {theirs}")
    return len(names or kept), total, same, different


def _ours(task, item, text: str, kind: str) -> list:
    if item is None:
        return ["malformed"]
    solve = task.solve(item)
    next(solve)
    try:
        solve.send([Generated(text, "stop", 0.0)])
    except StopIteration as stop:
        metrics = stop.value.metrics
        return [int(metrics["accuracy"]), *([round(metrics["f1_score"], 6)] if kind == "FuzzyMatch" else [])]
    raise AssertionError("it asks twice")


def compare_graded(library_registry: registry.Registry) -> tuple[int, int]:
    """A grader's texts: how many choices and scores there are, and how many agree."""
    kept = json.loads(gzip.decompress(FIXTURE.read_bytes()))["graded"]
    total = same = 0
    for key, (choices, scores) in kept.items():
        name, kind, match_fn = key.split(" ")
        grader = library_registry.graders[name]
        among = oai_scoring.choices(grader["choice_strings"], 2)
        ours = [oai_scoring.choice(text, kind, match_fn, among) for text in GRADED_TEXTS]
        points = [oai_scoring.choice_score(one, among, grader.get("choice_scores")) for one in ours]
        total += 2 * len(ours)
        same += sum(a == b for a, b in zip([*ours, *points], [*choices, *scores], strict=True))
    return total, same


def main() -> None:
    """Reads the flags and runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("load", "record", "compare"))
    parser.add_argument("--library", type=pathlib.Path, help="the folder that holds the library's package")
    flags = parser.parse_args()
    if flags.part == "record":
        record(flags.library)
        return
    published = registry.of_package(files.cache_dir())
    if flags.part == "load":
        load(published)
        return
    evals, total, same, different = compare(published)
    print(f"{evals} evals: {same} of {total} verdicts agree")
    print(*different, sep="\n")
    total, same = compare_graded(published)
    print(f"graders: {same} of {total} choices and scores agree")


if __name__ == "__main__":
    main()
