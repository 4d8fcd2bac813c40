"""1,000 random documents of texts and images, packed into rows and alone: `python -m tests.bench.interleaved`.

For each frontend the largest difference of a logit, relative to the largest logit, in float32 and in float64; then the
padding of a mixed stream, and of how many shapes its batches are.
"""

import argparse
import dataclasses
import io

import jax
import numpy as np
from PIL import Image

from gpt4jax import model
from gpt4jax.data import tokenizer
from gpt4jax.data.interleaved import Document, InterleavedRows, Picture, Room, Text
from gpt4jax.model.parameters import tree
from gpt4jax.model.vision import Images
from gpt4jax.model.vision_config import VisionConfig

TOK = tokenizer.with_images(tokenizer.from_bytes())
PATCH = TOK.special[tokenizer.PATCH]
ROOM = Room(256, 192, 24)
FRONTENDS = {
    "linear": VisionConfig("linear", PATCH, 4, 16),
    "vit": VisionConfig("vit", PATCH, 4, 16, 2, 24, 3, 40),
    "resampler": VisionConfig("resampler", PATCH, 4, 16, 2, 24, 3, 40, resampler_len=4),
}


def document(rng: np.random.Generator, number: int) -> Document:
    """Up to six texts and images in any order."""
    parts: list[Text | Picture] = []
    for _ in range(rng.integers(1, 7)):
        if rng.random() < 0.5:
            parts.append(Text("".join(rng.choice(list("abcdefg "), rng.integers(1, 30)))))
            continue
        rows = int(rng.integers(1, 5))
        pixels = rng.integers(0, 256, (4 * rows, 4 * int(rng.integers(1, 16 // rows + 1)), 3), np.uint8)
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG")
        parts.append(Picture(out.getvalue()))
    return Document(f"document {number}", tuple(parts))


def config_of(frontend: str, dtype: str) -> model.Config:
    """A small decoder with weights that are far from zero."""
    return model.Config(
        vocab_size=260, num_layers=2, embed_dim=32, num_heads=4, num_kv_heads=2, head_dim=8, mlp_dim=64,
        max_seq_len=256, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, init_std=0.3,
        dtype=dtype, param_dtype=dtype, vision=FRONTENDS[frontend],
    )  # fmt: skip


def drawn(config: model.Config):
    """Parameters with noise on all of them."""
    rng = np.random.default_rng(0)
    return tree(config, lambda row: (row.fill + rng.normal(0, max(row.std, 0.1), row.shape)).astype(config.param_dtype))


def segments(rows: InterleavedRows, config: model.Config, params) -> dict[bytes, np.ndarray]:
    """The logits of each piece of a document, by its tokens, its place in it and its patches."""
    apply = jax.jit(model.apply, static_argnums=0)
    found = {}
    for index in range(len(rows)):
        row = rows[index]
        logits = np.asarray(
            apply(
                config, params, row["tokens"][None], segment_ids_bt=row["segment_ids"][None],
                positions_bt=row["positions"][None], images=jax.tree.map(lambda a: a[None], Images.of(row)),
            )
        )[0]  # fmt: skip
        first = 0
        for segment in range(1, row["segment_ids"].max() + 1):
            here = row["segment_ids"] == segment
            ids = row["tokens"][here]
            images = int((ids == TOK.special[tokenizer.IMAGE]).sum())
            own = (row["image"] > first) & (row["image"] <= first + images)
            first += images
            found[ids.tobytes() + row["targets"][here].tobytes() + row["patches"][own].tobytes()] = logits[here]
    return found


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--documents", type=int, default=1000)
    flags = parser.parse_args()
    jax.config.update("jax_enable_x64", True)
    documents = [document(np.random.default_rng((0, i)), i) for i in range(flags.documents)]
    for name, vision in FRONTENDS.items():
        packed = InterleavedRows(documents, TOK, vision, ROOM)
        alone = [InterleavedRows([one], TOK, vision, ROOM) for one in documents]
        for dtype in ("float32", "float64"):
            config = dataclasses.replace(config_of(name, dtype), layers="unroll")
            params = drawn(config)
            ours = segments(packed, config, params)
            worst, compared = 0.0, 0
            for rows in alone:
                for key, logits in segments(rows, config, params).items():
                    worst = max(worst, float(np.abs(ours[key] - logits).max() / np.abs(logits).max()))
                    compared += 1
            print(
                f"{name} {dtype}: {compared} pieces of {flags.documents} documents, largest difference {worst:.1e}",
                flush=True,
            )
        print(f"{name}: {len(packed)} rows, {packed.padding:.2%} padding", flush=True)
    words = [
        Document(f"text {i}", (Text("x" * int(np.random.default_rng((1, i)).integers(1, 700))),)) for i in range(1000)
    ]
    mixed = InterleavedRows([*documents, *words], TOK, FRONTENDS["linear"], Room(512, 384, 48))
    shapes = {tuple((name, array.shape) for name, array in mixed[i].items()) for i in range(len(mixed))}
    print(f"mixed with as many texts: {mixed.padding:.2%} padding, batches of {len(shapes)} shape", flush=True)


if __name__ == "__main__":
    main()
