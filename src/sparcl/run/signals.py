"""SIGTERM, SIGHUP and Ctrl-C: the first asks training to stop at the end of its step, the second ends the process.

Output that nobody reads any more (`| head -1`, a closed terminal) asks for the same, as a SIGPIPE.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from sparcl.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PLACES = ("step.end", "evaluate.batch", "latents.batch")
"""Events at which a run may stop: the Learner's state is whole there."""


class StopRequest:
    """While entered, the first signal is noted; as an observer it raises `Stopped` where a run may next stop.

    Args:
        deserted: says whether nobody reads the output any more.

    Attributes:
        training: whether there is anything to finish and save; before that a signal is obeyed on the spot, or, where
            that was lost (in a finalizer, whose exceptions Python drops), at the next `check`.
    """

    def __init__(self, deserted: Callable[[], bool] = lambda: False) -> None:
        self.signal: int | None = None
        self.training = False
        self._deserted = deserted
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # the only one that Python tells of signals
            # nohup lets SIGHUP be ignored, and so it stays
            heard = [n for n in SIGNALS if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
            self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *unused: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        del frame
        self.signal = number
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # a closed terminal sends it twice, by the shell and the kernel
        if not self.training:
            raise Stopped(number)

    def check(self) -> None:
        """Stop here if a signal came.

        Raises:
            Stopped: it did, or the output is read no more.
        """
        if self.signal is None and self._deserted():
            self.signal = signal.SIGPIPE
        if self.signal is not None:
            raise Stopped(self.signal)

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        del figures
        if event in PLACES:
            self.check()
