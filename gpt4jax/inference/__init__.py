"""Inference: the one decode loop, and what is asked of it."""

from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Event, Request, Result
from gpt4jax.inference.speculative import Draft

__all__ = ["Draft", "Engine", "Event", "Request", "Result"]
