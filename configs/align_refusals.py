"""SmolLM2-135M-Instruct learns what to refuse and what not: demonstrations, then DPO on replies that rules ranked.

    python -m tests.bench.refusals demonstrations --weights smollm2-135m-instruct --out own.jsonl
    python -m tests.bench.refusals comparisons --weights smollm2-135m-instruct --out ranked.jsonl
    python -m gpt4jax.align --config configs/align_refusals.py --workdir DIR
    python -m gpt4jax.align.measure --measures safety --weights smollm2-135m-instruct --weights DIR/dpo/export --out OUT

Of 146 pairs of a prompt that asks for harm and a benign one like it (gpt4jax/align/rules.py); the last command measures
on 98 other pairs. Adapters of rank 8 in all matrices of the layers. Figures: README.md, Measured.
"""

from gpt4jax.align.config import default


def get_config():
    """The config of this job; every key and its meaning: gpt4jax/align/config.py and gpt4jax/config.py."""
    c = default()
    c.stages = ("sft", "dpo")
    c.model.update(
        vocab_size=49152, num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
        max_seq_len=8192, norm="rmsnorm", position="rope", rope_theta=1e5, activation="swiglu", use_bias=False,
        loss_chunk_len=128,
    )  # fmt: skip
    c.data.seq_len = 96
    c.max_response = 24  # enough to see whether it refuses
    c.too_long = "cut"  # the model's own answers go on; where they are cut no end is learnt
    c.optimizer.weight_decay = 0.0
    c.checkpoint.checkpoint_every_steps = 30
    c.sft.update(
        num_steps=60, batch_size=5, learning_rate=5e-4, warmup_steps=2, data="jsonl:own.jsonl", log_every_steps=1,
        lora_rank=8, init_from="smollm2-135m-instruct",
    )  # fmt: skip
    c.dpo.update(
        num_steps=240, batch_size=6, learning_rate=2e-4, warmup_steps=5, data="jsonl:ranked.jsonl", log_every_steps=5,
        lora_rank=8,
    )  # fmt: skip
    return c
