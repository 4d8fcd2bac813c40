"""Keys and values of prompts' beginnings, kept on the host for the next prompt that begins the same way."""

import hashlib
import itertools
from collections import OrderedDict

import jax
import numpy as np

from gpt4jax.model.cached import KeysValues

Block = tuple[KeysValues, ...]  # of each model, on the host


class PrefixCache:
    """Blocks of `size` tokens by all tokens up to their end; the least recently used are dropped first.

    A block holds exactly the bits that prefilling made, so that a prompt which finds it goes on as if it had
    been computed.
    """

    def __init__(self, size: int, max_bytes: int):
        self.size, self.max_bytes = size, max_bytes
        self._blocks: OrderedDict[bytes, Block] = OrderedDict()
        self._bytes = 0

    def find(self, tokens: np.ndarray, limit: int) -> list[Block]:
        """The blocks of the longest known beginning of `tokens`, no more than `limit` of them."""
        keys = list(itertools.takewhile(self._blocks.__contains__, self._keys(tokens)[:limit]))
        self._touch(keys)
        return [self._blocks[key] for key in keys]

    def wants(self, tokens: np.ndarray) -> bool:
        """Whether the last whole block of `tokens` is not yet there."""
        keys = self._keys(tokens)
        return bool(self.max_bytes and keys) and keys[-1] not in self._blocks

    def put(self, tokens: np.ndarray, block: Block) -> None:
        """Keeps the last whole block of `tokens`, where `wants` says so."""
        keys = self._keys(tokens)
        self._blocks[keys[-1]] = block
        self._touch(keys)
        self._bytes += _bytes(block)
        while self._bytes > self.max_bytes:
            self._bytes -= _bytes(self._blocks.popitem(last=False)[1])

    def _touch(self, keys: list[bytes]) -> None:
        """A block is of no use without those before it: they are dropped after it."""
        for key in reversed(keys):
            if key in self._blocks:
                self._blocks.move_to_end(key)

    def _keys(self, tokens: np.ndarray) -> list[bytes]:
        keys, key = [], b""
        for end in range(self.size, len(tokens) + 1, self.size):
            key = hashlib.sha256(key + tokens[end - self.size : end].tobytes()).digest()
            keys.append(key)
        return keys


def _bytes(block: Block) -> int:
    return sum(array.nbytes for array in jax.tree.leaves(block))
