"""Values of a file's fields, checked."""

from typing import Any

from gpt4jax.errors import UserError

_KINDS = {int: "a whole number above 0", float: "a finite number from 0", bool: "true or false"}


def checked(value: Any, kind: type, what: str) -> Any:
    """A value of that kind: an int above 0, a finite float from 0 (an int serves too), or a bool; of 32 bits.

    Raises:
        UserError: it is not; `what` says where it stands.
    """
    if kind is bool:
        fits = isinstance(value, bool)
    else:
        fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        fits = fits and (1 <= value < 2**31 if kind is int else 0 <= value < 1e38)
    if not fits:
        raise UserError(f"{what} is {value!r}, not {_KINDS[kind]}")
    return value
