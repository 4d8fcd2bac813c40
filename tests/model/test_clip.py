"""CLIP's loss against float64 NumPy, values and gradients; the step on eight devices; ranks by brute force."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.model import clip, vision
from gpt4jax.model.vision import Images
from gpt4jax.model.vision_config import VisionConfig
from gpt4jax.parallel import mesh as meshes
from gpt4jax.parallel import partition
from gpt4jax.training import contrastive, optimizer
from gpt4jax.training.contrastive import PairBatch
from gpt4jax.training.state import new_state, state_shardings
from tests.conftest import GPT, perturbed

TOWER = VisionConfig("vit", 90, 4, 6, 1, 16, 2, 24, class_token=True, clip_dim=8)
CONFIG = model.Config(**(GPT | {"num_layers": 1, "dtype": "float64", "param_dtype": "float64"}), vision=TOWER)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def batch_of(rng: np.random.Generator, rows: int) -> PairBatch:
    patches = rng.integers(0, 256, (rows, 6, 48), np.uint8)
    ids = np.where(np.arange(6) < rng.integers(2, 7, rows)[:, None], 1, 0)
    row, column = np.divmod(np.arange(6), 3)
    place = (np.broadcast_to(a, (rows, 6)) for a in (row, column))
    images = Images(patches, ids, *place, np.ones((rows, 1), np.int32))
    return PairBatch(rng.integers(0, 80, (rows, 10)), rng.integers(3, 11, rows), images)


def numpy_loss(image, text, log_scale):
    """The formula, by rows and columns, in float64."""
    logits = np.exp(log_scale) * image @ text.T
    total = 0.0
    for matrix in (logits, logits.T):
        for i, row in enumerate(matrix):
            total -= row[i] - np.log(np.sum(np.exp(row - row.max()))) - row.max()
    return total / (2 * len(image))


def test_the_loss_and_its_gradients_are_the_formulas(x64):
    rng = np.random.default_rng(0)
    image, text = (a / np.linalg.norm(a, axis=-1, keepdims=True) for a in rng.normal(size=(2, 7, 5)))
    own = [jnp.asarray(a) for a in (image, text, np.log(14.0))]
    assert clip.contrastive_loss(*own) == pytest.approx(numpy_loss(image, text, np.log(14.0)), rel=1e-12)
    grads = jax.grad(clip.contrastive_loss, argnums=(0, 1, 2))(*own)
    for which, grad in enumerate(grads):
        for _ in range(5):  # along random directions, by central differences
            way = rng.normal(size=np.shape(own[which]))
            ends = []
            for sign in (1, -1):
                moved = [np.asarray(a) for a in own]
                moved[which] = moved[which] + sign * 1e-6 * way
                ends.append(numpy_loss(*moved))
            assert np.sum(np.asarray(grad) * way) == pytest.approx((ends[0] - ends[1]) / 2e-6, rel=1e-6, abs=1e-9)


def test_features_are_of_the_class_token_and_the_end_of_the_text(x64):
    rng = np.random.default_rng(1)
    params, batch = perturbed(CONFIG), batch_of(rng, 3)
    params["clip"]["image_de"] = jnp.asarray(rng.normal(size=(16, 8)))
    text = clip.text_features(CONFIG, params, batch.tokens_bt, batch.length_b)
    for i, length in enumerate(batch.length_b):
        x_btd, _ = model.features(CONFIG, params, batch.tokens_bt[i : i + 1, :length])
        y = np.asarray(x_btd[0, -1] @ params["clip"]["text_de"])
        np.testing.assert_allclose(text[i], y / np.linalg.norm(y), atol=1e-12)
    image = clip.image_features(CONFIG, params, batch.images)
    y = np.asarray(vision.pooled(CONFIG, params, batch.images) @ params["clip"]["image_de"])
    np.testing.assert_allclose(image, y / np.linalg.norm(y, axis=-1, keepdims=True), atol=1e-12)
    other = batch.images._replace(
        patches_bpc=np.where(batch.images.image_bp[..., None] > 0, batch.images.patches_bpc, 7)
    )
    np.testing.assert_array_equal(clip.image_features(CONFIG, params, other), image)  # padding leaves no trace


def test_eight_devices_take_the_step_of_one(x64):
    options = ml_collections.ConfigDict(
        dict(learning_rate=1e-2, schedule="warmup_cosine", warmup_steps=1, decay_steps=0, final_fraction=0.1, beta1=0.9,
             beta2=0.98, eps=1e-6, weight_decay=0.2, grad_clip_norm=1.0)
    )  # fmt: skip
    tx, schedule = optimizer.adamw(options, CONFIG, 9), optimizer.schedule(options, 9)
    batches = [batch_of(np.random.default_rng(seed), 16) for seed in range(3)]

    def run(sizes, devices):
        mesh = meshes.make_mesh(sizes, jax.devices()[:devices])
        shardings = state_shardings(CONFIG, tx, mesh)
        step = jax.jit(
            lambda state, batch: contrastive.train_step(CONFIG, tx, schedule, state, batch),
            in_shardings=(shardings, partition.batch_sharding(mesh)), out_shardings=(shardings, None),
        )  # fmt: skip
        losses = []
        with jax.set_mesh(mesh):
            state = jax.jit(lambda: new_state(CONFIG, tx, 0), out_shardings=shardings)()
            for batch in batches:
                state, scalars = step(state, batch)
                losses.append(float(scalars["loss"]))
        return losses, jax.device_get(state.params)

    one, eight = run(dict(data=1, fsdp=1, tensor=1), 1), run(dict(data=4, fsdp=2, tensor=1), 8)
    np.testing.assert_allclose(one[0], eight[0], rtol=1e-12)
    assert one[0][0] != one[0][2]
    # A key's bias has no gradient but rounding, and Adam makes steps of that.
    for group, values in one[1].items():
        for name, value in values.items():
            if name != "key_bias_kh":
                np.testing.assert_allclose(value, eight[1][group][name], atol=1e-9, err_msg=f"{group}/{name}")


def test_the_scale_never_passes_100():
    params = {"clip": {"log_scale": jnp.asarray(9.0), "image_de": jnp.ones(2)}, "embed": {}}
    assert float(jnp.exp(clip.clipped(params)["clip"]["log_scale"])) == pytest.approx(100, rel=1e-6)
    params["clip"]["log_scale"] = jnp.asarray(1.5)
    assert float(clip.clipped(params)["clip"]["log_scale"]) == 1.5


def test_ranks_are_counted():
    rng = np.random.default_rng(0)
    image, classes, labels = rng.normal(size=(50, 4)), rng.normal(size=(20, 4)), rng.integers(0, 20, 50)
    found = clip.ranks(jnp.asarray(image), jnp.asarray(classes), jnp.asarray(labels))
    similar = image.astype(np.float32) @ classes.astype(np.float32).T
    order = np.argsort(-similar, axis=1)
    np.testing.assert_array_equal(found, [list(order[i]).index(label) for i, label in enumerate(labels)])
    tied = clip.ranks(jnp.ones((1, 2)), jnp.ones((9, 2)), jnp.zeros(1, int))  # a model that knows nothing is no winner
    assert tied.tolist() == [4]


def test_what_does_not_fit_is_said():
    with pytest.raises(ValueError, match="needs vision.class_token"):
        dataclasses.replace(TOWER, class_token=False)
    plain = dataclasses.replace(CONFIG, vision=dataclasses.replace(TOWER, class_token=False, clip_dim=0))
    with pytest.raises(ValueError, match="one vector for an image needs"):
        vision.pooled(plain, {}, batch_of(np.random.default_rng(0), 1).images)
