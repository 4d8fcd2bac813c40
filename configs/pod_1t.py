"""A dense decoder of 1.0e12 parameters on a TPU v5p pod, with grouped queries and heads of 256.

python -m gpt4jax.train --config configs/pod_1t.py --workdir DIR --config.data.dataset=YOURS
python -m gpt4jax.plan --config configs/pod_1t.py --topology v5p:16x16x24

Planned on 6,144 chips: 27.8 of 88.5 GiB (31%), compiled in 50 s on two busy cores; by the cost model, not measured, a
step of 12.6 million tokens is 45.8 s, 61% MFU.
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 200_000
    c.batch_size = 3072
    c.model.update(
        vocab_size=100_352, num_layers=128, embed_dim=24_576, num_heads=96, num_kv_heads=16, head_dim=256,
        mlp_dim=89_088, max_seq_len=4096, norm="rmsnorm", position="rope", rope_theta=500_000.0, activation="swiglu",
        use_bias=False, tie_embeddings=False, dtype="bfloat16", remat="full", loss_chunk_len=512,
    )  # fmt: skip
    c.data.update(dataset="", tokenizer="cl100k_base", seq_len=4096)
    c.optimizer.update(learning_rate=0.6e-4, warmup_steps=2000, weight_decay=0.1)
    c.mesh.update(data=1, fsdp=-1, tensor=4)
    c.checkpoint.checkpoint_every_steps = 500
    c.eval.update(eval_every_steps=2000, num_rows=512, sample_prompt="")
    return c
