"""Exports a run's parameters, or any weights: `python -m gpt4jax.export --workdir RUN --out DIR`.

DIR gets safetensors files, config.json and the tokenizer, as `transformers` reads them.
"""

import argparse
from collections.abc import Sequence

from gpt4jax import files, job


def main(argv: Sequence[str]) -> int:
    """Reads the flags and exports; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.export", description=__doc__.partition(":")[0] + ".")
    job.model_flags(parser)
    parser.add_argument(
        "--out", type=files.user_path, required=True, help="a folder that does not exist yet, or is empty"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="", help="of the tensors (default: as they are)"
    )
    flags = parser.parse_args(argv)
    return export(flags)


def export(flags: argparse.Namespace) -> int:
    """Loads the model, writes the folder and says what it holds."""
    from gpt4jax import weights

    out = files.local_folder(flags.out, "--out")
    weights.check_target(out)
    loaded = job.load_model(flags, flags.dtype)
    saved = weights.save(out, loaded.config, loaded.params, loaded.tokenizer, dtype=flags.dtype)
    print(f"{saved.tensors} tensors of {saved.parameters:,} parameters, {saved.bytes:,} bytes: {saved.architecture}")
    if saved.reason:
        print(f"no architecture of transformers expresses this decoder: {saved.reason}")
        print(f"gpt4jax alone loads it: python -m gpt4jax.sample --weights {out} --prompt TEXT")
    else:
        print(f"transformers.AutoModelForCausalLM.from_pretrained({str(out)!r})")
        if loaded.tokenizer is not None:
            print(f"transformers.AutoTokenizer.from_pretrained({str(out)!r})")
    return 0


if __name__ == "__main__":
    job.main(main)
