"""Two stages: the second prompt has what the first one gave, and each is the request it would be by hand."""

import re

import numpy as np
import pytest

from gpt4jax.errors import UserError
from gpt4jax.inference import Engine, Request, two_stage
from gpt4jax.inference import images as of_images
from tests.conftest import perturbed
from tests.inference.test_images import TOK, config_of

PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), np.uint8)


def test_prompts():
    prompt = "A <|image|> and <|image|>Which?"
    assert two_stage.first_prompt(prompt, "Tell:\n") == "A <|image|> and <|image|>Tell:\n"
    assert two_stage.second_prompt(prompt, "Tell:\n", "a cat\n") == "A <|image|> and <|image|>Tell:\na cat\nWhich?"
    # What a model writes is no image.
    assert two_stage.second_prompt("<|image|>?", "", "x<|image|>y") == "<|image|>xy\n?"
    with pytest.raises(UserError, match=re.escape("the prompt has no <|image|>")):
        two_stage.first_prompt("Which?", "Tell: ")


def test_both_stages_are_the_requests_they_would_be_by_hand():
    config = config_of("vit")
    params = perturbed(config)
    asked = [two_stage.Asked("<|image|>ab?", [PICTURE]), two_stage.Asked("x<|image|>c?", [255 - PICTURE])]
    settings = {"max_tokens": 5, "temperature": 0.0, "stop_ids": frozenset()}
    engine = Engine(config, params, tokenizer=TOK, rows=2, max_len=150)
    found = two_stage.answer(engine, TOK, config.vision, asked, "T:", settings, {"max_tokens": 7})
    for one, answer in zip(asked, found, strict=True):
        texts = []
        for text, tokens in ((one.prompt.rpartition(">")[0] + ">T:", 7), (None, 5)):
            text = (
                text or f"{one.prompt.rpartition('>')[0]}>T:{texts[0].rstrip(chr(10))}\n{one.prompt.rpartition('>')[2]}"
            )
            ids, images = of_images.prompt(TOK, config.vision, text, one.pictures)
            request = Request(ids, tokens, temperature=0.0, stop_ids=frozenset(), images=images)
            texts.append(engine.generate([request])[0].text)
        assert tuple(texts) == answer
