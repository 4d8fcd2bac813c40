"""Runs tasks: calls to the model, outputs kept as they come, and what a killed run had is not asked again."""

import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from gpt4jax import files
from gpt4jax.errors import UserError
from gpt4jax.evals.asking import TooLong, key
from gpt4jax.evals.calls import Call, Chosen, Generated, Item, Outcome, Output, Task, hashed

Ask = Callable[[Sequence[Call]], Iterator[tuple[int, Output | TooLong]]]
_KINDS = {"chosen": Chosen, "generated": Generated, "too_long": TooLong}
_NAMES = {kind: name for name, kind in _KINDS.items()}


class Scored(NamedTuple):
    """One item's end: its outcome, or why there is none; how many shots its task gave it, and how many were dropped."""

    item: Item
    outcome: Outcome | None
    unscored: str = ""
    dropped: int = 0
    shots: int = 0


class Kept:
    """Outputs by the key of their call, in a file that grows by a line an output.

    Args:
        path: of the file.
        about: what the outputs are a function of, beside their calls: a model, and settings that all calls share.

    Raises:
        UserError: the file is of another model, or no such file at all.
    """

    def __init__(self, path: pathlib.Path, about: Mapping[str, Any]):
        self._outputs: dict[str, Output | TooLong] = {}
        lines = path.read_bytes().split(b"\n") if path.is_file() else []
        whole = lines[:-1]  # a kill may leave half a line at the end: it is asked again
        if whole:
            self._read(path, whole, about)
        path.parent.mkdir(parents=True, exist_ok=True)
        if (len(lines) > 1 and lines[-1]) or len(lines) == 1:
            files.replace(path, b"".join(line + b"\n" for line in whole))
        self._file: TextIO = path.open("a", encoding="utf-8")
        if not whole:
            self._write(dict(about))

    def _read(self, path: pathlib.Path, lines: Sequence[bytes], about: Mapping[str, Any]) -> None:
        for number, line in enumerate(lines, 1):
            try:
                record = json.loads(line)
                if number == 1:
                    if record != about:
                        different = sorted(k for k in {*record, *about} if record.get(k) != about.get(k))
                        raise UserError(
                            f"{path} holds another run's answers ({', '.join(different)} differ): use another --out"
                        )
                    continue
                kind, values = record["output"]
                values = [tuple(value) if isinstance(value, list) else value for value in values]
                self._outputs[record["key"]] = _KINDS[kind](*values)
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise UserError(f"line {number} of {path} is no answer of gpt4jax.evaluate: {error!r}") from error

    def __contains__(self, name: str) -> bool:
        return name in self._outputs

    def __getitem__(self, name: str) -> Output | TooLong:
        return self._outputs[name]

    def __len__(self) -> int:
        return len(self._outputs)

    def put(self, name: str, output: Output | TooLong) -> None:
        """Keeps an output, on the disk before this returns (of the process; the machine may still lose it)."""
        self._outputs[name] = output
        self._write({"key": name, "output": [_NAMES[type(output)], list(output)]})

    def _write(self, record: dict[str, Any]) -> None:
        self._file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


def run(
    task: Task, items: Iterable[Item], ask: Ask, kept: Kept, told: Callable[[int, int, bool], None]
) -> list[Scored]:
    """What each item came to, in their order. `told(done, known, new)` hears of calls that are answered.

    Of those there were before and of each new one: how many, of how many that are known of so far.

    Items go stage by stage together, so that there is always enough to do at once. An item one of whose calls
    does not fit the context window has no outcome.
    """
    items = list(items)
    running = {i: task.solve(item) for i, item in enumerate(items)}
    ends: dict[int, Scored] = {}
    dropped, shots = dict.fromkeys(running, 0), dict.fromkeys(running, 0)
    sent: dict[int, list[Output]] = {}
    done = known = 0
    while running:
        stage: dict[int, Sequence[Call]] = {}
        for i, solve in running.items():
            try:
                stage[i] = solve.send(sent[i]) if i in sent else next(solve)
            except StopIteration as stop:
                ends[i] = Scored(items[i], stop.value, dropped=dropped[i], shots=shots[i])
        running = {i: running[i] for i in stage}
        calls = {key(call): call for asked in stage.values() for call in asked}
        missing = {name: call for name, call in calls.items() if name not in kept}
        known += len(calls)
        done += len(calls) - len(missing)
        told(done, known, False)
        names = list(missing)
        for number, output in ask(list(missing.values())):
            kept.put(names[number], output)
            done += 1
            told(done, known, True)
        for i, asked in stage.items():
            shots[i] = max([shots[i], *(len(call.shots) for call in asked)])
            outputs = [kept[key(call)] for call in asked]
            too_long = next((output for output in outputs if isinstance(output, TooLong)), None)
            if too_long:
                reason = f"{too_long.tokens} tokens do not fit the context window of {too_long.limit}"
                ends[i] = Scored(items[i], None, reason)
                running.pop(i).close()
                continue
            sent[i] = [output for output in outputs if not isinstance(output, TooLong)]
            dropped[i] = max([dropped[i], *(output.dropped for output in sent[i])])
    return [ends[i] for i in range(len(items))]


def sample(items: Sequence[Item], count: int | None) -> list[Item]:
    """`count` of the items (None: all), those that come first by a hash of their ids, in their own order."""
    if count is None or count >= len(items):
        return list(items)
    chosen = {item.id for item in sorted(items, key=hashed)[:count]}
    return [item for item in items if item.id in chosen]


def most_shots(task: Task, enough: int) -> int:
    """The most shots that any of a task's first calls has in front; looks no further once there are `enough`."""
    most = 0
    for item in task.items:
        solve = task.solve(item)
        most = max([most, *(len(call.shots) for call in next(solve))])
        solve.close()
        if most >= enough:
            break
    return most
