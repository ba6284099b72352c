"""Ctrl-C, or the end of the time: without losing anything, finish what is half done, then stop."""

from __future__ import annotations

import math
import signal
import threading
import time
from types import FrameType
from typing import Any, Self


class Stopped(Exception):  # noqa: N818 - it is no error
    """The user asked to stop, and it is a good moment."""


class TimeIsUp(Stopped):
    """The time that the user gave has passed."""


class StopRequest:
    """Inside the ``with`` block Ctrl-C (and SIGTERM) only leaves a note, which `check` reads between two steps.

    An exception in the middle of an update would leave some weights new and some old. Whoever is in a hurry presses Ctrl-C a
    second time, and is obeyed at once.

    Args:
        minutes: after how long to stop without being asked; None means never.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self.requested = False
        self._minutes = math.inf if minutes is None else minutes
        self._deadline = math.inf
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Raises Stopped if the user has asked to stop, TimeIsUp if the time has passed."""
        if self.requested:
            raise Stopped
        if time.monotonic() > self._deadline:
            raise TimeIsUp

    def __enter__(self) -> Self:
        self._deadline = time.monotonic() + 60 * self._minutes
        if threading.current_thread() is threading.main_thread():  # no other thread may handle signals
            self._previous = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
