"""A forecast on the language of known entropy: the ladder on a CPU, the target on one GPU.

    JAX_PLATFORMS=cpu python -m gpt4jax.predict --config configs/ladder_gpu.py --workdir DIR --until forecast
    python -m gpt4jax.predict --config configs/ladder_gpu.py --workdir DIR

The first command registers the forecast; DIR can then be carried to a machine with a GPU for the second, which makes
the same data anew. The target is more than 1,000 times the largest run of the ladder. All decoders are three layers
deep. `--config.data.dataset=grammar:20` is enough for the ladder alone. No GPU target has been trained yet.
"""

from gpt4jax.scaling.ladder import default


def get_config():
    """The base shape and the ladder; keys and their meaning: gpt4jax/config.py and gpt4jax/scaling/ladder.py."""
    c = default()
    c.batch_size = 3  # at base_tokens
    c.model.update(
        vocab_size=257, num_layers=3, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=88,
        max_seq_len=512, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        init_std=0.1, parametrization="mup", base_embed_dim=32, base_num_layers=3, base_head_dim=16, layers="unroll",
    )  # fmt: skip
    c.data.dataset = "grammar:700"
    c.data.tokenizer = "bytes"
    c.data.seq_len = 512  # every document fits: no row cuts one
    c.optimizer.update(learning_rate=6.5e-3, weight_decay=0.0, final_fraction=0.0)
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.update(num_rows=1024, batch_size=64)
    c.ladder.update(
        target_compute=1e17, min_compute=2e10, max_compute=5e13, levels=10, ratios=(1000.0, 10000.0), seeds=2,
        target_seeds=2, min_layers=3, width_per_layer=1e6, base_tokens=1e6, batch_exponent=0.5, rate_exponent=0.2,
        curve_points=8,
    )  # fmt: skip
    return c
