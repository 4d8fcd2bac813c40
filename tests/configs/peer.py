"""The shape of tests/bench/torch_gpt.py's defaults, for tests/bench/speed.py."""

from gpt4jax.config import default


def get_config():
    """6 layers of 384 and rows of 256 bytes; 257 ids (bytes and the end of text) to the peer's 256."""
    c = default()
    c.num_steps = 23
    c.batch_size = 8
    c.model.update(
        vocab_size=257, num_layers=6, embed_dim=384, num_heads=6, num_kv_heads=6, head_dim=64, mlp_dim=1536,
        max_seq_len=256, layers="unroll",
    )  # fmt: skip
    c.data.tokenizer = "bytes"
    c.optimizer.warmup_steps = 2
    c.checkpoint.checkpoint_every_steps = 0
    c.eval.log_every_steps = 1
    c.eval.sample_prompt = ""
    return c
