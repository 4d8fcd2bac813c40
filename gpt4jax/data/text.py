"""From the config group `data` to a tokenizer and rows."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from gpt4jax import files
from gpt4jax.data import cache, corpora, is_utf8, stream, tokenizer
from gpt4jax.errors import UserError
from gpt4jax.parallel import processes


class TextData(NamedTuple):
    """A tokenizer, the rows of each split, and what identifies them (kept as `data.json` beside a run).

    Of the layout "packed" there are `rows`, of "stream" there are `documents`. `asked` has rows of questions whose
    answers are counted: "" as they are, "_blind" without their images.
    """

    tokenizer: tokenizer.Tokenizer
    rows: dict[str, Any]
    documents: dict[str, stream.Documents]
    facts: dict[str, Any]
    asked: dict[str, Any] = {}  # noqa: RUF012 # of a NamedTuple: nobody writes into it

    def of(self, split: str) -> Any:
        """What the batches of a split are made of, in the layout of the run."""
        return self.rows[split] if self.rows else self.documents[split]


def load(
    options: Any,
    vocab_size: int,
    cache_dir: files.Path,
    say: Callable[[str], None],
    foreign: tokenizer.Tokenizer | None = None,
) -> TextData:
    """Prepares what is not yet prepared, and says what was left out or split.

    `foreign` is the tokenizer of weights, in place of the one that the options name.

    Raises:
        UserError: no such data set or tokenizer, no usable document, a vocabulary above the model's.
    """
    corpus = processes.first_then_others(lambda: corpora.prepare(options, files.on_disk(cache_dir)))
    for line in corpus.skipped:
        say(f"{options.dataset}: skipped {line}")

    def train_texts() -> Iterator[str]:
        size = 0
        for text in corpus.splits["train"]:
            if is_utf8(text):
                yield text.decode()
            size += len(text)
            if size >= tokenizer.BPE_TRAIN_BYTES:
                return

    tok = foreign or processes.first_then_others(
        lambda: tokenizer.get(options.tokenizer, cache_dir, train_texts, corpus.fingerprint)
    )
    if tok.vocab_size > vocab_size:
        raise UserError(f"tokenizer {tok.name} has {tok.vocab_size} ids, above model.vocab_size {vocab_size}")
    folder = cache.cache_folder(cache_dir, corpus.name, corpus.fingerprint, tok, options.shard_bytes)
    facts: dict[str, Any] = {"dataset": corpus.name, "fingerprint": corpus.fingerprint, "tokenizer": tok.name}
    facts["tokenizer_fingerprint"] = tok.fingerprint
    rows: dict[str, cache.PackedRows] = {}
    streams: dict[str, stream.Documents] = {}
    together = processes.joined() and processes.see_the_same(folder)
    if processes.joined() and not together:
        say(f"{folder} is not one folder for all processes (data.cache_dir): each makes all of it for itself")
    for split, documents in corpus.splits.items():
        share, wait = (processes.share(), processes.wait) if together else ((0, 1), lambda: None)
        built = cache.build(documents, tok, folder / split, options.shard_bytes, share, wait)
        facts[split] = built.totals
        if options.layout == "stream":
            streams[split] = cache.documents(built, tok, options.seq_len)
            shape = f"streams in rows of {options.seq_len}"
        else:
            cache.plan_rows(built, options.seq_len, share)
            wait()
            rows[split] = cache.PackedRows(built, tok, options.seq_len)
            shape = f"{len(rows[split]):,} rows of {options.seq_len}"
        totals = built.totals
        if built.not_utf8:
            some = ", ".join(map(str, built.not_utf8[:20])) + (", ..." if len(built.not_utf8) > 20 else "")
            say(f"{options.dataset} {split}: {len(built.not_utf8)} documents skipped as not UTF-8: {some}")
        cut = totals["parts"] - totals["documents"]
        say(
            f"{options.dataset} {split}: {totals['documents']:,} documents, {totals['bytes']:,} bytes, "
            f"{totals['pairs']:,} tokens of {tok.name}, {shape}"
            + (f"; {totals['empty']} empty documents skipped" if totals["empty"] else "")
            + (f"; {cut} more parts of documents above data.shard_bytes" if cut else "")
        )
    return TextData(tok, rows, streams, facts)
