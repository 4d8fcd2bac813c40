"""A forecast on two CPU cores: small decoders on packages' source code, and a target of 100 times their compute.

    python -m gpt4jax.predict --config configs/ladder_cpu.py --workdir runs/ladder_cpu

The first start fetches 233 MB of packages. All decoders are three layers deep and differ in width alone. Each layer
sees four tokens, so that a loss depends on ten: with dense attention the target learns to copy from its context, which
no run of the ladder does, and no law through them foresees (README, "Measured"). The learning rate rises as the root of
the rows of a step: its best values are 0.0077, 0.0096 and 0.0113 at 0.9, 2.7 and 4.6 million tokens (three rates each).
"""

from gpt4jax.scaling.ladder import default


def get_config():
    """The base shape and the ladder; keys and their meaning: gpt4jax/config.py and gpt4jax/scaling/ladder.py."""
    c = default()
    c.batch_size = 4  # at base_tokens: small models want many small steps
    c.model.update(
        vocab_size=1024, num_layers=3, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=88,
        max_seq_len=128, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        init_std=0.1, parametrization="mup", base_embed_dim=32, base_num_layers=3, base_head_dim=16, layers="unroll",
        attention=("banded:4",),
    )  # fmt: skip
    c.data.dataset = "python_packages"
    c.data.tokenizer = "bpe:1024"
    c.data.seq_len = 128
    c.optimizer.update(learning_rate=7.8e-3, weight_decay=0.0, final_fraction=0.0)
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.update(num_rows=2048, batch_size=64)
    c.ladder.update(
        target_compute=1.05e14, min_compute=4e10, max_compute=1e12, levels=12, ratios=(100.0,), seeds=3,
        target_seeds=1, min_layers=3, width_per_layer=1000.0, base_tokens=1e6, batch_exponent=0.5, rate_exponent=-0.25,
        curve_points=8,
    )  # fmt: skip
    return c
