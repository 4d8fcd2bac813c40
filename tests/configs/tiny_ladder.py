"""A ladder of seconds, for tests: pass --config.data.dataset=folder:PATH."""

from gpt4jax.scaling.ladder import default


def get_config():
    """Five levels of runs of a few dozen steps, and a target of ten times the largest."""
    c = default()
    c.batch_size = 2
    c.model.update(
        vocab_size=257, num_layers=1, embed_dim=8, num_heads=2, num_kv_heads=2, head_dim=4, mlp_dim=16,
        max_seq_len=32, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        parametrization="mup", base_embed_dim=8, base_num_layers=1, base_head_dim=4, init_std=0.1,
    )  # fmt: skip
    c.data.tokenizer = "bytes"
    c.data.seq_len = 32
    c.optimizer.learning_rate = 0.01
    c.eval.num_rows = 64
    c.eval.log_every_steps = 0
    c.ladder.update(
        target_compute=8e9, min_compute=4e7, max_compute=6e8, levels=6, ratios=(10.0, 30.0), seeds=1,
        target_seeds=2, tokens_per_parameter=1.0, width_per_layer=100.0, min_layers=1, base_tokens=3e3, curve_points=4,
    )  # fmt: skip
    return c
