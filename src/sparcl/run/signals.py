"""SIGTERM and Ctrl-C: the first asks training to stop at the end of its step, the second ends the process at once."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

from sparcl.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
PLACES = ("step.end", "evaluate.batch")
"""Events at which a run may stop: the Learner's state is whole there."""


class StopRequest:
    """While entered, the first signal is noted; as an observer it raises `Stopped` where a run may next stop.

    Attributes:
        training: whether there is anything to finish and save; before that a signal is obeyed on the spot.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self.training = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # the only one that Python tells of signals
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
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
        if not self.training:
            raise Stopped(number)

    def __call__(self, event: str, figures: dict[str, Any]) -> None:
        del figures
        if self.signal is not None and event in PLACES:
            raise Stopped(self.signal)
