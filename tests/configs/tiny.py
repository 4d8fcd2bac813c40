"""A run of seconds, for tests: pass --config.data.dataset=folder:PATH."""

from gpt4jax.config import default


def get_config():
    """Every feature that a resumed run must carry: dropout, micro-batches, packing, saves and evaluations."""
    c = default()
    c.num_steps = 24
    c.batch_size = 4
    c.model.update(
        vocab_size=512, num_layers=2, embed_dim=32, num_heads=2, num_kv_heads=1, head_dim=16, mlp_dim=64,
        max_seq_len=64, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, dropout=0.1,
    )  # fmt: skip
    c.data.tokenizer = "bpe:512"
    c.data.seq_len = 64
    c.optimizer.warmup_steps = 4
    c.optimizer.micro_batches = 2
    c.checkpoint.checkpoint_every_steps = 6
    c.eval.eval_every_steps = 8
    c.eval.log_every_steps = 1
    c.eval.sample_tokens = 8
    return c
