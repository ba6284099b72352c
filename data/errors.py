"""The base class of all errors in a user's data, and how a program reports them."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable

from data.console import error_text, ignore_write_errors, open_missing_streams, redirect_to_null, watch_stream

EXIT_USER_ERROR = 2  # argparse's own
EXIT_BROKEN_PIPE = 128 + 13  # what a shell reports for a program that SIGPIPE ended
EXIT_INTERRUPTED = 128 + 2  # and for one that Ctrl-C ended


class DataError(ValueError):
    """An error in the user's data, not in the program. The message is one sentence that says what is wrong, and what to do."""


def run_main(main: Callable[[], int | None], expected: tuple[type[Exception], ...] = (DataError,)) -> int:
    """Run a command-line ``main`` and return its exit code: ``sys.exit(run_main(main))``.

    An ``expected`` error becomes one sentence on stderr and exit code 2, and so does a standard output that cannot be written. If the
    reader closes our output early (``… | head``), that is not an error. Everything else is a bug and keeps its traceback.
    """
    open_missing_streams()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows a question mark
    with ignore_write_errors("stderr"), watch_stream("stdout") as stdout:  # the exit code remains
        try:
            code = _exit_code(main)
            sys.stdout.flush()
            return code
        except expected as error:
            sys.stderr.write(f"error: {error}\n")
            return EXIT_USER_ERROR
        except KeyboardInterrupt:
            sys.stderr.write("\ninterrupted\n")
            return EXIT_INTERRUPTED
        except BrokenPipeError:
            redirect_to_null(sys.stdout)
            return EXIT_BROKEN_PIPE
        except OSError as error:
            if error is not stdout.error:
                raise
            redirect_to_null(sys.stdout)
            sys.stderr.write(f"error: standard output cannot be written: {error_text(error)}.\n")
            return EXIT_USER_ERROR


def _exit_code(main: Callable[[], int | None]) -> int:
    try:
        return main() or 0
    except SystemExit as left:  # after --help
        if not isinstance(left.code, int | None):
            raise
        return left.code or 0
