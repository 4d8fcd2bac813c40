"""All stages in the known world, at a size for tests."""

from gpt4jax.align.config import default


def get_config():
    """A few steps of each."""
    c = default()
    c.stages = ("sft", "reward", "ppo", "dpo")
    c.model.update(
        vocab_size=7, num_layers=2, embed_dim=16, num_heads=2, num_kv_heads=2, head_dim=8, mlp_dim=32, max_seq_len=16,
        norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, init_std=0.2,
    )  # fmt: skip
    c.data.tokenizer = "characters:abcdef"
    c.data.seq_len = 8
    c.max_response = 5
    c.optimizer.eps = 1e-5  # Adam makes whole steps of gradients that are rounding errors: not so here
    c.checkpoint.checkpoint_every_steps = 2
    c.checkpoint.keep = 4
    shared = dict(num_steps=4, batch_size=8, learning_rate=1e-2, warmup_steps=1, log_every_steps=1)
    c.sft.update(**shared, data="world:720")
    c.reward.update(**shared, data="world:360", demonstrations="world:72")
    c.ppo.update(
        **{**shared, "batch_size": 16}, data="world:36", inner_epochs=2, minibatches=2, average_decay=0.9, kl_target=1.0
    )
    c.dpo.update(**shared, data="world:360", responses=3)
    return c
