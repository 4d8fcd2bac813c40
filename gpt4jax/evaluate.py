"""Evaluates a model: `python -m gpt4jax.evaluate (--workdir DIR | --weights NAME) --tasks mmlu,humaneval --out DIR`.

DIR gets results.json, report.html, a file of items for each task, answers.jsonl, from which a killed run goes on, and
of OpenAI's evals their own log, in evallogs/.
"""

import argparse
import datetime
import hashlib
import json
import os
import pathlib
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from gpt4jax import files, job
from gpt4jax.errors import UserError

ROWS = (
    16  # generations that are decoded at once on a device: always computed, so that their bits don't depend on a flag
)
WINDOW = (
    2048  # tokens of a prompt and its continuation, unless the model's window is shorter or --max_len says otherwise
)


def main(argv: Sequence[str]) -> int:
    """Reads the flags, asks the model and writes the results; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.evaluate", description=__doc__.partition(":")[0] + ".")
    job.model_flags(parser)
    parser.add_argument("--tasks", required=True, help='names with commas between them; "list" says which there are')
    parser.add_argument("--out", type=files.user_path, help="a folder; of a run that was stopped: the same one")
    parser.add_argument("--limit", type=int, help="items of each task: those that come first by a hash (default: all)")
    parser.add_argument("--shots", type=int, help="solved examples in front (default: as many as each task has)")
    parser.add_argument("--registry_path", default="", help="a folder of OpenAI Evals, for tasks oai:NAME")
    parser.add_argument("--data", action="append", default=[], metavar="NAME=PLACE", help="your own file for a task")
    parser.add_argument(
        "--batch_size", type=int, default=ROWS, help=f"generations at once, 1 to {ROWS}: changes no score"
    )
    parser.add_argument("--max_len", type=int, default=0, help=f"tokens of prompt and continuation (default {WINDOW})")
    parser.add_argument("--seed", type=int, default=0, help="of all draws")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "int8"), help="of the weights (default: as stored)")
    parser.add_argument("--devices", type=int, default=1, help="that items are spread over; -1: all (default 1)")
    flags = parser.parse_args(argv)
    from gpt4jax.evals import catalog

    if flags.tasks == "list":
        print("\n".join(sorted(catalog.TASKS)))
        return 0
    if flags.out is None:
        raise UserError("--out is missing: where shall the results go?")
    limit, shots = 1 if flags.limit is None else flags.limit, 0 if flags.shots is None else flags.shots
    if limit < 1 or shots < 0 or not 1 <= flags.batch_size <= ROWS:
        raise UserError(
            f"--limit is {flags.limit}, --shots {flags.shots}, --batch_size {flags.batch_size}: at least 1, "
            f"at least 0 and from 1 to {ROWS}"
        )
    places = dict(_pair(text) for text in flags.data)
    names = flags.tasks.split(",")
    catalog.check(names, places)
    return evaluate(flags, names, places)


def _pair(text: str) -> tuple[str, str]:
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise UserError(f"--data {text} must be NAME=PLACE, such as drop=drop_dataset_dev.json")
    return name, place


def evaluate(flags: argparse.Namespace, names: Sequence[str], places: Mapping[str, str]) -> int:
    """Asks, scores and writes, task by task."""
    from gpt4jax.evals import catalog, oai_log, report, runner, summary
    from gpt4jax.evals.asking import Asker

    out = files.local_folder(flags.out, "--out")
    engine, template, about = _engine(flags)
    asker = Asker(engine, template, flags.batch_size, flags.seed)
    tasks = catalog.build(
        names, places, flags.shots, files.cache_dir(), registry=flags.registry_path, as_text=template is None
    )
    _check_shots(tasks, flags.shots or 0)
    kept = runner.Kept(out / "answers.jsonl", about)
    model = flags.weights or flags.workdir.name
    results: dict[str, Any] = {"name": model, "model": about, "tasks": _tasks_before(out / "results.json")}
    run = oai_log.run_id(datetime.datetime.now(datetime.UTC), os.urandom(5))
    for task in tasks:
        started, tokens = time.perf_counter(), engine.tokens_scored
        with _Progress(task.name) as progress:
            scored = runner.run(task, runner.sample(task.items, flags.limit), asker.ask, kept, progress.told)
        found = summary.summarise(task, scored)
        found["limit"], found["seconds"] = flags.limit, round(time.perf_counter() - started, 2)
        found["asked"], found["tokens_scored"] = progress.asked, engine.tokens_scored - tokens
        results["tasks"][task.name] = found
        lines = (json.dumps(summary.line(one), ensure_ascii=False) + "\n" for one in scored)
        files.replace(out / f"items-{task.name}.jsonl", "".join(lines))
        files.replace(out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        if task.name not in catalog.TASKS:
            oai_log.write(out / "evallogs", task, scored, model, run, " ".join(sys.argv))
        print(summary.words(task.name, found), flush=True)
    kept.close()
    report.write(out, results)
    job.say(f"{out / 'report.html'}")
    return 0


def _tasks_before(path: pathlib.Path) -> dict[str, Any]:
    """Results of other tasks in the same folder: of the same model, or its answers would have been refused."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text())["tasks"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} has no results of gpt4jax.evaluate: {error!r}; use another --out") from error


def _check_shots(tasks: Sequence[Any], wanted: int) -> None:
    """Whether the tasks have as many solved examples as --shots asks for; tasks that never have any are named."""
    from gpt4jax.evals import runner

    for task in tasks if wanted else ():
        most = runner.most_shots(task, wanted)
        if not most:
            job.say(f"{task.name} has no solved examples: --shots {wanted} is nothing to it")
        elif most < wanted:
            raise UserError(f"{task.name} has at most {most} solved examples, and --shots wants {wanted}")


def _engine(flags: argparse.Namespace):
    """An engine with the model, its chat template, and what answers are a function of beside the questions."""
    import jax

    from gpt4jax.inference import Engine, chat
    from gpt4jax.parallel.mesh import make_mesh

    devices = jax.local_devices()
    count = len(devices) if flags.devices == -1 else flags.devices
    if not 1 <= count <= len(devices):
        raise UserError(f"--devices is {flags.devices}; the devices here number {len(devices)}")
    loaded = job.load_model(flags)
    if loaded.tokenizer is None:
        raise UserError(f"{loaded.source} has no tokenizer: without it there are no texts")
    max_len = flags.max_len or min(WINDOW, loaded.config.max_seq_len)
    if not 1 <= max_len <= loaded.config.max_seq_len:
        raise UserError(f"--max_len is {max_len}; this model's window has {loaded.config.max_seq_len} tokens")
    template = None
    if loaded.chat_template:
        template = chat.of_model(loaded.chat_template, loaded.tokenizer.roles, str(loaded.source))
    about = {
        "parameters": _fingerprint(loaded.params), "config": _short(repr(loaded.config)),
        "tokenizer": loaded.tokenizer.fingerprint, "template": _short(loaded.chat_template or ""),
        "weights": flags.dtype or loaded.config.param_dtype, "max_len": max_len, "seed": flags.seed,
    }  # fmt: skip
    mesh = None if count == 1 else make_mesh({"data": count, "fsdp": 1, "tensor": 1}, devices[:count])
    engine = Engine(
        loaded.config, loaded.params, tokenizer=loaded.tokenizer, rows=ROWS, max_len=max_len, weights=flags.dtype or "",
        mesh=mesh, consume=True,
    )  # fmt: skip
    return engine, template, about


def _fingerprint(params: Mapping[str, Mapping[str, Any]]) -> str:
    """A hash of all parameters."""
    import numpy as np

    digest = hashlib.sha256()
    for group in sorted(params):
        for name in sorted(params[group]):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(params[group][name]).view(np.uint8).data)
    return digest.hexdigest()[:16]


def _short(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


class _Progress:
    """A bar of answered calls, on stderr."""

    def __init__(self, name: str):
        self._name, self._first = name, None
        self.asked = 0  # answers that were not there before

    def __enter__(self) -> "_Progress":
        from tqdm import tqdm

        self._bar = tqdm(desc=self._name, unit="call", smoothing=0.05, mininterval=1)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._bar.close()

    def told(self, done: int, known: int, new: bool) -> None:
        """As `runner.run` tells."""
        self.asked += new
        self._bar.total = known
        self._bar.update(done - self._bar.n)


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
