"""Our own tokenizers as `tokenizer.json`, the format of Hugging Face's library."""

from collections.abc import Mapping

END = "<|endoftext|>"


def _byte_alphabet() -> tuple[str, ...]:
    """GPT-2's printable stand-in for each byte: itself if printable Latin-1, else the next of U+0100 onwards."""
    printable = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


ALPHABET = _byte_alphabet()


def of_ranks(ranks: Mapping[bytes, int], end: int, pattern: str | None) -> str:
    """A byte-level BPE from ranks, as tiktoken has them: a piece's id is also the order of the merge that makes it.

    tiktoken joins any two neighbours whose bytes together are a piece, lowest rank first. So each way to cut
    a piece into two pieces is a merge here, and a word that is a piece is taken whole.

    Args:
        ranks: id of each piece.
        end: the id of the end-of-text token.
        pattern: what splits a text into words; None: nothing does.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    def shown(piece: bytes) -> str:
        return "".join(ALPHABET[byte] for byte in piece)

    merges = []
    for piece, _ in sorted(ranks.items(), key=lambda item: item[1]):
        cuts = [(piece[:i], piece[i:]) for i in range(1, len(piece))]
        cuts = [(left, right) for left, right in cuts if left in ranks and right in ranks]
        cuts.sort(key=lambda cut: (ranks[cut[0]], ranks[cut[1]]))
        merges += [(shown(left), shown(right)) for left, right in cuts]
    vocabulary = {shown(piece): rank for piece, rank in ranks.items()} | {END: end}
    fast = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = (
        words if pattern is None else pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), words])
    )
    fast.decoder = decoders.ByteLevel()
    fast.add_special_tokens([AddedToken(END, special=True, normalized=False)])
    return started(fast)


def started(fast) -> str:
    """The `tokenizer.json` of a tokenizer, with the end of text before each text, as our models were trained."""
    fast.post_processor = prefixed(END, fast.token_to_id(END))
    return fast.to_str()


def prefixed(token: str | None, token_id: int | None):
    """A post-processor that puts one special token, or none, before each text."""
    from tokenizers import processors

    if token is None:
        return processors.TemplateProcessing(single="$A", pair="$A $B:1", special_tokens=[])
    pair = f"{token} $A {token}:1 $B:1"
    return processors.TemplateProcessing(single=f"{token} $A", pair=pair, special_tokens=[(token, token_id)])
