"""What a user sees when something goes wrong: a sentence for a mistake of theirs, a traceback for a mistake of ours.

Amounts of memory in words are here, too: most errors that need them are about too little of it.
"""

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

__all__ = ["EXIT_BROKEN_PIPE", "EXIT_INTERRUPTED", "EXIT_USER_ERROR", "UserError", "fail", "in_words", "leave", "missing", "run_main"]


class UserError(Exception):
    """The user can mend this: the message is one sentence that says what is wrong and what to do."""


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
        except MemoryError as error:  # of the steps of a run, which has better advice, none comes here
            fail(f"{missing(error)} What takes less: a smaller model (layers, width, vocabulary), or fewer texts at once.")

    return data.errors.run_main(guarded, (UserError, DataError, DeviceUnavailableError))


def leave(code: int) -> NoReturn:
    """End the process with ``code``, also if other threads are in the middle of a step: `sys.exit` would wait for them."""
    if any(not thread.daemon for thread in threading.enumerate() if thread is not threading.main_thread()):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def in_words(size: float) -> str:
    """A number of bytes for people."""
    unit = "bytes"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if size < 1024:
            break
        size, unit = size / 1024, larger
    return f"{size:,.0f} {unit}" if unit == "bytes" or size >= 100 else f"{size:.1f} {unit}"


def missing(error: MemoryError) -> str:
    """The error's own figures, in a sentence."""
    said = str(error).strip().rstrip(".") or "the system gave no figure"
    figures = [int(figure.replace(",", "")) for figure in re.findall(r"([\d,]+) bytes", said)]
    if not said.startswith("Out of memory allocating") or len(figures) < 2:
        return f"out of memory ({said})."
    asked, held, *limit = map(in_words, figures)  # CuPy's
    limited = f", and --memory-limit allows {limit[0]}" if limit else ""
    return f"out of memory on the GPU: {asked} were asked for, {held} are taken already{limited}."
