"""Llama 3 70B's shape on a TPU slice: v5p:4x8x8, v6e:16x16 or tpu7x:4x4x4.

    python -m gpt4jax.train --config configs/pod_70b.py --workdir DIR --config.data.dataset=YOURS
    python -m gpt4jax.plan --config configs/pod_70b.py --topology v5p:4x8x8

A step has 256 rows of 8,192 tokens. Planned, by the cost model, not measured:

    v5p:4x8x8    26.8 of 88.5 GiB  14.0 s   57% MFU
    v6e:16x16    26.6 of 32.0 GiB   9.7 s   41%
    tpu7x:4x4x4  47.5 of 89.4 GiB  13.7 s   47%

On v6e and tpu7x, whose matrix units are 256 wide, heads of 256 leave none of them
idle in attention and cost no parameter more:

    --config.model.num_heads=32 --config.model.num_kv_heads=4 --config.model.head_dim=256
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 100_000
    c.batch_size = 256
    c.model.update(
        vocab_size=128_256, num_layers=80, embed_dim=8192, num_heads=64, num_kv_heads=8, head_dim=128, mlp_dim=28_672,
        max_seq_len=8192, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        rope_theta=500_000.0, dtype="bfloat16", remat="full", loss_chunk_len=512,
    )  # fmt: skip
    c.data.update(dataset="", tokenizer="cl100k_base", seq_len=8192)
    c.optimizer.update(learning_rate=1.5e-4, warmup_steps=2000, weight_decay=0.1)
    c.mesh.update(data=1, fsdp=-1)
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.update(eval_every_steps=2000, num_rows=512, sample_prompt="")
    return c
