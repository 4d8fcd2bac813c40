"""configs/ladder_cpu.py with a longer ladder and a larger target: two runs of 3.3e14 FLOPs, side by side.

    python -m gpt4jax.predict --config configs/ladder_cpu_long.py --workdir runs/ladder_cpu_long

Forecast from runs of at most a hundredth and of at most a thousandth of its compute: 3.2% too high and 17% too low. 33
minutes for the ladder and 131 for both targets, on two cores that had other work too.
"""

import pathlib

from gpt4jax import config
from gpt4jax.scaling.ladder import default


def get_config():
    """The same recipe; a longer ladder, a larger target, two seeds of it."""
    c = config.load(str(pathlib.Path(__file__).with_name("ladder_cpu.py")), (), default)
    c.ladder.update(
        target_compute=3.3e14, max_compute=3.2e12, levels=24, ratios=(100.0, 1000.0), seeds=4, target_seeds=2
    )
    return c
