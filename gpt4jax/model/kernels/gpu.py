"""To come."""
from gpt4jax.model.kernels.tpu import PASSES
