"""Stop training after Ctrl-C, another signal, or a time limit, never with weights of which only some are updated."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any, Self


class Stopped(KeyboardInterrupt):
    """The user has asked to stop, and no update is half done. As for any KeyboardInterrupt, `Workers` do not wait for what is running."""


class TimeIsUp(Stopped):
    """The time that the user gave has passed."""


class StopRequest:
    """Inside the ``with`` block Ctrl-C (SIGINT), SIGTERM and SIGHUP, where they exist, only set a flag; `check` reads it.

    An exception in the middle of an update would leave some weights new and some old. Work that changes none, such as an evaluation or a
    gradient, need not be finished: within `interruptible`, the first signal ends it at once. A second Ctrl-C ends the program at once. The
    other signals come from programs, and several programs may send the same signal when a terminal is closed, so a second one changes
    nothing. A signal that is ignored when the block begins (because of ``nohup``, for example) stays ignored.

    Args:
        minutes: the time limit; None means no limit.
    """

    SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))

    def __init__(self, minutes: float | None = None) -> None:
        self.requested = False
        self._minutes = math.inf if minutes is None else minutes
        self._deadline = math.inf
        self._depth = 0
        self._interruptible = False
        self._previous: dict[int, Any] = {}

    def check(self) -> None:
        """Raise Stopped if the user has asked to stop, TimeIsUp if the time limit has passed."""
        if self.requested:
            raise Stopped
        if time.monotonic() > self._deadline:
            raise TimeIsUp

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside the ``with`` block a signal raises Stopped in the main thread, whatever it is doing."""
        self._interruptible = True
        try:
            self.check()
            yield
        finally:
            self._interruptible = False

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth > 1:
            return self  # the caller of `Trainer.train` may hold it for longer, until all is saved
        self._deadline = time.monotonic() + 60 * self._minutes
        if threading.current_thread() is threading.main_thread():  # only the main thread may set handlers
            caught = [number for number in self.SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
            self._previous = {number: signal.signal(number, self._handle) for number in caught}
        return self

    def __exit__(self, *exception: object) -> None:
        self._depth -= 1
        if not self._depth:
            for number, handler in self._previous.items():
                signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.requested:
            self.requested = True
            again = "; Ctrl-C once more ends at once" if number == signal.SIGINT else ""
            _write_to_stderr(f"\n{signal.Signals(number).name}: stopping and saving{again}.\n")
            if self._interruptible:
                raise Stopped


def _write_to_stderr(text: str) -> None:
    """Write to standard error without its buffer, which may be in use in the moment when the signal comes."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # there may be none
        os.write(sys.stderr.fileno(), text.encode())
