"""SIGTERM and Ctrl-C as a request to stop at the next step."""

import signal
from types import FrameType

INTERRUPTED = 130  # the shell's status for Ctrl-C
TERMINATED = 143  # ... for SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM where it is raised as Ctrl-C is."""


class StopRequest:
    """While entered, SIGTERM and Ctrl-C are noted in `received`; with `insist`, a second Ctrl-C interrupts at once."""

    def __init__(self, insist: bool = True) -> None:
        self._insist = insist
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._insist and self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
