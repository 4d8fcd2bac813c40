"""Names of attention patterns, as `model.attention` cycles them over the layers, and the masks they stand for."""

from collections.abc import Callable

from gpt4jax.model import masks
from gpt4jax.model.masks import Mask

INDUCTION = "induction"  # the one pattern that asks for tokens too: see `arrangement.Where`

KINDS = """
    dense            every key before the query
    banded:W         the last W keys
    strided:L        the last L keys, and every L-th before (Child et al. 2019: both of its heads merged)
    column:L         every L-th key alone
    fixed:L:C        the query's block of L, and the last C keys of every block before; head i: its i-th last C keys
    block:L          the query's block alone
    summary:L:C      the summaries alone, those of the query's block too; a query before the first sees nothing
    induction        what followed earlier copies of the query's token
    A|B              the keys of both ("merged heads")
    A/B              pattern A on the first key/value head, B on the second, A on the third... ("multi-head")
"""

_PIECES: dict[str, tuple[int, Callable[..., Mask]]] = {
    "dense": (0, lambda head: masks.full()),
    "banded": (1, lambda head, window: masks.banded(window)),
    "strided": (1, lambda head, stride: masks.banded(stride) | masks.strided(stride)),
    "column": (1, lambda head, stride: masks.strided(stride)),
    "fixed": (2, lambda head, stride, count: masks.fixed(stride, count, head % max(stride // count, 1))),
    "block": (1, lambda head, stride: masks.same_block(stride)),
    "summary": (2, lambda head, stride, count: masks.summary(stride, count, head % max(stride // count, 1))),
}


def from_pattern(pattern: str, heads: int) -> tuple[Mask, ...]:
    """The mask of each of a layer's key/value heads, from the layer's pattern (`KINDS`).

    Of "induction" it is what positions decide: that the key does not come after the query.

    Raises:
        ValueError: a name that is no pattern, or numbers that do not fit together.
    """
    if pattern == INDUCTION:
        return (masks.causal(),) * heads
    names = pattern.split("/")
    if len(names) > heads:
        raise ValueError(f"model.attention has {pattern!r} for {len(names)} heads; there are {heads} key/value heads")
    return tuple(_merged(pattern, names[head % len(names)], head) for head in range(heads))


def longest(pattern: str) -> int:
    """The largest window or stride that a pattern names; 0 for none."""
    pieces = [piece.split(":") for name in pattern.split("/") for piece in name.split("|")]
    return max((int(numbers[0]) for _, *numbers in pieces if numbers), default=0)


def _merged(pattern: str, name: str, head: int) -> Mask:
    pieces = [_piece(pattern, piece, head) for piece in name.split("|")]
    merged = pieces[0]
    for piece in pieces[1:]:
        merged = merged | piece
    return masks.causal() if merged == masks.full() else masks.causal() & merged


def _piece(pattern: str, piece: str, head: int) -> Mask:
    name, *numbers = piece.split(":")
    count, make = _PIECES.get(name, (-1, masks.full))
    if len(numbers) != count or not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise ValueError(
            f"model.attention has {pattern!r}; a pattern is 'dense', 'banded:WINDOW', 'strided:STRIDE', "
            "'fixed:STRIDE:SUMMARY', 'column:STRIDE', 'block:STRIDE', 'summary:STRIDE:SUMMARY', two or more of these "
            "merged with '|' or spread over heads with '/', or 'induction' (such as 'banded:256')"
        )
    try:
        return make(head, *map(int, numbers))
    except ValueError as error:
        raise ValueError(f"model.attention has {pattern!r}: {error}") from error
