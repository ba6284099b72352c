"""Ctrl-C, or the end of the time: without losing anything, finish what is half done, then stop."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from types import FrameType
from typing import Any, Self


class Stopped(Exception):  # noqa: N818 - it is no error
    """The user asked to stop, and it is a good moment."""


class TimeIsUp(Stopped):
    """The time that the user gave has passed."""


class StopRequest:
    """Inside the ``with`` block Ctrl-C (and SIGTERM, and SIGHUP, where there are such) only leaves a note, which `check` reads
    between two steps.

    An exception in the middle of an update would leave some weights new and some old. Whoever is in a hurry presses Ctrl-C a second time,
    and is obeyed at once. The other signals come from programs, several of which may send the same one when a terminal is closed: a second
    one changes nothing. A signal that the program was told to ignore (by ``nohup``, say) stays ignored.

    Args:
        minutes: after how long to stop without being asked; None means never.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self, minutes: float | None = None) -> None:
        self.requested = False
        self._minutes = math.inf if minutes is None else minutes
        self._deadline = math.inf
        self._depth = 0
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Raises Stopped if the user has asked to stop, TimeIsUp if the time has passed."""
        if self.requested:
            raise Stopped
        if time.monotonic() > self._deadline:
            raise TimeIsUp

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth > 1:
            return self  # who calls `train` may hold it for longer, until all is saved
        self._deadline = time.monotonic() + 60 * self._minutes
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            heard = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            again = "; Ctrl-C once more ends at once" if number == signal.SIGINT else ""
            _say(f"\n{signal.Signals(number).name}: stopping after this step, and saving{again}.\n")


def _say(text: str) -> None:
    """To standard error, but past its buffer: that may be half written to at the moment when a signal comes."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there may be none
        os.write(sys.stderr.fileno(), text.encode())
