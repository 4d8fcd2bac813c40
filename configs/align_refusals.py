"""SmolLM2-135M-Instruct learns to refuse, by adapters: made refusals of prompts that ask for harm (rules.py).

    python -m tests.bench.refusals write --weights smollm2-135m-instruct --out own.jsonl
    python -m gpt4jax.align --config configs/align_refusals.py --workdir DIR --config.sft.data=jsonl:own.jsonl

Two cores beside other jobs, jax 0.10.2, float32: 7 minutes of steps at some 60 tokens/s; held-out demonstrations 1.412
nats a token before and 0.902 after. On held-out prompts it complies with 24% of those that ask for harm instead of 82%,
and refuses 67% of benign ones instead of 9%; with refusals alone (the config as it is, 20 steps) it refuses all of both
(`python -m tests.bench.refusals`). On a GPU or TPU: not measured.
"""

from gpt4jax.align.config import default


def get_config():
    """The config of this job; every key and its meaning: gpt4jax/align/config.py and gpt4jax/config.py."""
    c = default()
    c.stages = ("sft",)
    c.model.update(
        vocab_size=49152, num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
        max_seq_len=8192, norm="rmsnorm", position="rope", rope_theta=1e5, activation="swiglu", use_bias=False,
        loss_chunk_len=128,
    )  # fmt: skip
    c.data.seq_len = 256
    c.max_response = 60
    c.too_long = "cut"  # the model's own answers go on; where they are cut no end is learnt
    c.optimizer.weight_decay = 0.0
    c.sft.update(
        num_steps=40, batch_size=2, learning_rate=5e-4, warmup_steps=2, data="twins", log_every_steps=1, lora_rank=8,
        init_from="smollm2-135m-instruct",
    )  # fmt: skip
    return c
