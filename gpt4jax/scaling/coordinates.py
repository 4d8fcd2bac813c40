"""The coordinate check of muP: `python -m gpt4jax.scaling.coordinates --config configs/mup.py --workdir DIR`.

After a few steps of Adam the activations inside the decoder must have changed as much at every width (Yang et al.
2022, appendix D.1). DIR gets coordinates.json and coordinates.png.
"""

import argparse
import json
import math
import pathlib
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gpt4jax import config as configuration
from gpt4jax import files, job, model
from gpt4jax.errors import UserError
from gpt4jax.model import layers, mup, position
from gpt4jax.model.parameters import Params
from gpt4jax.scaling import sweep
from gpt4jax.training import optimizer, state, step
from gpt4jax.training.step import Batch

PLACES = ("embedding", "scores", "attention", "mlp", "features", "logits")


def activations(config: model.Config, params: Params, tokens_bt: jax.Array) -> dict[str, jax.Array]:
    """What the check looks at, of a decoder with rotary positions and RMSNorm.

    The embedding; the last block's attention scores before the mask, and what its two branches add to the stream; the
    last hidden states; the logits.

    Raises:
        UserError: a decoder with what this check does not look at.
    """
    plain: dict[str, Any] = {"norm": "rmsnorm", "position": "rope", "use_bias": False, "qk_norm": False}
    plain |= {"attention": ("dense",), "attention_soft_cap": 0.0}
    if other := [f"model.{name}={getattr(config, name)}" for name, v in plain.items() if getattr(config, name) != v]:
        raise UserError(f"the coordinate check knows decoders with {plain} only, not {', '.join(other)}")
    positions_bt = jnp.arange(tokens_bt.shape[1])[None]
    cos_sin = position.rope_angles(config, positions_bt)
    rows = layers.Rows(positions_bt, None, cos_sin)
    by = mup.multipliers(config)
    x_btd = params["embed"]["token_vd"][tokens_bt]
    out = {"embedding": x_btd}
    for i in range(config.num_layers):
        p = {name: leaf[i] for name, leaf in params["layers"].items()}
        y_btd = layers.norm(config, x_btd, p["attention_norm_d"], None)
        q_btnh = position.rotate(layers.linear(y_btd, p["query_dnh"], None), *cos_sin)
        k_btkh = position.rotate(layers.linear(y_btd, p["key_dkh"], None), *cos_sin)
        k_btnh = jnp.repeat(k_btkh, config.num_heads // config.num_kv_heads, axis=2)
        scale = by.attention / math.sqrt(config.head_dim)
        out["scores"] = scale * jnp.einsum("btnh,bsnh->bnts", q_btnh, k_btnh)
        out["attention"] = by.residual * layers.self_attention(config, "dense", p, y_btd, rows, None)[0]
        x_btd = x_btd + out["attention"]
        out["mlp"] = by.residual * layers.mlp(config, p, layers.norm(config, x_btd, p["mlp_norm_d"], None))
        x_btd = x_btd + out["mlp"]
    out["features"] = layers.norm(config, x_btd, params["final"]["norm_d"], None)
    out["logits"] = model.unembed(config, params, out["features"])
    return out


def changes(config: model.Config, options, data: Batch, seed: int) -> dict[str, list[float]]:
    """The root mean square, by place, of how much activations on the first batch have changed after each step."""
    num_steps = data.tokens_bt.shape[0]
    tx, schedule = optimizer.adamw(options, config, num_steps), optimizer.schedule(options, num_steps)
    train = jax.jit(partial(step.train_step, config, tx, schedule, seed=0))
    look = jax.jit(partial(activations, config))
    now = jax.jit(partial(state.new_state, config, tx))(seed)
    before = look(now.params, data.tokens_bt[0])
    out: dict[str, list[float]] = {place: [] for place in PLACES}
    for i in range(num_steps):
        now, _ = train(now, jax.tree.map(lambda leaf, i=i: leaf[i], data))
        after = look(now.params, data.tokens_bt[0])
        for place in PLACES:
            out[place].append(float(jnp.sqrt(jnp.mean(jnp.square(after[place] - before[place])))))
    return out


def slope(by_width: Mapping[int, Sequence[float]]) -> float:
    """The exponent p of sizes proportional to width^p, by least squares of logarithms; 0 is flat."""
    points = np.log([(width, size) for width, sizes in by_width.items() for size in sizes])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def main(argv: Sequence[str]) -> int:
    """Reads the flags, measures both parametrisations at each width and draws them; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.scaling.coordinates", description="muP's coordinate check")
    job.config_flags(parser)
    flags, overrides = job.parse(parser, argv)
    config = configuration.load(flags.config, overrides, sweep.default)
    workdir = files.local_folder(flags.workdir, "--workdir")
    check = config.sweep
    shapes = sweep.shapes(config, [(width, config.model.num_layers) for width in check.coordinate_widths])
    rows = sweep.load(config, job.say).rows["train"]
    data = [sweep.batches(rows, config, check.coordinate_steps, seed) for seed in range(check.seeds)]
    options = config.optimizer.copy_and_resolve_references()
    options.update(schedule="warmup_cosine", warmup_steps=0, final_fraction=1.0)  # the full rate from the first step
    measured: dict[str, dict[int, dict[str, list[float]]]] = {"mup": {}, "standard": {}}
    for (name, width, _), shape in shapes.items():
        runs = [changes(shape, options, batches, seed) for seed, batches in enumerate(data)]
        measured[name][width] = {place: [run[place][-1] for run in runs] for place in PLACES}
        job.say(f"{name} {width}: " + ", ".join(f"{p} {np.mean(v):.3g}" for p, v in measured[name][width].items()))
    report = {
        name: {place: slope({width: places[place] for width, places in at.items()}) for place in PLACES}
        for name, at in measured.items()
    }
    workdir.mkdir(parents=True, exist_ok=True)
    files.replace(workdir / "coordinates.json", json.dumps({"slopes": report, "changes": measured}, indent=1) + "\n")
    from gpt4jax.scaling import figures

    figures.coordinates(measured, PLACES, pathlib.Path(workdir) / "coordinates.png")
    print("exponent of the width in the size of changes (0: flat)")
    for name, exponents in report.items():
        print(f"{name:9s}" + ", ".join(f"{place} {value:+.2f}" for place, value in exponents.items()))
    return 0


if __name__ == "__main__":
    job.main(main)
