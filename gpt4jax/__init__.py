"""The GPT-4 technical report as code that anyone can run: small, readable JAX."""

__version__ = "0.1.0"
