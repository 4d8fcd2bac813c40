"""Trains two towers on one vendor's emoji and their names (CLIP), and has them name another vendor's.

python -m gpt4jax.train --config configs/clip_emoji.py --workdir runs/clip_emoji

Two cores, float32, 8 minutes (one run): of 1,911 names it gives another vendor's emoji theirs in 21.0% first, in 40.2%
among the first five; chance is 0.05% and 0.26%.
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 3600
    c.batch_size = 128
    c.model.update(  # the text's tower
        vocab_size=1028, num_layers=2, embed_dim=128, num_heads=4, num_kv_heads=4, head_dim=32, mlp_dim=384,
        max_seq_len=65, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, layers="unroll",
    )  # fmt: skip
    c.vision.update(
        frontend="vit", image_token=1025, patch_size=16, max_patches=16, num_layers=4, embed_dim=128, num_heads=4,
        mlp_dim=512, class_token=True, clip_dim=128,
    )  # fmt: skip
    c.data.update(dataset="emoji:google", eval_split="emoji:twitter", tokenizer="bpe:1024", seq_len=24)
    c.optimizer.learning_rate = 2e-3
    c.optimizer.beta2 = 0.98  # CLIP's, as is the next one
    c.optimizer.eps = 1e-6
    c.optimizer.weight_decay = 0.2
    c.optimizer.final_fraction = 0.0
    c.checkpoint.checkpoint_every_steps = 0
    c.eval.eval_every_steps = 900
    c.eval.log_every_steps = 100
    c.eval.sample_prompt = ""
    return c
