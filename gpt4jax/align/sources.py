"""Where examples come from: files of the user's, the known world, what humans have scored, and made refusals."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from gpt4jax import files
from gpt4jax.align import examples, human_scored, rules, world
from gpt4jax.errors import UserError

NAMES = ("jsonl:PATH", "world:COUNT", "human_scored", "twins")


def rows(
    name: str, kind: str, seed: int, cache_dir: pathlib.Path, responses: int = 0
) -> Sequence[dict[str, Any]]:  # fmt: skip
    """The rows of a source, as `examples` has them.

    Args:
        name: one of `NAMES`. "human_scored" has comparisons, "twins" (prompts to refuse, and benign ones like them)
            prompts, and as demonstrations a refusal of each that is to be refused.
        kind: "demonstrations", "comparisons" or "prompts".
        seed: of what is drawn.
        cache_dir: where pinned packages are kept.
        responses: answers of a prompt, at most, of comparisons that are drawn or chosen.

    Raises:
        UserError: no such source, or what is wrong with a file.
    """
    source, _, rest = name.partition(":")
    if source == "jsonl" and rest:
        return examples.read(files.user_path(rest))
    if source == "world" and rest.isdecimal() and int(rest):
        if kind == "demonstrations":
            return world.demonstrations(int(rest), seed)
        if kind == "comparisons":
            return world.comparisons(int(rest), responses, seed)
        return [{"prompt": prompt} for prompt in world.PROMPTS]
    if name == "human_scored" and kind == "comparisons":
        scored = human_scored.comparisons(human_scored.load(cache_dir), most=responses)
        return [_held(_asked(row), human_scored.held_out(row["prompt"])) for row in scored]
    if name == "twins" and kind != "comparisons":
        return _twins(kind, seed)
    raise UserError(f"{kind} {name!r}: there is no such source; it must be one of {', '.join(NAMES)}")


def _asked(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row with its prompt as a message of the user's."""
    said = {name: value for name, value in row.items() if name != "prompt"}
    return {"messages": [{"role": "user", "content": row["prompt"]}], **said}


def _held(row: dict[str, Any], held_out: bool) -> dict[str, Any]:
    return {**row, "held_out": held_out}


def _twins(kind: str, seed: int) -> list[dict[str, Any]]:
    found = []
    for pair in rules.twins():
        held_out = rules.twins_held_out(pair)
        if kind == "demonstrations":
            (row,) = rules.demonstrations([(pair.disallowed, pair.kind)], seed)
            found.append(_held(row, held_out))
            continue
        for prompt, of_kind in ((pair.disallowed, pair.kind), (pair.allowed, "benign")):
            found.append(_held(_asked({"prompt": prompt, "kind": of_kind}), held_out))
    return found
