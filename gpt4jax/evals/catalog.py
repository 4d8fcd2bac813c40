"""All tasks by name."""

import pathlib
from collections.abc import Mapping, Sequence

from gpt4jax.errors import UserError
from gpt4jax.evals import bias_tasks, choice_tasks, exam_tasks, generation_tasks, humaneval, oai_tasks
from gpt4jax.evals.calls import Task

TASKS = {
    **choice_tasks.TASKS, **exam_tasks.TASKS, **generation_tasks.TASKS, **bias_tasks.TASKS, **humaneval.TASKS,
}  # fmt: skip


OPENAI = "oai:"  # in front of the name of an eval, or of a set of evals


def check(names: Sequence[str], places: Mapping[str, str]) -> None:
    """Whether there are such tasks, before a model is loaded for them.

    Raises:
        UserError: a name that no task has, or data for a task that is not asked for.
    """
    unknown = sorted({name for name in (*names, *places) if not name.startswith(OPENAI)} - TASKS.keys())
    if unknown:
        raise UserError(
            f"there are no tasks {', '.join(unknown)}; there are {', '.join(sorted(TASKS))}, and {OPENAI}NAME of "
            "OpenAI Evals"
        )
    if unused := sorted(places.keys() - set(names)):
        raise UserError(f"--data gives data for {', '.join(unused)}, which --tasks does not name")


def build(
    names: Sequence[str],
    places: Mapping[str, str],
    shots: int | None,
    cache_dir: pathlib.Path,
    *,
    registry: str = "",
    as_text: bool = False,
) -> list[Task]:
    """The tasks of some names, with the data that `places` gives for them, or that packages carry.

    `shots` None: as many as each task has by itself. Names that begin with "oai:" are of OpenAI Evals, in the folder
    `registry`, or ("") in the pinned package; `as_text` as `oai_tasks.task` has it.

    Raises:
        UserError: as `check` does; or data that can't be had.
    """
    check(names, places)
    built = []
    for name in dict.fromkeys(name for name in names if not name.startswith(OPENAI)):
        make, usual = TASKS[name]
        built.append(make(places.get(name, ""), usual if shots is None else shots, cache_dir))
    theirs = [name.removeprefix(OPENAI) for name in names if name.startswith(OPENAI)]
    return built + (oai_tasks.build(theirs, registry, as_text, cache_dir) if theirs else [])
