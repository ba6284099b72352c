"""What a user sees when something goes wrong: a sentence for a mistake of theirs, a traceback for a mistake of ours."""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Callable
from typing import NoReturn

from data.errors import DataError
from tensorlite.backend import DeviceUnavailableError

EXIT_USER_ERROR = 2  # argparse's own
EXIT_BROKEN_PIPE = 128 + 13  # what a shell reports for a program that SIGPIPE ended
EXIT_INTERRUPTED = 128 + 2  # and for one that Ctrl-C ended


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

    A `UserError`, a `data.errors.DataError` or a missing device becomes one sentence on stderr and exit code 2. Whoever
    closes our output early (``… | head``) has seen enough, which is no error. Everything else is a bug and keeps its traceback.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # a terminal that cannot show a character shows a question mark
    try:
        code = main() or 0
        sys.stdout.flush()
        return code
    except (UserError, DataError, DeviceUnavailableError) as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The interpreter flushes stdout once more on its way out; that must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_BROKEN_PIPE
