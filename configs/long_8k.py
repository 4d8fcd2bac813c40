"""A 124M Llama-type decoder for rows of 8,192 tokens, dense and banded layers in turn as GPT-3 has them.

    python -m gpt4jax.train --config configs/long_8k.py --workdir runs/long_8k \\
        --config.data.dataset=python_packages

`long_32k` continues from it with rows of 32,768. One GPU or a TPU host: not measured.
20 steps of one row were run on two CPU cores (README).
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 10_000
    c.batch_size = 32  # 262,144 tokens a step
    c.model.update(
        vocab_size=50_304, num_layers=12, embed_dim=768, num_heads=12, num_kv_heads=4, head_dim=64, mlp_dim=2048,
        max_seq_len=8192, norm="rmsnorm", position="rope", rope_theta=5e5, activation="swiglu", use_bias=False,
        attention=("dense", "banded:1024"), dtype="bfloat16", remat="full", loss_chunk_len=512,
    )  # fmt: skip
    c.data.tokenizer = "gpt2"
    c.data.seq_len = 8192
    c.optimizer.learning_rate = 6e-4
    c.optimizer.warmup_steps = 500
    c.optimizer.micro_batches = 8
    c.checkpoint.checkpoint_every_steps = 500
    c.eval.eval_every_steps = 500
    return c
