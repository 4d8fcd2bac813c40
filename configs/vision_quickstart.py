"""Trains a small decoder that reads drawn charts, words and scenes, and answers questions about held-out ones.

python -m gpt4jax.train --config configs/vision_quickstart.py --workdir runs/vision_quickstart

Two cores, float32: 4 to 8 minutes with drawing, tokenizing and compiling. What is answered right of held-out pictures,
and without them: README, "Images".
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 6500
    c.batch_size = 2  # 512 tokens a step: many small steps learn sooner to look than few large ones
    c.model.update(
        vocab_size=384, num_layers=4, embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=384,
        max_seq_len=256, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, qk_norm=True,
        attention=("induction", "dense", "dense", "dense"),  # the first reads what followed earlier copies of a token
        init_std=0.06,  # nearly embed_dim^-0.5: layers change what they read from the start
        layers="unroll",
    )  # fmt: skip
    c.vision.update(frontend="linear", image_token=377, patch_size=16, max_patches=12)
    c.data.update(dataset="rendered:20000", tokenizer="bpe:376", seq_len=256, row_patches=80, row_images=12)
    c.optimizer.learning_rate = 2e-3
    c.optimizer.beta2 = 0.98
    c.optimizer.weight_decay = 0.05
    c.optimizer.final_fraction = 0.0
    c.checkpoint.checkpoint_every_steps = 0
    c.eval.eval_every_steps = 3250
    c.eval.log_every_steps = 200
    c.eval.batch_size = 16
    c.eval.sample_prompt = ""
    return c
