"""Ctrl-C while a Learner learns: the first waits for the end of the step, where the state is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self

TORN = (
    "a step was broken off in its middle, or a state was restored in part: go on from a checkpoint,"
    " Learner.load(folder)"
)


class Held:
    """While entered, the first Ctrl-C is noted and raised by `check`, or at the end; a second one is obeyed at once.

    Only where Ctrl-C does what it does by default: a handler of one's own stays.

    Raises:
        KeyboardInterrupt: on leaving, if one was noted and nothing else is raised.
    """

    def __enter__(self) -> Self:
        self._asked = False
        here = threading.current_thread() is threading.main_thread()  # the only one that Python tells of signals
        self._ours = here and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        if self._ours:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, kind: object, *unused: object) -> None:
        if self._ours and signal.getsignal(signal.SIGINT) == self._note:  # an observer may have put in its own
            signal.signal(signal.SIGINT, signal.default_int_handler)
        if kind is None:
            self.check()

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self._asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def check(self) -> None:
        """Obey here, if Ctrl-C came."""
        if self._asked:
            self._asked = False
            raise KeyboardInterrupt
