"""Text data: corpora, tokenizers, packing and the rows of a step."""

from typing import Protocol, TypeVar

Item = TypeVar("Item", covariant=True)


class RandomAccess(Protocol[Item]):
    """Anything with a length that gives an item by its index: a list, a file of records, packed rows."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Item: ...


def is_utf8(data: bytes) -> bool:
    """Whether the bytes are text."""
    try:
        data.decode()
    except UnicodeDecodeError:
        return False
    return True
