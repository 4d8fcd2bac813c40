"""The decoder. Pure functions of a frozen `Config` and a plain nested dict of parameters."""

from gpt4jax.model.config import Config
from gpt4jax.model.decoder import apply, cache_bytes, features, init, init_cache, unembed

__all__ = ["Config", "apply", "cache_bytes", "features", "init", "init_cache", "unembed"]
