"""Ctrl-C, without losing anything: finish what is half done, then stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, Self


class Stopped(Exception):  # noqa: N818 - it is no error
    """The user asked to stop, and it is a good moment."""


class StopRequest:
    """Inside the ``with`` block Ctrl-C (and SIGTERM) only leaves a note, which `check` reads between two steps.

    An exception in the middle of an update would leave some weights new and some old. Whoever is in a hurry presses Ctrl-C a
    second time, and is obeyed at once.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Raises Stopped if the user has asked to stop."""
        if self.requested:
            raise Stopped

    def __enter__(self) -> Self:
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
