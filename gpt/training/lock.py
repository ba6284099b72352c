"""One run, one folder: two at once would overwrite each other's work."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from pathlib import Path

from data.files import explain
from data.lock import lock
from gpt.errors import fail

LOCK = ".lock"
_UNKNOWN_HERE = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # some network file systems


class FolderLock:
    """Holds ``folder`` until `release`, or until the process ends, however it ends.

    The system remembers who holds the file; the file itself may stay. It has the number of the process in it, for the message.

    Raises:
        UserError: if somebody else holds the folder.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            lock(self._descriptor)
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, f"{os.getpid()}\n".encode())
        except OSError as error:
            if self._descriptor is not None and error.errno in _UNKNOWN_HERE:
                print(f"warning: {folder} cannot be locked on this file system: see that no other run uses it.", file=sys.stderr)
                return
            opened = self._descriptor is not None
            self.release()
            if opened and isinstance(error, BlockingIOError):
                fail(f"{folder} is in use by {self._owner()}, which trains there: wait for its end, or give another folder with --out.")
            fail(f"the run folder cannot be locked: {explain(error, self.path)}")

    def release(self) -> None:
        """Let others have the folder."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _owner(self) -> str:
        with contextlib.suppress(OSError, ValueError):
            return f"process {int(self.path.read_text(encoding='ascii'))}"
        return "another process"
