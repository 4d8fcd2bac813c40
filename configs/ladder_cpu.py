"""A forecast on two CPU cores: small decoders on packages' source code, and a target of 100 times their compute.

    python -m gpt4jax.predict --config configs/ladder_cpu.py --workdir runs/ladder_cpu

The first start fetches 233 MB of packages. It took 35 minutes: registered 2.9772, measured 2.9187 nats/token (+2.0%).
All decoders are three layers deep and differ in width alone. The first layer is given the pattern of induction heads:
small decoders do not learn to copy from their context, larger ones do, and no law through the small ones foresees it.
The learning rate's best values are 0.0135 and 0.0138 at 0.9 and 2.7 million tokens (parabolas through three rates) and
0.017 at 5.3 million (two rates and the others' curvature).
"""

from gpt4jax.scaling.ladder import default


def get_config():
    """The base shape and the ladder; keys and their meaning: gpt4jax/config.py and gpt4jax/scaling/ladder.py."""
    c = default()
    c.batch_size = 4  # at base_tokens: small models want many small steps
    c.model.update(
        vocab_size=1024, num_layers=3, embed_dim=32, num_heads=2, num_kv_heads=2, head_dim=16, mlp_dim=88,
        max_seq_len=128, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        init_std=0.1, parametrization="mup", base_embed_dim=32, base_num_layers=3, base_head_dim=16, layers="unroll",
        attention=("induction", "dense", "dense"),
    )  # fmt: skip
    c.data.dataset = "python_packages"
    c.data.tokenizer = "bpe:1024"
    c.data.seq_len = 128
    c.optimizer.update(learning_rate=1.35e-2, weight_decay=0.0, final_fraction=0.0)
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.update(num_rows=1024, batch_size=64)
    c.ladder.update(
        target_compute=1.05e14, min_compute=4e10, max_compute=1e12, levels=12, ratios=(100.0,), seeds=5,
        seeds_exponent=0.25, target_seeds=1, min_layers=3, width_per_layer=1000.0, base_tokens=1e6, batch_exponent=0.5,
        rate_exponent=-0.1, curve_points=6,
    )  # fmt: skip
    return c
