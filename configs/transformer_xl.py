"""Trains a small Transformer-XL on the running Python's own library: rows of 64 tokens, each behind a memory of 64.

    python -m gpt4jax.train --config configs/transformer_xl.py --workdir runs/transformer_xl
    python -m tests.bench.memory runs/transformer_xl

One core of an AMD EPYC (Zen 4), jax 0.10.2: 3,400 tokens/s in its first steps, while nothing else ran there, at which
it would take 7 min; the run measured here shared the core and took 16 min 52 s. One seed, held-out files:

    behind a memory of 64, as in training                 3.955 nats/token, 1.528 bits/byte
    the same parameters without a memory                  4.136             1.598
    trained and evaluated without (model.memory_len=0)    4.102             1.585
    behind a memory of 128, 256, 512                      3.955, 3.960, 3.968 nats/token
    ... with distances clamped to 127 (--clamp_len 127)   3.955, 3.961, 3.972

A longer memory than in training gives nothing here, whether or not the distances that training never had are clamped.
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 1200
    c.batch_size = 16  # rows that each go on in a stream of their own: 1,024 tokens a step
    c.model.update(
        vocab_size=4096, num_layers=4, embed_dim=192, num_heads=3, num_kv_heads=3, head_dim=64, mlp_dim=512,
        max_seq_len=64, norm="rmsnorm", position="transformer_xl", memory_len=64, activation="swiglu", use_bias=False,
        layers="unroll",
    )  # fmt: skip
    c.data.seq_len = 64
    c.data.layout = "stream"
    c.optimizer.learning_rate = 1.5e-3
    c.optimizer.beta2 = 0.98
    c.optimizer.final_fraction = 0.0
    c.checkpoint.checkpoint_every_steps = 400
    c.eval.eval_every_steps = 400
    c.eval.log_every_steps = 40
    c.eval.sample_prompt = ""  # the engine that decodes has no Transformer-XL memory
    return c
