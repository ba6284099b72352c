"""Writing files so that nothing is ever lost: the old one stays until the new one is whole."""

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
    """Make ``content`` (text as UTF-8) the content of ``path``, or leave everything as it was.

    The bytes go to a temporary file beside ``path`` and are forced to the disk; only then does the file take its name, in
    one step. Whoever looks, at any moment and after any crash, finds the whole old file or the whole new one.

    Raises:
        OSError: if that fails; ``path`` is then untouched and the temporary file gone.
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
            error.filename = str(path)  # the temporary name means nothing to anybody
        raise
    sync_folder(path.parent)


def explain(error: OSError, path: str | os.PathLike[str]) -> str:
    """What went wrong with ``path`` in the system's words, and what to do about it."""
    remedy = _REMEDIES.get(error.errno or 0, "choose another folder")
    if getattr(error, "winerror", None) == _IN_USE:
        remedy = "close the program that has it open"
    return f"{error.filename or path}: {(error.strerror or str(error)).lower()}; {remedy}."


def sync_folder(folder: Path) -> None:
    """The new name itself is on the disk only when the folder is; some file systems cannot say when."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
