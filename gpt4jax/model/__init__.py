"""The decoder. Pure functions of a frozen `Config` and a plain nested dict of parameters."""

from gpt4jax.model.config import Config
from gpt4jax.model.decoder import apply, cache_bytes, features, init, init_cache, unembed
from gpt4jax.model.transformer_xl import Memory, init_memory

__all__ = ["Config", "Memory", "apply", "cache_bytes", "features", "init", "init_cache", "init_memory", "unembed"]
