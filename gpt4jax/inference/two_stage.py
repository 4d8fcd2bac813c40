"""Chain of thought in two stages: what a model sees in its images first, then its answer with that before it.

Zhang et al. 2023 (Multimodal-CoT), as KOSMOS-1 (section 4.3) asks for it without training: "Introduce this picture in
detail:" gives a rationale, which stands before the question in a second prompt.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from gpt4jax.data.tokenizer import IMAGE, Tokenizer
from gpt4jax.errors import UserError
from gpt4jax.inference import images
from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Request
from gpt4jax.model.vision_config import VisionConfig


class Answer(NamedTuple):
    """A rationale and the answer that came after it."""

    rationale: str
    text: str


class Asked(NamedTuple):
    """A prompt with a "<|image|>" for each of its pictures (H, W, 3)."""

    prompt: str
    pictures: Sequence[np.ndarray]


def first_prompt(prompt: str, introduction: str) -> str:
    """The prompt up to its last image, and the words that ask for a rationale.

    Raises:
        UserError: a prompt without an image.
    """
    before, marker, _ = prompt.rpartition(IMAGE)
    if not marker:
        raise UserError(f"a rationale is about images, and the prompt has no {IMAGE}")
    return before + marker + introduction


def second_prompt(prompt: str, introduction: str, rationale: str) -> str:
    """The same with the rationale on its lines, and what follows the last image in the prompt.

    Raises:
        UserError: a prompt without an image.
    """
    question = prompt.rpartition(IMAGE)[2]
    # A model that writes the marker has no image to show for it.
    said = rationale.replace(IMAGE, "").rstrip("\n")
    return f"{first_prompt(prompt, introduction)}{said}\n{question}"


def answer(
    engine: Engine,
    tokenizer: Tokenizer,
    vision: VisionConfig,
    asked: Sequence[Asked],
    introduction: str,
    settings: Mapping[str, Any],
    rationale_settings: Mapping[str, Any] | None = None,
) -> list[Answer]:
    """Answers to prompts with images in two stages, all of a stage together.

    Args:
        engine: of a decoder with an image frontend.
        tokenizer: its own.
        vision: its frontend.
        asked: prompts with their pictures.
        introduction: asks for the rationale, such as "Introduce this picture in detail: ".
        settings: of both stages' requests, as `Request` names them.
        rationale_settings: those that are others for the rationale.

    Raises:
        UserError: a prompt without images, or with another number of them than of markers.
    """

    def generate(prompts: Sequence[str], chosen: Mapping[str, Any]) -> list[str]:
        requests = []
        for text, one in zip(prompts, asked, strict=True):
            ids, given = images.prompt(tokenizer, vision, text, one.pictures)
            requests.append(Request(ids, images=given, **chosen))
        return [done.text for done in engine.generate(requests)]

    first = [first_prompt(one.prompt, introduction) for one in asked]
    rationales = generate(first, {**settings, **(rationale_settings or {})})
    second = [second_prompt(one.prompt, introduction, said) for one, said in zip(asked, rationales, strict=True)]
    return [Answer(said, text) for said, text in zip(rationales, generate(second, settings), strict=True)]
