"""Atomic writes: the old file stays until the new one is complete."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

_REMEDIES = {
    errno.ENOSPC: "free some space or choose another folder",
    errno.EDQUOT: "free some of your quota or choose another folder",
    errno.EACCES: "choose a folder that you may write to",
    errno.EPERM: "choose a folder that you may write to",
    errno.EROFS: "choose a folder that you may write to",
    errno.ENOTDIR: "choose another folder: a file of that name is in the way",
    errno.EEXIST: "choose another folder: a file of that name is in the way",
}
_IN_USE = 32  # Windows: a program that has a file open keeps all others from replacing it


def write_atomically(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Make ``content`` (text as UTF-8) the content of ``path``, or change nothing.

    The bytes are written to a temporary file beside ``path`` and synced to the disk. Then the file gets its name in one
    step. At any moment, and after any crash, ``path`` is either the complete old file or the complete new one.

    Raises:
        OSError: if that fails; ``path`` is then unchanged, and the temporary file is removed.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:  # Ctrl-C too
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename:
            error.filename = str(path)  # report the name that the user knows
        raise
    sync_folder(path.parent)


def explain(error: OSError, path: str | os.PathLike[str]) -> str:
    """The system's message about ``path``, and what to do."""
    remedy = _REMEDIES.get(error.errno or 0, "choose another folder")
    if getattr(error, "winerror", None) == _IN_USE:
        remedy = "close the program that has it open"
    return f"{error.filename or path}: {(error.strerror or str(error)).lower()}; {remedy}."


def sync_folder(folder: Path) -> None:
    """Sync a folder, which makes new names in it durable. Some file systems do not support this."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
