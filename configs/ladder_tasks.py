"""Pass rates forecast on two CPU cores: small code tasks, and a target of 100 times the compute of the ladder.

    python -m gpt4jax.predict --config configs/ladder_tasks.py --workdir runs/ladder_tasks

Every decoder is asked to solve problems that no training text shows; its programs run against unit tests. The problems
are of names of a library (`gpt4jax.data.operations`), which are learnt one after the other. On described operations
decoders begin to copy constants all at once, between 1.6e11 and 6e11 FLOPs, which no law through smaller ones foresees.
Common names are one token, rare ones up to four. 30 minutes on two cores that had other work too. Of six buckets four
keep problems: -E[log p] forecast 4e-7, 7e-6, 0.0018, 0.091, measured 0, 0, 0, 0.093.
"""

from gpt4jax.scaling.ladder import default


def get_config():
    """The base shape and the ladder; keys and their meaning: gpt4jax/config.py and gpt4jax/scaling/ladder.py."""
    c = default()
    c.batch_size = 5  # at base_tokens
    c.model.update(
        vocab_size=512, num_layers=3, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=88,
        max_seq_len=96, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        init_std=0.1, parametrization="mup", base_embed_dim=32, base_num_layers=3, base_head_dim=16, layers="unroll",
    )  # fmt: skip
    c.data.dataset = "named_tasks:60"
    c.data.tokenizer = "bpe:512"
    c.data.seq_len = 96
    c.optimizer.update(learning_rate=1.56e-2, weight_decay=0.0, final_fraction=0.0)
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.update(num_rows=256, batch_size=64)
    c.ladder.update(
        target_compute=6.2e13, min_compute=1.6e11, max_compute=6.1e11, levels=4, ratios=(100.0,), seeds=3,
        target_seeds=1, min_layers=3, width_per_layer=1e6, base_tokens=1e6, batch_exponent=0.5, rate_exponent=-0.25,
        curve_points=4, problems_per_level=24, sample_budget=512, successes=32,
    )  # fmt: skip
    return c
