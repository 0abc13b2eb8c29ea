"""Ctrl-C while the command still imports PyTorch (seconds, on a small device): it ends at once, without a traceback.

Only where `sparcl` is the command; a program that imports the package keeps its own handling of signals.
"""

from __future__ import annotations

import signal
import sys
import threading
from itertools import pairwise
from pathlib import Path


def is_command() -> bool:
    """Whether this process is `sparcl ...` or `python -m sparcl ...`."""
    return Path(sys.argv[0] if sys.argv else "").name == "sparcl" or ("-m", "sparcl") in pairwise(sys.orig_argv)


def begin() -> bool:
    """From now on Ctrl-C ends the process; whether that was changed, for `end`."""
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else it is ignored, or another's
    if not (usual and is_command() and threading.current_thread() is threading.main_thread()):
        return False
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    return True


def end(changed: bool) -> None:
    """All is imported: from now on Ctrl-C is an exception again, which the command sees to."""
    if changed:
        signal.signal(signal.SIGINT, signal.default_int_handler)
