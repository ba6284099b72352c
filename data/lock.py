"""File locks of the system, which end when the process ends, in whatever way."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

_HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)  # another process holds the lock
_FILE = ".lock"


def lock(descriptor: int) -> None:
    """Lock the file until ``descriptor`` is closed.

    Raises:
        BlockingIOError: at once, if another descriptor has the lock.
    """
    try:
        if sys.platform == "win32":
            os.lseek(descriptor, 2**20, os.SEEK_SET)  # a locked byte cannot be read there, so lock one after the end
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
            os.lseek(descriptor, 0, os.SEEK_SET)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _HELD:
            raise BlockingIOError(error.errno, error.strerror) from error
        raise


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Lock ``folder``; no file of the lock remains afterwards.

    Raises:
        BlockingIOError: at once, if another process has the lock.
        OSError: if it cannot be opened, or the file system has no locks.
    """
    # On Windows a folder cannot be opened, so this locks a file in it, which cannot be removed while it is open.
    path, flags = (folder / _FILE, os.O_RDWR | os.O_CREAT) if sys.platform == "win32" else (folder, os.O_RDONLY)
    descriptor = os.open(path, flags)
    try:
        lock(descriptor)
        yield
    finally:
        os.close(descriptor)
        if path != folder:
            with contextlib.suppress(OSError):
                path.unlink()
