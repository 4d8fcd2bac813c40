"""PPO by rules alone, after configs/align_refusals.py: refuse what asks for harm, and answer benign prompts like it.

    python -m gpt4jax.align --config configs/align_rules.py --workdir DIR --config.ppo.init_from=DIR/dpo/export

The reward of an answer is the worth of its class to its kind of prompt (gpt4jax/align/rules.py), told by words.
Two cores beside other jobs, jax 0.10.2, float32: 24 rounds in 11 minutes. On a GPU or TPU: not measured.
"""

from gpt4jax.align.config import default


def get_config():
    """The config of this job; every key and its meaning: gpt4jax/align/config.py and gpt4jax/config.py."""
    c = default()
    c.stages = ("ppo",)
    c.model.update(
        vocab_size=49152, num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
        max_seq_len=8192, norm="rmsnorm", position="rope", rope_theta=1e5, activation="swiglu", use_bias=False,
    )  # fmt: skip
    c.data.seq_len = 96
    c.max_response = 32  # enough to see whether it refuses
    c.too_long = "drop"
    c.optimizer.weight_decay = 0.0
    c.checkpoint.checkpoint_every_steps = 8
    c.ppo.update(
        num_steps=24, batch_size=16, learning_rate=3e-4, warmup_steps=2, data="twins", log_every_steps=1,
        reward="", rules=1.0, value_from="policy", lora_rank=8, kl_coefficient=0.02, inner_epochs=2,
        missing_end_penalty=0.0, decay=1.0, value_clip=0.0,
    )  # fmt: skip
    return c
