"""All tasks by name."""

import pathlib
from collections.abc import Mapping, Sequence

from gpt4jax.errors import UserError
from gpt4jax.evals import bias_tasks, choice_tasks, generation_tasks, humaneval
from gpt4jax.evals.calls import Task

TASKS = {**choice_tasks.TASKS, **generation_tasks.TASKS, **bias_tasks.TASKS, **humaneval.TASKS}


def build(names: Sequence[str], places: Mapping[str, str], shots: int | None, cache_dir: pathlib.Path) -> list[Task]:
    """The tasks of some names, with the data that `places` gives for them, or that packages carry.

    `shots` None: as many as each task has by itself.

    Raises:
        UserError: a name that no task has, or data that can't be had.
    """
    unknown = sorted({*names, *places} - TASKS.keys())
    if unknown:
        raise UserError(f"there are no tasks {', '.join(unknown)}; there are {', '.join(sorted(TASKS))}")
    if unused := sorted(places.keys() - set(names)):
        raise UserError(f"--data gives data for {', '.join(unused)}, which --tasks does not name")
    built = []
    for name in dict.fromkeys(names):
        make, usual = TASKS[name]
        built.append(make(places.get(name, ""), usual if shots is None else shots, cache_dir))
    return built
