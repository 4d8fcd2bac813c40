"""An 8B decoder with eyes on a TPU pod slice: Llama 3's shape, a ViT-L and a resampler, as Flamingo and KOSMOS-1 have.

    python -m gpt4jax.train --config configs/pod_vision_8b.py --workdir DIR --config.data.dataset=YOURS
    python -m gpt4jax.plan --config configs/pod_vision_8b.py --topology v5p:4x4x4

The data are yours: `interleaved:FILE.jsonl`, a TFDS set with `data.image_feature`, and texts, with "+" between them. A
step has 256 rows of 4,096 tokens with up to 16 images each, every image 256 patches and 64 tokens. Planned, by the
cost model, not measured: v5p:4x4x4 20.2 of 88.5 GiB, 3.3 s, 52% MFU (of the decoder's FLOPs).
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 100_000
    c.batch_size = 256
    c.model.update(
        vocab_size=100_352, num_layers=32, embed_dim=4096, num_heads=32, num_kv_heads=8, head_dim=128, mlp_dim=14_336,
        max_seq_len=4096, norm="rmsnorm", position="rope", activation="swiglu", use_bias=False, tie_embeddings=False,
        rope_theta=500_000.0, dtype="bfloat16", remat="full", loss_chunk_len=512,
    )  # fmt: skip
    c.vision.update(
        frontend="resampler", image_token=100_278, patch_size=14, max_patches=256, num_layers=24, embed_dim=1024,
        num_heads=16, mlp_dim=4096, resampler_layers=6, resampler_len=64,
    )  # fmt: skip
    c.data.update(dataset="", tokenizer="cl100k_base", seq_len=4096, row_patches=4096, row_images=16)
    c.optimizer.update(learning_rate=3e-4, warmup_steps=2000, weight_decay=0.1)
    c.mesh.update(data=1, fsdp=-1)
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.update(eval_every_steps=2000, num_rows=512, sample_prompt="")
    return c
