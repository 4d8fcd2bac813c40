"""A reward model from SmolLM2-135M-Instruct and what humans scored for harm (gpt4jax/align/human_scored.py).

    python -m gpt4jax.align --config configs/align_human_reward.py --workdir runs/human_reward
    python -m tests.bench.human_reward --workdir runs/human_reward

Two cores beside other jobs, jax 0.10.2, float32: 8 minutes, of which 6 are steps; held-out pairs 0.50 to 0.80 in order.
On a GPU or TPU: not measured.
"""

from gpt4jax.align.config import default


def get_config():
    """The config of this job; every key and its meaning: gpt4jax/align/config.py and gpt4jax/config.py."""
    c = default()
    c.stages = ("reward",)
    c.model.update(
        vocab_size=49152, num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
        max_seq_len=8192, norm="rmsnorm", position="rope", rope_theta=1e5, activation="swiglu", use_bias=False,
    )  # fmt: skip
    c.data.seq_len = 224
    c.max_response = 112
    c.too_long = "cut"
    c.eval.batch_size = 8
    c.optimizer.weight_decay = 0.0
    c.reward.update(
        num_steps=33, batch_size=4, learning_rate=2e-5, warmup_steps=4, data="human_scored", responses=4,
        init_from="smollm2-135m-instruct", log_every_steps=1,
    )  # fmt: skip
    return c
