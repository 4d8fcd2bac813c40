"""Attention masks as functions of positions: which keys a query may see.

A mask answers elementwise and broadcasts: `mask(q_pos, k_pos) -> bool`. Positions count within a
document; that two tokens belong to the same document is asked separately (segment ids, which are data
and not a pattern). `&` and `|` combine masks. None but `causal` is causal by itself.
"""

import dataclasses

import jax


class Mask:
    """A pattern of query and key positions. `causal` says that it shows no key after the query."""

    causal = False

    def __call__(self, q_pos: jax.Array, k_pos: jax.Array) -> jax.Array:
        """Whether the query sees the key, for integer positions that broadcast against each other."""
        raise NotImplementedError(f"{type(self).__name__} does not say which keys it shows")

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, other)

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, other)


@dataclasses.dataclass(frozen=True)
class And(Mask):
    """Both masks show the key."""

    left: Mask
    right: Mask

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return self.left.causal or self.right.causal

    def __call__(self, q_pos, k_pos):
        return self.left(q_pos, k_pos) & self.right(q_pos, k_pos)


@dataclasses.dataclass(frozen=True)
class Or(Mask):
    """At least one of the masks shows the key."""

    left: Mask
    right: Mask

    @property
    def causal(self) -> bool:  # type: ignore[override]
        return self.left.causal and self.right.causal

    def __call__(self, q_pos, k_pos):
        return self.left(q_pos, k_pos) | self.right(q_pos, k_pos)


@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """The key does not come after the query."""

    causal = True

    def __call__(self, q_pos, k_pos):
        return k_pos <= q_pos


@dataclasses.dataclass(frozen=True)
class Banded(Mask):
    """The key lies less than `window` positions before the query (or anywhere after it)."""

    window: int

    def __call__(self, q_pos, k_pos):
        return q_pos - k_pos < self.window


def causal() -> Mask:
    """K <= q."""
    return Causal()


def banded(window: int) -> Mask:
    """Q - k < window."""
    return Banded(window)


INDUCTION = "induction"  # the one pattern that asks for tokens too: see `attention.Where`


def from_pattern(pattern: str) -> Mask:
    """The mask of a layer, from its name in `config.model.attention`: "dense", "induction" or "banded:WINDOW".

    Of "induction" it is what positions decide: that the key does not come after the query.

    Raises:
        ValueError: a name that is no pattern.
    """
    if pattern in ("dense", INDUCTION):
        return causal()
    name, _, argument = pattern.partition(":")
    if name == "banded" and argument.isdecimal() and int(argument) > 0:
        return causal() & banded(int(argument))
    raise ValueError(
        f"model.attention has {pattern!r}; a pattern is 'dense', 'induction' or 'banded:WINDOW' (such as 'banded:256')"
    )
