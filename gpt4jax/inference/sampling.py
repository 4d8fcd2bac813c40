"""Choosing the next token from its logits."""

import jax
import jax.numpy as jnp


def sample(
    logits_bv: jax.Array, key: jax.Array, temperature: jax.Array, top_k: jax.Array, top_p: jax.Array
) -> jax.Array:
    """Token ids (B,) drawn from softmax(logits / temperature), cut to the top k and then to the top p.

    temperature 0 is the most likely token; top_k 0 and top_p 1 cut nothing. Ties at the k-th logit all
    stay; the top p are the fewest most likely tokens whose probabilities reach p (Holtzman et al. 2020),
    at least one. All three may be traced, so that one program serves every setting.
    """

    def draw() -> jax.Array:
        scaled_bv = logits_bv / temperature
        # Sorting a vocabulary costs a CPU more than the decoder's last layer does: only if it cuts something.
        cuts = (top_k > 0) | (top_p < 1)
        least_b1 = jax.lax.cond(
            cuts, lambda: _least_kept(scaled_bv, top_k, top_p), lambda: jnp.min(scaled_bv, axis=-1, keepdims=True)
        )
        return jax.random.categorical(key, jnp.where(scaled_bv >= least_b1, scaled_bv, -jnp.inf), axis=-1)

    return jax.lax.cond(temperature > 0, draw, lambda: jnp.argmax(logits_bv, axis=-1))


def _least_kept(scaled_bv: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """The smallest logit (B, 1) that both cuts keep."""
    sorted_bv = -jnp.sort(-scaled_bv, axis=-1)
    vocab = scaled_bv.shape[-1]
    kth_b1 = jnp.take(sorted_bv, jnp.where(top_k > 0, jnp.minimum(top_k, vocab), vocab) - 1, axis=-1)[:, None]
    kept_bv = jnp.where(sorted_bv >= kth_b1, sorted_bv, -jnp.inf)
    before_bv = jnp.cumsum(jax.nn.softmax(kept_bv, axis=-1), axis=-1) - jax.nn.softmax(kept_bv, axis=-1)
    inside_bv = ((before_bv < top_p) | (top_p >= 1)) & (kept_bv > -jnp.inf)
    return jnp.min(jnp.where(inside_bv.at[:, 0].set(True), sorted_bv, jnp.inf), axis=-1, keepdims=True)
