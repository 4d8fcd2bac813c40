"""SIGTERM and Ctrl-C as a request to stop at the next step."""

import os
import signal
from collections.abc import Callable
from types import FrameType

INTERRUPTED = 130  # the shell's status for Ctrl-C
TERMINATED = 143  # ... for SIGTERM


class Terminated(KeyboardInterrupt):
    """SIGTERM where it is raised as Ctrl-C is."""


class StopRequest:
    """While entered, SIGTERM and Ctrl-C are noted in `received`; with `insist`, a second Ctrl-C interrupts at once.

    Of several processes all must stop at the same step, whichever of them was signalled. There `together` decides: a
    function of a number that grows with each `poll`, which says whether all have agreed to stop there
    (`multihost_utils.reached_preemption_sync_point`). It has JAX's own handler of SIGTERM beneath it
    (`processes.notices`), which one of ours would silence; so Ctrl-C is passed on as SIGTERM.
    """

    def __init__(
        self,
        insist: bool = True,
        together: Callable[[int], bool] | None = None,
        on_poll: Callable[[], None] = lambda: None,
    ) -> None:
        self._insist, self._together, self._on_poll = insist, together, on_poll
        self.received: signal.Signals | None = None
        self._previous: dict[signal.Signals, object] = {}
        self._polls, self._noted = 0, signal.SIGTERM

    def __enter__(self) -> "StopRequest":
        numbers = (signal.SIGTERM, signal.SIGINT) if self._together is None else (signal.SIGINT,)
        for number in numbers:
            self._previous[number] = signal.signal(number, self._note) or signal.SIG_DFL
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def poll(self) -> bool:
        """Whether to stop here. Of several processes all must ask as often, between the same two steps."""
        self._polls += 1
        self._on_poll()
        if self._together is not None and self.received is None and self._together(self._polls):
            self.received = self._noted
        return self.received is not None

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._together is not None:
            self._noted = signal.Signals(number)
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if self._insist and self.received is signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
