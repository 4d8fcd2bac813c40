"""Where examples come from: files of the user's, and the known world."""

from collections.abc import Sequence
from typing import Any

from gpt4jax import files
from gpt4jax.align import examples, world
from gpt4jax.errors import UserError

NAMES = ("jsonl:PATH", "world:COUNT")


def rows(name: str, kind: str, seed: int, responses: int = 0) -> Sequence[dict[str, Any]]:
    """The rows of a source, as `examples` has them.

    Args:
        name: one of `NAMES`.
        kind: "demonstrations", "comparisons" or "prompts".
        seed: of what is drawn.
        responses: answers of a prompt, of comparisons that are drawn.

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
    raise UserError(f"{kind} {name!r}: there is no such source; it must be one of {', '.join(NAMES)}")
