"""GPT-2's 124M shape: one GPU, or a small TPU slice.

    python -m gpt4jax.train --config configs/gpt2_124m.py --workdir runs/gpt2_124m \\
        --config.data.dataset=folder:PATH_OF_YOUR_TEXT

On the Python library alone (the default) it overfits after a few hundred steps: bring more text.
Time and loss on a GPU or TPU: not measured. On a CPU: README, "Measured".
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 20_000
    c.batch_size = 480  # with rows of 1,024: 491,520 tokens a step, about GPT-3's batch for this size
    c.model.update(
        vocab_size=50_304,  # GPT-2's 50,257 ids and padding up to a multiple of 128, for the hardware
        num_layers=12, embed_dim=768, num_heads=12, num_kv_heads=12, head_dim=64, mlp_dim=3072, max_seq_len=1024,
        dtype="bfloat16",
        remat="dots",
        loss_chunk_len=128,
    )  # fmt: skip
    c.data.tokenizer = "gpt2"
    c.data.seq_len = 1024
    c.optimizer.learning_rate = 6e-4  # GPT-3, table 2.1, for this size
    c.optimizer.warmup_steps = 700
    c.optimizer.micro_batches = 20
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.eval_every_steps = 1000
    return c
