"""Floating-point operations and utilisation, as definitions: pure functions of a config.

A multiplication and an addition are two operations. Only matrix products are counted, attention by the keys
that a query sees (causal: on average half the row; a band: its window), recomputation under remat not at all.
"""

from gpt4jax.model import patterns
from gpt4jax.model.config import Config
from gpt4jax.model.parameters import table

# Dense bf16 peak of one chip, FLOP/s, by a substring of jax's device_kind; makers' data sheets.
PEAK_FLOPS = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6": 918e12,
    "TPU7x": 2307e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
}


def flops_per_token(config: Config, seq_len: int) -> dict[str, float]:
    """Operations per token of a row of `seq_len` tokens: {"forward", "train"}; train is three times forward.

    forward = 2 P + sum over layers of 4 N H keys: P the values in matrices that each token is multiplied by
    (token and position look-ups are none, a tied embedding counts once, as the output matrix); attention is two
    products of 2 N H per query and key, over the `keys_per_query`. Kaplan et al. 2020 (table 1) with the causal
    half; PaLM (appendix B) without it.

    A Transformer-XL's attention is three products, over T / 2 keys and the M of its memory. The memory's keys and
    values are 2 P_kv M / T more, and the encodings of M + T distances, once a batch, are left out. Into the memory
    no gradient flows: there train is twice forward.
    """
    matmul = sum(row.size for row in table(config) if row.matmul)
    before = config.memory_len  # 0 but for a Transformer-XL
    keys = sum(keys_per_query(pattern, config.num_kv_heads, seq_len, before) for pattern in config.attention)
    products, keys, memory = 2, keys / len(config.attention), 0.0
    if config.position == "transformer_xl":
        products = 3
        key_value = sum(row.size for row in table(config) if row.name in ("key_dkh", "value_dkh"))
        memory = 2.0 * key_value * config.memory_len / seq_len
    attention = config.num_layers * config.num_heads * config.head_dim * products * keys
    forward = 2.0 * (matmul + attention)
    return {"forward": forward + memory, "train": 3 * forward + 2 * memory}


def keys_per_query(pattern: str, kv_heads: int, seq_len: int, before: int = 0) -> float:
    """How many keys a query of a row of `seq_len` tokens sees on average, over the layer's heads.

    `before` are those of a memory before the row. Dense attention is counted as seq_len / 2 + before, as the field has
    it, and no pattern as more. An induction layer counts
    as dense: which keys it sees is known only when all scores are computed.
    """
    of_heads = patterns.from_pattern(pattern, kv_heads)
    pairs = [mask.pairs(seq_len, before + seq_len, offset=before) for mask in of_heads]
    seen = [min(each / seq_len, seq_len / 2 + before) for each in pairs]
    return sum(seen) / len(seen)


def peak_flops(device_kind: str) -> float | None:
    """Dense bf16 peak of a device in FLOP/s; None if we don't know the device, and then there is no MFU."""
    matches = [name for name in PEAK_FLOPS if name.lower() in device_kind.lower()]
    return PEAK_FLOPS[max(matches, key=len)] if matches else None


def mfu(tokens_per_second: float, flops_of_a_token: float, devices: int, peak: float) -> float:
    """Model FLOPs utilisation, a fraction of the dense bf16 peak of `devices` devices of `peak` FLOP/s each."""
    return tokens_per_second * flops_of_a_token / (devices * peak)
