"""Samples from a run or weights: `python -m gpt4jax.sample --workdir DIR --prompt TEXT`. The text goes to stdout."""

import argparse
import codecs
import sys
from collections.abc import Sequence

from gpt4jax import job
from gpt4jax.errors import UserError


def main(argv: Sequence[str]) -> int:
    """Reads the flags and writes the prompt's continuation as it comes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m gpt4jax.sample", description=__doc__.partition(":")[0] + ".")
    job.model_flags(parser)
    parser.add_argument("--prompt", required=True, help="the text to continue")
    parser.add_argument("--max_tokens", type=int, default=128, help="tokens at most (default %(default)s)")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: greedy (default %(default)s)")
    parser.add_argument("--top_k", type=int, default=0, help="only the k most likely; 0: all")
    parser.add_argument("--top_p", type=float, default=1.0, help="only the most likely that reach p together; 1: all")
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args(argv)
    if flags.max_tokens < 1 or flags.temperature < 0 or flags.top_k < 0 or not 0 < flags.top_p <= 1:
        raise UserError("--max_tokens must be at least 1, --temperature and --top_k at least 0, --top_p in (0, 1]")
    return sample(flags)


def sample(flags: argparse.Namespace) -> int:
    """Loads the model and streams the text."""
    from gpt4jax.inference.generate import generate

    loaded = job.load_model(flags)
    tokenizer = loaded.tokenizer
    if tokenizer is None:
        raise UserError(f"{loaded.source} has no tokenizer.json: without it there are no texts")
    ids = generate(
        loaded.config, loaded.params, tokenizer.prompt(flags.prompt), flags.max_tokens, temperature=flags.temperature,
        top_k=flags.top_k, top_p=flags.top_p, seed=flags.seed, stop=tokenizer.stops, vocab_size=tokenizer.vocab_size,
    )  # fmt: skip
    # A token may end inside a character: the decoder holds its bytes back until the rest has come.
    decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
    for token in ids:
        sys.stdout.write(decoder.decode(tokenizer.pieces[token]))
        sys.stdout.flush()
    sys.stdout.write(decoder.decode(b"", final=True) + "\n")
    return 0


if __name__ == "__main__":
    job.use_huge_pages()
    job.main(main)
