"""From tokens to text as they come: whole characters only, and nothing that may turn out to be a stop text."""

import codecs
from collections.abc import Sequence


class TextStream:
    """The text of one continuation.

    A token may end inside a character, and a stop text may be spread over several tokens: what is not yet
    certain is held back.
    """

    def __init__(self, pieces: Sequence[bytes], stop: Sequence[str] = ()):
        self._pieces, self._stop = pieces, stop
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._held = ""
        self.stopped = False

    def feed(self, token: int) -> str:
        """The text that one more token makes certain; `stopped` says whether a stop text ended it."""
        return self._take(self._decoder.decode(self._pieces[token]), last=False)

    def end(self) -> str:
        """What was still held back. Bytes that are no UTF-8 become U+FFFD."""
        return self._take(self._decoder.decode(b"", final=True), last=True)

    def _take(self, new: str, last: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        # The stop text that is complete first ends the text: so it does not matter where tokens end.
        found = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self.stopped = True
            return text[: min(found)[1]]
        keep = 0 if last else max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, stop: str) -> int:
    """The length of the longest end of `text` with which `stop` begins, short of all of it."""
    longest = min(len(text), len(stop) - 1)
    return next((n for n in range(longest, 0, -1) if text.endswith(stop[:n])), 0)
