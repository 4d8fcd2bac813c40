"""`gzip -9` and `xz -9` on the held-out documents of a data set, in one stream: bits per byte.

    python -m tests.bench.compression [--dataset python_stdlib]

The mark for the quickstart's held-out bits per byte. Documents in the order in which evaluation reads them.
"""

import argparse
import gzip
import lzma

from gpt4jax import config as configuration
from gpt4jax import files
from gpt4jax.data import corpora


def main() -> None:
    """Prints both figures."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--dataset", default="python_stdlib")
    flags = parser.parse_args()
    options = configuration.default().data.copy_and_resolve_references()
    options.dataset = flags.dataset
    documents = corpora.prepare(options, files.cache_dir()).splits["eval"]
    stream = b"".join(documents[i] for i in range(len(documents)))
    print(f"{len(documents)} documents, {len(stream):,} bytes")
    for name, packed in (("gzip -9", gzip.compress(stream, 9)), ("xz -9", lzma.compress(stream, preset=9))):
        print(f"{name}: {8 * len(packed) / len(stream):.4f} bits/byte")


if __name__ == "__main__":
    main()
