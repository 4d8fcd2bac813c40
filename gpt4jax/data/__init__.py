"""Text data: corpora, tokenizers, packing and the rows of a step."""
