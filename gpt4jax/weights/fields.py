"""Values of a file's fields, checked."""

import math
from typing import Any

from gpt4jax.errors import UserError

_KINDS = {int: "a whole number above 0", float: "a finite number from 0", bool: "true or false"}


def checked(value: Any, kind: type, what: str) -> Any:
    """A value of that kind: an int above 0, a finite float from 0 (an int serves too), or a bool.

    Raises:
        UserError: it is not; `what` says where it stands.
    """
    if kind is bool:
        fits = isinstance(value, bool)
    else:
        fits = isinstance(value, int if kind is int else int | float) and not isinstance(value, bool)
        fits = fits and (value >= 1 if kind is int else math.isfinite(value) and value >= 0)
    if not fits:
        raise UserError(f"{what} is {value!r}, not {_KINDS[kind]}")
    return value
