"""A forecast on a TPU host: a ladder of 2e16 to 7e18 FLOPs, and a target of 1e21, 100 and 1,000 times ahead.

    python -m gpt4jax.predict --config configs/ladder_tpu.py --workdir DIR --config.data.dataset=YOURS

Small runs take one chip each, the target all chips of one host. The corpus is yours: name a TFDS set or a folder, for
this ladder wants 60 billion tokens and `python_packages` has 0.1 billion. Not measured: no TPU was at hand.
"""

from gpt4jax.scaling.ladder import default


def get_config():
    """The base shape and the ladder; keys and their meaning: gpt4jax/config.py and gpt4jax/scaling/ladder.py."""
    c = default()
    c.batch_size = 64  # at base_tokens
    c.model.update(
        vocab_size=100_352, num_layers=8, embed_dim=512, num_heads=4, num_kv_heads=4, head_dim=128, mlp_dim=1408,
        max_seq_len=2048, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        qk_norm=True, parametrization="mup", base_embed_dim=512, base_num_layers=8, base_head_dim=128,
        dtype="bfloat16", remat="dots", loss_chunk_len=256,
    )  # fmt: skip
    c.data.dataset = ""  # yours
    c.data.tokenizer = "cl100k_base"
    c.data.seq_len = 2048
    c.optimizer.update(learning_rate=4e-3, weight_decay=0.0, final_fraction=0.0)
    c.mesh.update(data=1, fsdp=-1)
    c.eval.update(num_rows=512, batch_size=64)
    c.ladder.update(
        target_compute=1e21, min_compute=2e16, max_compute=9e18, levels=8, ratios=(100.0, 1000.0), seeds=2,
        target_seeds=1, grow="num_heads", width_per_layer=64.0, min_layers=4, base_tokens=2e9, batch_exponent=0.5,
        rate_exponent=0.2, rows_multiple=8,
    )  # fmt: skip
    return c
