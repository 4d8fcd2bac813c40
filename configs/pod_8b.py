"""Llama 3 8B's shape on a TPU slice: v5e:16x16, v5p:4x4x4, v6e:8x8 or tpu7x:4x4x4.

    python -m gpt4jax.train --config configs/pod_8b.py --workdir DIR --config.data.dataset=YOURS
    python -m gpt4jax.plan --config configs/pod_8b.py --topology v6e:8x8

A step has 256 rows of 8,192 tokens. Planned, by the cost model, not measured:

    v5e:16x16     8.9 of 16.0 GiB   4.1 s   52% MFU
    v6e:8x8      25.1 of 32.0 GiB   5.2 s   35%; with heads of 256 23.4 GiB, 4.5 s, 40%
    tpu7x:4x4x4  15.2 of 89.4 GiB   2.0 s   37%

On v6e and tpu7x, whose matrix units are 256 wide, heads of 256 leave none of them
idle in attention and cost no parameter more:

    --config.model.num_heads=16 --config.model.num_kv_heads=4 --config.model.head_dim=256
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 100_000
    c.batch_size = 256
    c.model.update(
        vocab_size=128_256, num_layers=32, embed_dim=4096, num_heads=32, num_kv_heads=8, head_dim=128, mlp_dim=14_336,
        max_seq_len=8192, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        rope_theta=500_000.0, dtype="bfloat16", remat="full", loss_chunk_len=512,
    )  # fmt: skip
    c.data.update(dataset="", tokenizer="cl100k_base", seq_len=8192)
    c.optimizer.update(learning_rate=3e-4, warmup_steps=2000, weight_decay=0.1)
    c.mesh.update(data=1, fsdp=-1)
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.update(eval_every_steps=2000, num_rows=512, sample_prompt="")
    return c
