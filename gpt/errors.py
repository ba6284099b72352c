"""Errors as a user sees them: one sentence for a mistake of the user, a traceback for a mistake of the program."""

from __future__ import annotations

import os
import re
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

import data.errors
from data.errors import EXIT_BROKEN_PIPE, EXIT_INTERRUPTED, EXIT_USER_ERROR, DataError
from tensorlite.backend import DeviceUnavailableError

__all__ = [
    "EXIT_BROKEN_PIPE",
    "EXIT_INTERRUPTED",
    "EXIT_USER_ERROR",
    "UserError",
    "describe_memory_error",
    "fail",
    "format_bytes",
    "leave",
    "run_main",
]


class UserError(Exception):
    """A mistake that the user can correct. The message is one sentence that says what is wrong and what to do."""


def fail(message: str) -> NoReturn:
    """Stop with one sentence for the user.

    Raises:
        UserError: always.
    """
    raise UserError(message)


def run_main(main: Callable[[], int | None]) -> int:
    """Run a command-line ``main`` and return its exit code: ``sys.exit(run_main(main))``.

    A `UserError`, a `data.errors.DataError`, a missing device or missing memory becomes one sentence on stderr and exit code 2.
    """

    def guarded() -> int | None:
        try:
            return main()
        except MemoryError as error:  # not one of a training step: a run gives better advice
            fail(f"{describe_memory_error(error)} What takes less: a smaller model (layers, width, vocabulary), or fewer texts at once.")

    return data.errors.run_main(guarded, (UserError, DataError, DeviceUnavailableError))


def leave(code: int) -> NoReturn:
    """End the process with ``code``, even while other threads compute: `sys.exit` would wait for them."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def format_bytes(size: float) -> str:
    """A number of bytes in words, such as 1.5 MiB."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"


def describe_memory_error(error: MemoryError) -> str:
    """A sentence with the figures that the error gives."""
    said = str(error).strip().rstrip(".") or "the system gave no figure"
    figures = [int(figure.replace(",", "")) for figure in re.findall(r"([\d,]+) bytes", said)]
    if not said.startswith("Out of memory allocating") or len(figures) < 2:
        return f"out of memory ({said})."
    asked, held, *limit = map(format_bytes, figures)  # CuPy's
    limited = f", and --memory-limit allows {limit[0]}" if limit else ""
    return f"out of memory on the GPU: {asked} were asked for, {held} are taken already{limited}."
