"""Continues `long_8k` with rows of 32,768 tokens: rotary positions scaled fourfold by YaRN, a twentieth of the steps.

    python -m gpt4jax.train --config configs/long_32k.py --workdir runs/long_32k \\
        --config.data.dataset=python_packages --config.init_from=runs/long_8k

Peng et al. 2023 (YaRN) continue for 400 steps. One GPU or a TPU host: not measured. Not run at full size yet.
"""

import pathlib

from gpt4jax import config


def get_config():
    """The config of this run; every key and its meaning: gpt4jax/config.py."""
    c = config.load(str(pathlib.Path(__file__).with_name("long_8k.py")))
    c.init_from = "runs/long_8k"
    c.num_steps = 500
    c.batch_size = 8
    c.model.max_seq_len = 32_768
    c.model.rope_scaling, c.model.rope_factor, c.model.rope_original_max_len = "yarn", 4.0, 8192
    c.data.seq_len = 32_768
    c.optimizer.learning_rate = 1e-4
    c.optimizer.warmup_steps = 20
    c.checkpoint.checkpoint_every_steps = 100
    c.eval.eval_every_steps = 100
    return c
