"""One step of contrastive training, and zero-shot classification of held-out images by the names of classes."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from gpt4jax import model
from gpt4jax.data import pairs
from gpt4jax.data.tokenizer import Tokenizer
from gpt4jax.model import clip
from gpt4jax.model.parameters import Params
from gpt4jax.model.vision import Images
from gpt4jax.training.state import TrainState


class PairBatch(NamedTuple):
    """Texts (B, T) with their lengths, and an image to each."""

    tokens_bt: jax.Array
    length_b: jax.Array
    images: Images

    @classmethod
    def of(cls, arrays: Mapping[str, jax.Array]) -> "PairBatch":
        """From the loader's names, which carry no axes."""
        return cls(arrays["tokens"], arrays["length"], Images.of(arrays))


def loss(config: model.Config, params: Params, batch: PairBatch) -> jax.Array:
    """CLIP's loss of a batch, in nats: every image against every text of all devices together."""
    image_be = clip.image_features(config, params, batch.images)[:, 0]
    text_be = clip.text_features(config, params, batch.tokens_bt, batch.length_b)
    return clip.contrastive_loss(image_be, text_be, params["clip"]["log_scale"].astype(image_be.dtype))


def train_step(
    config: model.Config,
    optimizer: optax.GradientTransformation,
    schedule: optax.Schedule,
    state: TrainState,
    batch: PairBatch,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """One optimizer step, the scale clipped after it: the next state, and scalars."""
    nats, grads = jax.value_and_grad(lambda params: loss(config, params, batch))(state.params)
    updates, moments = optimizer.update(grads, state.moments, state.params)
    params = clip.clipped(optax.apply_updates(state.params, updates))
    pairs_b = jnp.asarray(len(batch.length_b))
    scalars = {
        "loss": nats,
        "targets": pairs_b,
        "tokens": jnp.sum(batch.length_b) + jnp.sum(batch.images.image_bp > 0),
        "bytes": jnp.zeros(()),
        "grad_norm": optax.tree.norm(grads),
        "learning_rate": jnp.asarray(schedule(state.step + 1)),
    }
    return TrainState(state.step + 1, params, moments), scalars


class ZeroShot(NamedTuple):
    """Held-out images, the number of each one's class, and the names of all classes."""

    pixels: Sequence[np.ndarray]
    labels: Sequence[int]
    names: Sequence[str]


def evaluation_of(
    config: model.Config, data: ZeroShot, prompts: Sequence[str], tokenizer: Tokenizer, seq_len: int, batch_size: int
) -> Callable[[Any, Any], dict[str, float] | None]:
    """A function of (params, stop) that names the held-out images: `eval/zero_shot/top_1` and `top_5`.

    Each class is the mean of its prompts' vectors, "{}" standing for its name. `eval/heldout/loss` is the loss of
    batches of held-out images with their names.
    """
    vision = config.vision
    assert vision is not None
    image_of = jax.jit(lambda params, images: clip.image_features(config, params, images)[:, 0])
    text_of = jax.jit(lambda params, tokens, length: clip.text_features(config, params, tokens, length))
    texts = [pairs.text_row(prompt.format(name), tokenizer, seq_len) for name in data.names for prompt in prompts]
    rows = [pairs.image_row(pixels, vision) for pixels in data.pixels]
    labels = np.asarray(data.labels)

    def run(params, stop) -> dict[str, float] | None:
        vectors = []
        for batch, count in _stacked(texts, batch_size):
            vectors.append(np.asarray(text_of(params, batch["tokens"], batch["length"]))[:count])
        class_ce = np.concatenate(vectors).reshape(len(data.names), len(prompts), -1).mean(1)
        class_ce /= np.linalg.norm(class_ce, axis=-1, keepdims=True)
        seen = []
        for batch, count in _stacked(rows, batch_size):
            if stop.poll():
                return None
            seen.append(np.asarray(image_of(params, Images.of(batch)))[:count])
        image_ne = np.concatenate(seen)
        rank_n = np.asarray(clip.ranks(jnp.asarray(image_ne), jnp.asarray(class_ce), jnp.asarray(labels)))
        scale = np.asarray(params["clip"]["log_scale"])
        shuffled = np.random.default_rng(0).permutation(len(image_ne))
        each = [
            float(clip.contrastive_loss(jnp.asarray(image_ne[i]), jnp.asarray(class_ce[labels[i]]), jnp.asarray(scale)))
            for i in np.array_split(shuffled, max(1, len(image_ne) // batch_size))
        ]
        return {
            "eval/heldout/loss": float(np.mean(each)),
            "eval/zero_shot/top_1": float(np.mean(rank_n < 1)),
            "eval/zero_shot/top_5": float(np.mean(rank_n < 5)),
            "eval/zero_shot/chance": 1 / len(data.names),
            "eval/zero_shot/scale": float(np.exp(scale)),
        }

    return run


def _stacked(rows: Sequence[Mapping[str, np.ndarray]], size: int) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """Batches of one size, and how many rows of each count: the last one is filled up with its last row."""
    for start in range(0, len(rows), size):
        some = list(rows[start : start + size])
        count = len(some)
        some += [some[-1]] * (size - count)
        yield {name: np.stack([row[name] for row in some]) for name in some[0]}, count
