"""Prompts with images through the engine: as the plain forward pass has it, in any company, and errors in words."""

import jax
import numpy as np
import pytest

from gpt4jax import model
from gpt4jax.data import tokenizer
from gpt4jax.errors import UserError
from gpt4jax.inference import Engine, Request
from gpt4jax.inference import engine as engines
from gpt4jax.inference import images as of_images
from gpt4jax.model.vision_config import VisionConfig
from tests.conftest import LLAMA, perturbed

TOK = tokenizer.with_images(tokenizer.from_bytes())
PATCH = TOK.special[tokenizer.PATCH]
VISIONS = {
    "vit": VisionConfig("vit", PATCH, 4, 24, 1, 24, 3, 40),
    "resampler": VisionConfig("resampler", PATCH, 4, 24, 1, 24, 3, 40, resampler_layers=1, resampler_len=5),
}


@pytest.fixture(autouse=True, scope="module")
def short_chunks():
    """So that short prompts take several."""
    old, engines.CHUNK = engines.CHUNK, 16
    yield
    engines.CHUNK = old


def config_of(name: str, **fields) -> model.Config:
    return model.Config(**(LLAMA | {"vocab_size": 260, "max_seq_len": 160} | fields), vision=VISIONS[name])


def prompts(config: model.Config, seed: int = 0):
    """Texts with up to three images at any place, and (ids, images) of each."""
    rng = np.random.default_rng(seed)
    found = []
    texts = ["<|image|>a", "What is <|image|>in <|image|> that?", "no image at all"]
    for text in (*texts, "x" * 30 + "<|image|>y<|image|>", "<|image|><|image|><|image|>"):
        pictures = [
            rng.integers(0, 256, (4 * int(rng.integers(1, 7)), 4 * int(rng.integers(1, 5)), 3), np.uint8)
            for _ in range(text.count("<|image|>"))
        ]
        found.append(of_images.prompt(TOK, config.vision, text, pictures))
    return found


def greedy(config, params, ids, images, count):
    """By the plain forward pass over the whole text, again and again."""
    apply = jax.jit(model.apply, static_argnums=0)
    ids = list(ids)
    batch = None if images is None else of_images.padded(images)
    out = []
    for _ in range(count):
        row = np.zeros((1, 160), np.int32)
        row[0, : len(ids)] = ids
        logits = np.asarray(apply(config, params, row, images=batch))[0, len(ids) - 1]
        out.append(int(np.argmax(logits[: PATCH - 1])))
        ids.append(out[-1])
    return out


@pytest.mark.parametrize(("name", "attention"), [("vit", ("dense",)), ("resampler", ("banded:9", "dense"))])
def test_cached_greedy_decoding_is_that_of_the_plain_forward_pass(name, attention):
    config = config_of(name, attention=attention)
    params = perturbed(config)
    asked = prompts(config)
    requests = [Request(ids, 6, temperature=0.0, stop_ids=frozenset(), images=images) for ids, images in asked]
    engine = Engine(config, params, tokenizer=TOK, rows=3, max_len=150)
    together = engine.generate(requests)
    for (ids, images), result in zip(asked, together, strict=True):
        assert list(result.tokens) == greedy(config, params, ids, images, 6)
    alone = Engine(config, params, tokenizer=TOK, rows=3, max_len=150).generate(requests[1:2])[0]
    assert alone.tokens == together[1].tokens and alone.logprobs == together[1].logprobs
    # Another image makes another text likely, though its tokens are the same: none comes from a kept beginning.
    ids, images = asked[4]
    other = images._replace(patches_bpc=255 - images.patches_bpc)
    one, two = (engine.generate([Request(ids, 1, temperature=0.0, images=i)])[0] for i in (images, other))
    assert one.logprobs != two.logprobs


def test_an_image_is_as_long_as_the_model_has_tokens_of_it():
    big = np.zeros((400, 100, 3), np.uint8)
    ids, images = of_images.prompt(TOK, VISIONS["vit"], "<|image|>", [big])
    assert ids.count(PATCH) == len(images.patches_bpc) <= 24 and of_images.shrunk(big, VISIONS["vit"]) == (36, 8)
    ids, images = of_images.prompt(TOK, VISIONS["resampler"], "a<|image|>", [big])
    assert ids.count(PATCH) == 5 and of_images.shrunk(np.zeros((8, 8, 3), np.uint8), VISIONS["vit"]) is None


def test_what_does_not_fit_is_said():
    config = config_of("vit")
    picture = np.zeros((8, 8, 3), np.uint8)
    for text, pictures in (("a", [picture]), ("<|image|>", []), ("<|image|> <|image|>", [picture])):
        with pytest.raises(UserError, match=f"has {text.count('<')} times .* and {len(pictures)} images were given"):
            of_images.prompt(TOK, config.vision, text, pictures)
    with pytest.raises(UserError, match="takes no images: it was trained on text alone, and 1 was given"):
        of_images.prompt(tokenizer.from_bytes(), None, "<|image|>", [picture])
    params = perturbed(config)
    engine = Engine(config, params, tokenizer=TOK, rows=1, max_len=64)
    ids, images = of_images.prompt(TOK, config.vision, "<|image|>", [picture])
    with pytest.raises(UserError, match="the prompt has 4 tokens of images, and its images are 2"):
        engine.generate([Request(ids, 1, images=of_images.prompt(TOK, config.vision, "<|image|>", [picture[:4]])[1])])
    with pytest.raises(UserError, match="has tokens of images, and no images came with it"):
        engine.generate([Request(ids, 1)])
    text_only = model.Config(**(LLAMA | {"vocab_size": 260}))
    plain = Engine(text_only, perturbed(text_only), tokenizer=TOK, rows=1)
    with pytest.raises(UserError, match="takes no images"):
        plain.generate([Request(ids, 1, images=images)])
