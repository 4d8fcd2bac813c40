"""Image frontends: patches, CLIP's and Idefics' parts as `transformers` has them, packing, leakage, caches."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.model import vision
from gpt4jax.model.parameters import VISION_GROUPS, count, table
from gpt4jax.model.vision import Images, patchify, unpatchify
from gpt4jax.model.vision_config import VisionConfig
from tests.conftest import LLAMA, SHAPES, perturbed

RECORDED = np.load(pathlib.Path(__file__).parents[1] / "fixtures" / "vision.npz")  # by tests/bench/record_vision.py
PATCH, IMAGE_TOKEN, LONGEST = 4, 90, 6
BEGIN, END = IMAGE_TOKEN - 1, IMAGE_TOKEN + 1
FRONTENDS = {
    "linear": VisionConfig("linear", IMAGE_TOKEN, PATCH, LONGEST),
    "vit": VisionConfig("vit", IMAGE_TOKEN, PATCH, LONGEST, 2, 24, 3, 40),
    "resampler": VisionConfig("resampler", IMAGE_TOKEN, PATCH, LONGEST, 2, 24, 3, 40, resampler_len=3),
}


def decoder(frontend: str, shape: str = "llama", **fields) -> model.Config:
    return model.Config(**(SHAPES[shape] | {"max_seq_len": 64} | fields), vision=FRONTENDS[frontend])


def random_document(rng: np.random.Generator, config: model.Config, most: int = 30):
    """Tokens of texts and images in any order, and the images as (patches, rows, columns)."""
    tokens: list[int] = []
    images = []
    for _ in range(rng.integers(1, 5)):
        if rng.random() < 0.5:
            tokens += rng.integers(0, BEGIN, rng.integers(1, 6)).tolist()
            continue
        rows = int(rng.integers(1, 4))
        columns = int(rng.integers(1, LONGEST // rows + 1))
        block = [BEGIN, *[IMAGE_TOKEN] * config.vision.image_len(rows * columns), END]
        if len(tokens) + len(block) > most:
            break
        tokens += block
        images.append((rng.integers(0, 256, (rows * columns, 3 * PATCH**2), np.uint8), rows, columns))
    return (tokens or [1])[:most], images


def row_of(documents, length: int, patches: int, most: int):
    """Documents packed into one row by hand: the arguments of `model.apply`."""
    tokens, segments, positions = np.zeros((3, length), np.int32)
    values = np.zeros((patches, 3 * PATCH**2), np.uint8)
    image, row, column = np.zeros((3, patches), np.int32)
    at = first = number = 0
    for segment, (ids, images) in enumerate(documents, 1):
        here = slice(at, at + len(ids))
        tokens[here], segments[here], positions[here] = ids, segment, np.arange(len(ids))
        at += len(ids)
        for patch, rows, columns in images:
            number += 1
            there = slice(first, first + len(patch))
            values[there], image[there] = patch, number
            row[there], column[there] = np.repeat(np.arange(rows), columns), np.tile(np.arange(columns), rows)
            first += len(patch)
    ids = np.where(np.arange(most) < number, np.arange(1, most + 1), 0)
    return tokens, segments, positions, Images(values, image, row, column, ids)


def logits(config, params, rows):
    tokens, segments, positions, images = (
        jax.tree.map(lambda *a: np.stack(a), *part) for part in zip(*rows, strict=True)
    )
    run = jax.jit(model.apply, static_argnums=0)
    return np.asarray(run(config, params, tokens, segment_ids_bt=segments, positions_bt=positions, images=images))


def test_patches_of_a_thousand_sizes_come_back_to_the_pixel():
    rng = np.random.default_rng(0)
    for _ in range(1000):
        patch, rows, columns, channels = (int(n) for n in rng.integers(1, (17, 12, 12, 5)))
        image = rng.integers(0, 256, (rows * patch, columns * patch, channels), np.uint8)
        cut = patchify(image, patch)
        r, c = int(rng.integers(rows)), int(rng.integers(columns))  # and each patch is what it says
        own = image[r * patch : (r + 1) * patch, c * patch : (c + 1) * patch]
        np.testing.assert_array_equal(cut[r * columns + c], own.ravel())
        np.testing.assert_array_equal(unpatchify(cut, rows, columns, patch), image)
    with pytest.raises(ValueError, match="not made of whole patches of 4 x 4"):
        patchify(np.zeros((8, 9, 3)), 4)
    with pytest.raises(ValueError, match="do not fill a grid of 2 x 2"):
        unpatchify(np.zeros((3, 48)), 2, 2, 4)


def of_clip(config: model.Config):
    """CLIP's weights as the groups of our tower."""
    w = {key.partition("/")[2]: RECORDED[key] for key in RECORDED if key.startswith("clip/")}
    d, n = config.vision.embed_dim, config.vision.num_heads

    def layers(name, shape=None):
        each = [w[f"encoder.layers.{i}.{name}"] for i in range(config.vision.num_layers)]
        return np.stack([one.T.reshape(shape) if shape else one for one in each])

    heads = {"query": "q", "key": "k", "value": "v"}
    letters = {"query": "n", "key": "k", "value": "k"}
    tower = {
        f"{name}_d{letters[name]}h": layers(f"self_attn.{x}_proj.weight", (d, n, d // n)) for name, x in heads.items()
    }
    for name, x in heads.items():
        tower[f"{name}_bias_{letters[name]}h"] = layers(f"self_attn.{x}_proj.bias").reshape(-1, n, d // n)
    tower |= {
        "out_nhd": layers("self_attn.out_proj.weight", (n, d // n, d)),
        "out_bias_d": layers("self_attn.out_proj.bias"),
    }
    for ours, theirs in (("up", "fc1"), ("down", "fc2")):
        kernel = layers(f"mlp.{theirs}.weight").swapaxes(1, 2)
        tower |= {f"{ours}_{'df' if ours == 'up' else 'fd'}": kernel}
        tower |= {f"{ours}_bias_{'f' if ours == 'up' else 'd'}": layers(f"mlp.{theirs}.bias")}
    for ours, theirs in (("attention_norm", "layer_norm1"), ("mlp_norm", "layer_norm2")):
        tower |= {f"{ours}_d": layers(f"{theirs}.weight"), f"{ours}_bias_d": layers(f"{theirs}.bias")}
    pixels = w["embeddings.patch_embedding.weight"].transpose(2, 3, 1, 0).reshape(-1, d)
    whole = w["embeddings.class_embedding"] + w["embeddings.position_embedding.weight"][0]
    outer = {
        "patch_cd": pixels,
        "patch_bias_d": np.zeros(d),
        "row_td": w["row"],
        "column_td": w["column"],
        "class_d": whole,
    }
    for ours, theirs in (("pre_norm", "pre_layrnorm"), ("norm", "post_layernorm")):
        outer |= {f"{ours}_d": w[f"{theirs}.weight"], f"{ours}_bias_d": w[f"{theirs}.bias"]}
    return {"vision": outer, "vision_layers": tower}, w


def test_the_vit_is_clips_tower_for_images_alone_and_packed_into_one_row():
    tower = VisionConfig(
        "vit", IMAGE_TOKEN, 4, 9, 2, 24, 3, 40, activation="quick_gelu", class_token=True, patch_norm=False
    )
    config = model.Config(**LLAMA, vision=tower)
    params, w = of_clip(config)
    wanted = {row.name: row.shape for row in table(config) if row.group in params}
    own = {name: np.shape(value) for group in params.values() for name, value in group.items()}
    assert {**wanted, "row_td": (3, 24), "column_td": (3, 24)} == own  # theirs has places for 3 x 3 patches, no more
    patches = np.stack([patchify(image.transpose(1, 2, 0), 4) for image in w["pixels"]])
    place = np.divmod(np.arange(9), 3)
    alone = Images(
        patches, np.ones((2, 9), int), *np.broadcast_to(place, (2, 2, 9)).swapaxes(0, 1), np.ones((2, 1), int)
    )
    packed = Images(
        patches.reshape(1, 18, -1),
        np.repeat([[1, 2]], 9, axis=1),
        *(np.tile(p, 2)[None] for p in place),
        np.array([[1, 2]]),
    )
    params = jax.tree.map(jnp.asarray, params)
    for images, shape in ((alone, (2, 9, 24)), (packed, (2, 9, 24))):
        x_bpd = vision._patches(config, tower, params["vision"], images)
        last, whole = vision.encode(config, params, x_bpd, images)
        np.testing.assert_allclose(last.reshape(shape), w["last"][:, 1:], atol=1e-5)
        np.testing.assert_allclose(whole.reshape(2, 24), w["last"][:, 0], atol=1e-5)
        np.testing.assert_allclose(vision.pooled(config, params, images).reshape(2, 24), w["pooled"], atol=1e-5)


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def test_normalised_patches_against_numpy_and_an_even_grey_is_not_lost(x64):
    """Dual PatchNorm with the mean and the contrast beside it, in float64; two even greys come out apart."""
    own = VisionConfig("linear", IMAGE_TOKEN, 4, 9)
    config = model.Config(**LLAMA | {"dtype": "float64", "param_dtype": "float64"}, vision=own)
    p = perturbed(config)["vision"]
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (2, 5, 48)).astype(np.uint8)
    pixels[0, 0], pixels[0, 1] = 90, 200
    place = np.tile(np.arange(5), (2, 1))
    found = vision._patches(
        config, own, p, Images(pixels, np.ones((2, 5), int), place, place[:, ::-1], np.ones((2, 1)))
    )
    x = pixels / 127.5 - 1
    mean = x.mean(-1, keepdims=True)
    contrast = np.sqrt(x.var(-1, keepdims=True) + 0.05**2)
    w = {name: np.asarray(value, np.float64) for name, value in p.items()}
    y = (x - mean) / contrast @ w["patch_cd"] + w["patch_bias_d"] + np.concatenate([mean, contrast], -1) @ w["level_cd"]
    y = y / np.sqrt(np.mean(y**2, -1, keepdims=True) + config.norm_eps) * w["patch_norm_d"]
    np.testing.assert_allclose(found, y + w["row_td"][place] + w["column_td"][place[:, ::-1]], rtol=1e-10, atol=1e-12)
    assert np.abs(y[0, 0] - y[0, 1]).max() > 1e-3


def test_the_resampler_is_idefics_perceiver():
    w = {key.partition("/")[2]: RECORDED[key] for key in RECORDED if key.startswith("perceiver/")}
    own = VisionConfig("resampler", IMAGE_TOKEN, 4, 9, 2, 24, 3, 40, resampler_layers=2, resampler_len=4)
    config = model.Config(**LLAMA, vision=own)

    def layers(name, shape=None):
        each = [w[f"blocks.{i}.{name}"] for i in range(2)]
        return np.stack([one.T.reshape(shape) if shape else one for one in each])

    names = {"context_norm": "0.context_layer_norm", "attention_norm": "0.latents_layer_norm", "mlp_norm": "1.ln"}
    group = {f"{ours}_d": layers(f"{theirs}.weight") for ours, theirs in names.items()}
    group |= {f"{ours}_bias_d": layers(f"{theirs}.bias") for ours, theirs in names.items()}
    group |= {f"{name}_dnh": layers(f"0.{name[0]}_proj.weight", (24, 3, 8)) for name in ("query", "key", "value")}
    group |= {"out_nhd": layers("0.output_proj.weight", (3, 8, 24))}
    group |= {"up_df": layers("1.fc.weight", (24, 96)), "down_fd": layers("1.c_proj.weight", (96, 24))}
    norm = {"norm_d": w["layer_norm.weight"], "norm_bias_d": w["layer_norm.bias"]}
    params = jax.tree.map(jnp.asarray, {"resampler": {"latent_td": w["latents"], **norm}, "resampler_layers": group})
    wanted = {row.name: row.shape for row in table(config) if row.group == "resampler_layers"}
    assert wanted == {name: value.shape for name, value in group.items()}
    context, nowhere = w["context"], np.zeros((1, 27), int)
    # Two images in a row that has room for three, and patches for three.
    values = np.concatenate([context.reshape(1, 18, 24), np.ones((1, 9, 24))], axis=1).astype(np.float32)
    images = Images(values, np.r_[[1] * 9, [2] * 9, [0] * 9][None], nowhere, nowhere, np.array([[1, 2, 0]]))
    found = vision.resample(config, params, jnp.asarray(values), images).reshape(3, 4, 24)
    np.testing.assert_allclose(found[:2], w["latents_out"], atol=1e-5)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_packed_rows_give_the_logits_of_documents_alone(frontend):
    """A sample of `python -m tests.bench.interleaved`, which has 1,000 documents."""
    config = decoder(frontend, "llama" if frontend == "vit" else "gpt")
    params, rng = perturbed(config), np.random.default_rng(0)
    for _ in range(2):
        documents = [random_document(rng, config, 20) for _ in range(3)]
        (packed,) = logits(config, params, [row_of(documents, 64, 40, 8)])
        alone = logits(config, params, [row_of([document], 64, 40, 8) for document in documents])
        at = 0
        for document, own in zip(documents, alone, strict=True):
            length = len(document[0])
            np.testing.assert_allclose(packed[at : at + length], own[:length], atol=2e-5 * np.abs(own).max())
            at += length
        assert any(images for _, images in documents)


@pytest.mark.parametrize("frontend", FRONTENDS)
def test_no_trace_of_other_documents_and_later_images(frontend):
    config = decoder(frontend)
    params, rng = perturbed(config), np.random.default_rng(1)
    values = lambda n: rng.integers(0, 256, (n, 3 * PATCH**2), np.uint8)  # noqa: E731
    block = [BEGIN, *[IMAGE_TOKEN] * config.vision.image_len(6), END]
    first = ([3, *block, 4], [(values(6), 2, 3)])
    second = ([5, *block, 6, 7, *block, 8], [(values(6), 2, 3), (values(6), 3, 2)])
    changed = (second[0], [second[1][0], (values(6), 3, 2)])
    other = ([9, *block, 4], [(values(6), 2, 3)])
    base, later, before = logits(
        config, params, [row_of(row, 64, 40, 8) for row in ([first, second], [first, changed], [other, second])]
    )
    start = len(first[0])
    image = start + 1 + len(block) + 2  # where the second document's second image begins
    np.testing.assert_array_equal(base[: image + 1], later[: image + 1])
    assert np.abs(base[image + 1] - later[image + 1]).max() > 1e-3  # its first patch sees all of it
    np.testing.assert_array_equal(base[start:], before[start:])
    assert np.abs(base[2] - before[2]).max() > 1e-3


@pytest.mark.parametrize("attention", ["dense", "banded:5"])
def test_with_a_cache_an_image_is_read_as_without(attention):
    config = decoder("vit", attention=(attention, "dense"), max_seq_len=64)
    params, rng = perturbed(config), np.random.default_rng(2)
    images = [(rng.integers(0, 256, (6, 3 * PATCH**2), np.uint8), 2, 3) for _ in range(2)]
    block = [BEGIN, *[IMAGE_TOKEN] * 6, END]
    tokens = [1, 2, *block, 3, 4, 5, *block, 6]
    *_, all_images = row_of([(tokens, images)], len(tokens), 12, 2)
    all_images = jax.tree.map(lambda a: a[None], all_images)
    whole = model.apply(config, params, np.array([tokens]), images=all_images)
    embedded = vision.embed(config, params, all_images).x_bed
    state = model.init_cache(config, 1, 64)
    found, done = [], 0
    for start, end in ((0, 12), (12, 21), (21, len(tokens))):  # no cut lies inside an image
        n = tokens[start:end].count(IMAGE_TOKEN)
        own = vision.Embeddings(embedded[:, done : done + max(n, 1)])
        x_btd, state = model.features(config, params, np.array([tokens[start:end]]), images=own, state=state)
        found.append(model.unembed(config, params, x_btd))
        done += n
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), whole, atol=2e-5)


def test_a_frozen_vit_gets_no_gradient_and_does_not_decay():
    frozen = dataclasses.replace(FRONTENDS["resampler"], frozen=True)
    config = model.Config(**(LLAMA | {"max_seq_len": 64}), vision=frozen)
    params, rng = perturbed(config), np.random.default_rng(3)
    document = ([1, BEGIN, *[IMAGE_TOKEN] * 3, END, 5], [(rng.integers(0, 256, (6, 48), np.uint8), 2, 3)])
    tokens, segments, _, images = jax.tree.map(lambda a: a[None], row_of([document], 16, 8, 2))
    grads = jax.grad(lambda p: jnp.sum(model.apply(config, p, tokens, segment_ids_bt=segments, images=images) ** 2))(
        params
    )
    size = {
        group: max(float(jnp.abs(g).max()) for g in grads[group].values()) for group in VISION_GROUPS if group in grads
    }
    assert size["vision"] == size["vision_layers"] == 0
    assert min(size["resampler"], size["resampler_layers"], size["projector"]) > 0
    assert not any(row.decay for row in table(config) if row.group in ("vision", "vision_layers"))
    assert count(config)["vision"] == sum(row.size for row in table(config) if row.group in VISION_GROUPS)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        (dict(frontend="cnn"), "vision.frontend is 'cnn'"),
        (dict(embed_dim=25), "not a multiple of num_heads 3"),
        (dict(frontend="linear", frozen=True), "'linear' has none"),
        (dict(frontend="resampler", class_token=True), "that of a vit"),
        (dict(patch_size=0), "vision.patch_size is 0"),
        (dict(image_token=96), "must be one of the vocabulary"),
        (dict(max_patches=32), "rows of model.max_seq_len 32 cannot hold"),
    ],
)
def test_what_does_not_fit_is_said(fields, words):
    with pytest.raises(ValueError, match=words):
        model.Config(**LLAMA, vision=dataclasses.replace(FRONTENDS["vit"], **fields))


def test_images_of_a_decoder_without_a_frontend_are_refused():
    config = model.Config(**LLAMA)
    *_, images = row_of([([1], [])], 8, 4, 1)
    with pytest.raises(ValueError, match="no image frontend"):
        model.apply(config, model.init(config, jax.random.key(0)), np.zeros((1, 8), int), images=images)
    own = decoder("linear")
    bad = images._replace(patches_bpc=np.zeros((1, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="not 3 x 4\\^2"):
        model.apply(own, model.init(own, jax.random.key(0)), np.zeros((1, 8), int), images=bad)
