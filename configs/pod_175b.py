"""GPT-3 175B's shape (Brown et al. 2020, table 2.1) on a TPU pod slice, dense and banded attention alternating.

python -m gpt4jax.train --config configs/pod_175b.py --workdir DIR --config.data.dataset=YOURS
python -m gpt4jax.plan --config configs/pod_175b.py --topology v5p:8x8x8

On v6e:16x16 it takes 27.6 of 32.0 GiB (86%) and compiles in 49 s on two busy cores; by the cost model, not measured, a
step is 12.2 s, 39% MFU. v5p:8x8x8 has room for twice the rows (--config.batch_size=1024): 33.3 of 88.5 GiB, compiled in
51 s, 18.6 s a step, 51% MFU. Collectives over fsdp take much of both: 12,288 columns in 256 or 512 pieces are no
multiples of 128, and XLA sums padded copies instead of gathering. With --config.mesh.tensor=8 there it is 25.3 GiB,
17.7 s, 54%.
"""

from gpt4jax.config import default


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = default()
    c.num_steps = 95_000
    c.batch_size = 512
    c.model.update(
        vocab_size=100_352, num_layers=96, embed_dim=12_288, num_heads=96, num_kv_heads=96, head_dim=128,
        mlp_dim=49_152, max_seq_len=2048, attention=("dense", "banded:256"), dtype="bfloat16", remat="full",
        loss_chunk_len=512,
    )  # fmt: skip
    c.data.update(dataset="", tokenizer="cl100k_base", seq_len=2048)
    c.optimizer.update(learning_rate=0.6e-4, warmup_steps=2000, weight_decay=0.1)
    c.mesh.update(data=1, fsdp=-1)
    c.checkpoint.checkpoint_every_steps = 1000
    c.eval.update(eval_every_steps=2000, num_rows=512, sample_prompt="")
    return c
