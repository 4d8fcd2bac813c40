"""Inference: the one decode loop, and what is asked of it."""

from gpt4jax.inference.candidates import Candidates, Score
from gpt4jax.inference.engine import Engine
from gpt4jax.inference.request import Event, Request, Result
from gpt4jax.inference.speculative import Draft

__all__ = ["Candidates", "Draft", "Engine", "Event", "Request", "Result", "Score"]
