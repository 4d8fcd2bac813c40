"""Short runs for muP's two checks: the size of activations over widths, and the best learning rate over sizes.

    python -m gpt4jax.scaling.coordinates --config configs/mup.py --workdir runs/mup
    python -m gpt4jax.scaling.transfer --config configs/mup.py --workdir runs/mup

The best rate moves by a factor of 1.03 over widths of 32 to 512 and of 1.20 over depths of 2 to 16; in the standard
parametrisation by 11 over the widths (README, "Measured").
"""

from gpt4jax.scaling.sweep import default


def get_config():
    """The decoder at its base shape; every key and its meaning: gpt4jax/config.py, and of `sweep` gpt4jax/scaling."""
    c = default()
    c.num_steps = 256
    c.batch_size = 4
    c.model.update(
        vocab_size=257, num_layers=2, embed_dim=64, num_heads=4, num_kv_heads=4, head_dim=16, mlp_dim=176,
        max_seq_len=128, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        parametrization="mup", base_embed_dim=64, base_num_layers=2, base_head_dim=16, init_std=0.1, layers="unroll",
    )  # fmt: skip
    c.data.tokenizer = "bytes"
    c.data.seq_len = 128
    c.optimizer.warmup_steps = 64
    c.optimizer.weight_decay = 0.0
    c.optimizer.final_fraction = 0.0
    return c
