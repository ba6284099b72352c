"""Writing to standard output and standard error, which may be closed, full, or a terminal that no longer exists.

A training run goes on when nobody can read what it prints: it uses `ignore_write_errors`. A program whose result is its output has failed
when that cannot be written: `watch_stream` tells whether an error came from there.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, TextIO

StreamName = Literal["stdout", "stderr"]
ErrorHandler = Callable[[Exception], None]


class WatchedStream:
    """``stream``, with the last error of a write to it.

    Args:
        forgives: drop what cannot be written, and everything after the first error; otherwise the error is raised, too.
        failed: called with the first error.

    Attributes:
        error: the latest one; with ``ignores_errors`` there is no second one.
    """

    def __init__(self, stream: TextIO, ignores_errors: bool, on_error: ErrorHandler = lambda error: None) -> None:
        self._stream, self._forgives, self._failed = stream, ignores_errors, on_error
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        """Write ``text``."""
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self._attempt(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _attempt(self, action: Callable[[], Any]) -> None:
        if self._forgives and self.error:
            return
        try:
            action()
        except (OSError, ValueError) as error:  # a ValueError means that the stream is closed
            self.error = error
            if not self._forgives:
                raise
            redirect_to_null(self._stream)
            self._failed(error)


@contextlib.contextmanager
def watch_stream(name: StreamName, ignores_errors: bool = False, on_error: ErrorHandler = lambda error: None) -> Iterator[WatchedStream]:
    """Inside the ``with`` block ``sys.<name>`` is a `WatchedStream`."""
    stream = getattr(sys, name)
    setattr(sys, name, WatchedStream(stream, ignores_errors, on_error))
    try:
        yield getattr(sys, name)
    finally:
        setattr(sys, name, stream)


def ignore_write_errors(name: StreamName, on_error: ErrorHandler = lambda error: None) -> contextlib.AbstractContextManager[Any]:
    """Inside the ``with`` block a write to ``sys.<name>`` never raises.

    Args:
        failed: called with the first error.
    """
    return watch_stream(name, True, on_error)


def open_missing_streams() -> None:
    """Open the null device for standard streams that were closed when the program started (``>&-``).

    Otherwise the next file that is opened would get the number of a standard stream, and receive what a library writes to that stream.
    """
    descriptor = os.open(os.devnull, os.O_RDWR)
    while descriptor <= 2:
        os.set_inheritable(descriptor, True)
        descriptor = os.dup(descriptor)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w" if number else "r", encoding="utf-8", closefd=False))  # noqa: SIM115 - until the program ends


def redirect_to_null(stream: TextIO) -> None:
    """Redirect ``stream`` to the null device, so that the interpreter's last flush cannot fail."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):  # it has no descriptor, or it is closed
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def error_text(error: Exception) -> str:
    """The system's message for an error, in lower case."""
    return (getattr(error, "strerror", None) or str(error)).lower().rstrip(".")
