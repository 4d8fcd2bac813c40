"""The device's side of the engine: one model's parameters and its cache, in a fixed block of rows a device."""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding

from gpt4jax import model
from gpt4jax.inference import programs
from gpt4jax.inference.images import padded
from gpt4jax.inference.prepare import prepare
from gpt4jax.inference.programs import Drawn, Rows, Scores
from gpt4jax.model import axes
from gpt4jax.model.cached import CACHE_AXES, KeysValues
from gpt4jax.model.parameters import Params
from gpt4jax.model.vision import Embeddings, Images


class Chunk(NamedTuple):
    """Tokens of a prompt behind the first `length` in a row's cache, and what is to be scored (`programs.prefill`).

    With images, the embeddings (n, D) of the image tokens among them; either all chunks of a call have some, or none.
    """

    length: int
    tokens: np.ndarray
    targets: np.ndarray
    images: np.ndarray | None = None


class Pool:
    """Rows of a cache that are stepped together. Rows are numbered over all devices, part after part.

    Args:
        config, params: the decoder; params as `prepare` takes them.
        vocab_size: how many ids may be drawn.
        rows: of each part: of a device, or of the devices that split a row.
        length, append: tokens of each row, and how many at most are written past its end, as `init_cache` has them.
        mesh, weights, consume: as `prepare` has them.
    """

    def __init__(
        self,
        config: model.Config,
        params: Params,
        vocab_size: int,
        rows: int,
        length: int,
        append: int,
        *,
        mesh: Mesh | None = None,
        weights: str = "",
        consume: bool = False,
    ):
        self.config, self.vocab_size, self.mesh, self._weights = config, vocab_size, mesh, weights
        self.parts = 1 if mesh is None else int(np.prod([mesh.shape[axis] for axis in axes.RULES["act_batch"]]))
        self.rows = rows * self.parts
        with self.on_mesh():
            self.params = prepare(config, params, weights=weights, mesh=mesh, consume=consume)
            cache, seen = self.place(CACHE_AXES), self.place(("act_batch", "act_len"))
            empty = lambda: model.init_cache(config, self.rows, length, append=append).cache  # noqa: E731
            self.cache = jax.jit(empty, out_shardings=cache)()
            self._seen_bv = jax.jit(lambda: jnp.zeros((self.rows, config.vocab_size), bool), out_shardings=seen)()

    def update(self, params: Params) -> None:
        """Takes other parameters, which lie on the mesh or on one device as the first ones did."""
        with self.on_mesh():
            self.params = prepare(self.config, params, weights=self._weights, mesh=self.mesh)

    def part(self, row: int) -> int:
        """Which part of the cache a row belongs to."""
        return row * self.parts // self.rows

    def draw(self, rows: Rows) -> Drawn:
        """One token for every row (a pool of another kind: more), on the host."""
        with self.on_mesh():
            self.cache, self._seen_bv, drawn = programs.step(
                self.config, self.vocab_size, self.params, self.cache, self._seen_bv, rows
            )
        return jax.device_get(drawn)

    def read(self, chunks: Mapping[int, Chunk], size: int) -> dict[int, Scores]:
        """Reads a chunk of up to `size` tokens into each of some rows, at most one of each part.

        Gives their scores, on the host, if any are wanted.
        """
        row_b, length_b = self._each_part({row: chunk.length for row, chunk in chunks.items()})
        tokens_bt, targets_bt = np.zeros((self.parts, size), np.int32), np.full((self.parts, size), -1, np.int32)
        for row, chunk in chunks.items():
            tokens_bt[self.part(row), : len(chunk.tokens)] = chunk.tokens
            targets_bt[self.part(row), : len(chunk.targets)] = chunk.targets
        images = None
        if any(chunk.images is not None for chunk in chunks.values()):
            x_bed = np.zeros((self.parts, size, self.config.embed_dim), self.config.compute_dtype)
            for row, chunk in chunks.items():
                assert chunk.images is not None
                x_bed[self.part(row), : len(chunk.images)] = chunk.images
            images = Embeddings(x_bed)
        with self.on_mesh():
            self.cache, scores = programs.prefill(
                self.config, self.params, self.cache, row_b, length_b, tokens_bt, targets_bt, images
            )
        if (targets_bt < 0).all():
            return {}
        scores = jax.device_get(scores)
        return {row: Scores(*(leaf[self.part(row)] for leaf in scores)) for row in chunks}

    def embed(self, images: Images) -> np.ndarray:
        """The embeddings of one prompt's images, on the host: (E, D), of which the first are those of its tokens."""
        with self.on_mesh():
            return jax.device_get(programs.embed(self.config, self.params, padded(images)).x_bed[0])

    def read_block(self, row: int, start: int, size: int) -> tuple[KeysValues, ...]:
        """Keys and values of some of a row's tokens, on the host, stacked over the layers: (L, K, size, H)."""
        row_b, _ = self._each_part({row: start})
        with self.on_mesh():
            blocks = programs.read_block(self.cache, row_b, np.int32(start), size)
        return (jax.tree.map(lambda leaf: np.asarray(leaf)[self.part(row)].copy(), blocks),)

    def write_block(self, row: int, start: int, block: tuple[KeysValues, ...]) -> None:
        """Puts them into any row, the same bits."""
        row_b, start_b = self._each_part({row: start})
        with self.on_mesh():
            blocks = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (self.parts, *leaf.shape)), block[0])
            self.cache = programs.write_block(self.cache, row_b, start_b, blocks)

    def see(self, row: int, tokens: np.ndarray) -> None:
        """Sets the tokens of a row's text so far, for the repetition penalty."""
        seen_v = np.zeros(self.config.vocab_size, bool)
        seen_v[tokens] = True
        with self.on_mesh():
            self._seen_bv = programs.set_seen(self._seen_bv, np.int32(row), seen_v)

    def _each_part(self, values: Mapping[int, int]) -> tuple[np.ndarray, np.ndarray]:
        """Of each part: the row inside it that is meant, -1 for none, and its value."""
        row_b, value_b = np.full(self.parts, -1, np.int32), np.zeros(self.parts, np.int32)
        for row, value in values.items():
            row_b[self.part(row)], value_b[self.part(row)] = row % (self.rows // self.parts), value
        return row_b, value_b

    def on_mesh(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def place(self, names: tuple[str, ...]) -> jax.sharding.Sharding:
        if self.mesh is None:
            return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        return NamedSharding(self.mesh, axes.spec(names))
