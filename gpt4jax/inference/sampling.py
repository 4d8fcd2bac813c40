"""Choosing the next token from its logits, each row by its own settings."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Settings(NamedTuple):
    """How each row draws. All may be traced: one program serves every setting."""

    temperature_b: jax.Array  # 0: the most likely token
    top_k_b: jax.Array  # only the k most likely; 0: all
    top_p_b: jax.Array  # only the most likely that reach p together; 1: all
    min_p_b: jax.Array  # only those at least p times as likely as the most likely; 0: all
    penalty_b: jax.Array  # a token seen before has its logit divided (if negative: multiplied) by it; 1: none
    seed_b: jax.Array  # token i of a row is drawn with a key made of (seed, i), whatever else is drawn


def keys(seed_b: jax.Array, index_b: jax.Array) -> jax.Array:
    """One key a row, for its token of that index."""
    return jax.vmap(lambda seed, index: jax.random.fold_in(jax.random.key(seed), index))(seed_b, index_b)


def log_distribution(logits_bv: jax.Array, seen_bv: jax.Array, settings: Settings) -> jax.Array:
    """Log probabilities (B, V) that the settings draw from, in float32; -inf for what they cut.

    In this order: the repetition penalty (Keskar et al. 2019), the temperature, the top k, the top p of those
    (Holtzman et al. 2020), and min p (Nguyen et al. 2024). Ties at the k-th logit all stay; the top p are the
    fewest most likely tokens whose probabilities reach p, at least one. Temperature 0 leaves one token.
    """
    penalty_b1, temperature_b1 = settings.penalty_b[:, None], settings.temperature_b[:, None]
    logits_bv = logits_bv.astype(jnp.float32)
    penalized_bv = jnp.where(logits_bv < 0, logits_bv * penalty_b1, logits_bv / penalty_b1)
    logits_bv = jnp.where(seen_bv, penalized_bv, logits_bv)

    def warm() -> jax.Array:
        from_best_bv = logits_bv - jnp.max(logits_bv, axis=-1, keepdims=True)
        scaled_bv = from_best_bv / jnp.where(temperature_b1 > 0, temperature_b1, 1)
        scaled_bv = _top_k(scaled_bv, settings.top_k_b)
        scaled_bv = _top_p(scaled_bv, settings.top_p_b)
        least_b1 = jnp.max(scaled_bv, axis=-1, keepdims=True) + jnp.log(settings.min_p_b)[:, None]
        log_bv = jax.nn.log_softmax(jnp.where(scaled_bv >= least_b1, scaled_bv, -jnp.inf), axis=-1)
        return jnp.where(temperature_b1 > 0, log_bv, greedy())

    def greedy() -> jax.Array:
        best_b1 = jnp.argmax(logits_bv, axis=-1, keepdims=True)
        return jnp.where(jnp.arange(logits_bv.shape[-1]) == best_b1, 0.0, -jnp.inf)

    return jax.lax.cond(jnp.any(settings.temperature_b > 0), warm, greedy)


def draw(log_bv: jax.Array, key_b: jax.Array) -> jax.Array:
    """Token ids (B,) from log probabilities, each row with its own key."""
    # Where every row has one token left, as greedy rows do, there is nothing to draw.
    certain = jnp.all(jnp.max(log_bv, axis=-1) == 0)
    gumbel = lambda: jax.vmap(lambda key: jax.random.gumbel(key, log_bv.shape[-1:]))(key_b)  # noqa: E731
    return jnp.argmax(log_bv + jax.lax.cond(certain, lambda: jnp.zeros_like(log_bv), gumbel), axis=-1)


def _top_k(scaled_bv: jax.Array, k_b: jax.Array) -> jax.Array:
    k_b1 = jnp.where(k_b > 0, k_b, scaled_bv.shape[-1])[:, None]
    enough = lambda kept_bv: jnp.sum(kept_bv, axis=-1, keepdims=True) >= k_b1  # noqa: E731
    return jax.lax.cond(jnp.any(k_b > 0), lambda: _cut(scaled_bv, enough), lambda: scaled_bv)


def _top_p(scaled_bv: jax.Array, p_b: jax.Array) -> jax.Array:
    p_b1 = p_b[:, None]

    def cut() -> jax.Array:
        probability_bv = jax.nn.softmax(scaled_bv, axis=-1)
        enough = lambda kept_bv: jnp.sum(probability_bv, axis=-1, where=kept_bv, keepdims=True) >= p_b1  # noqa: E731
        return jnp.where(p_b1 < 1, _cut(scaled_bv, enough), scaled_bv)

    return jax.lax.cond(jnp.any(p_b < 1), cut, lambda: scaled_bv)


def _cut(scaled_bv: jax.Array, enough) -> jax.Array:
    """Cuts below the highest threshold of each row that still keeps enough, `enough(kept_bv) -> (B, 1)`.

    Found bit by bit over floats read as ordered integers: 32 passes over the vocabulary, where a sort of it
    costs a CPU more than the decoder's layers do. Where nothing is enough, everything stays.
    """
    bits_bv = jax.lax.bitcast_convert_type(scaled_bv, jnp.uint32)
    negative = bits_bv >> 31 == 1
    order_bv = jnp.where(negative, ~bits_bv, bits_bv | jnp.uint32(1 << 31))

    def raise_bit(i, least_b1):
        higher_b1 = least_b1 | (jnp.uint32(1 << 31) >> i)
        return jnp.where(enough(order_bv >= higher_b1), higher_b1, least_b1)

    least_b1 = jax.lax.fori_loop(0, 32, raise_bit, jnp.zeros((len(scaled_bv), 1), jnp.uint32))
    return jnp.where(order_bv >= least_b1, scaled_bv, -jnp.inf)
