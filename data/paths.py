"""Expand the paths that a user gives, and find the folder for downloads. In a container there may be no home folder."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from data.errors import DataError


def expand_path(path: str | os.PathLike[str]) -> Path:
    """``path`` with the home folder in place of ``~`` or ``~name``.

    Raises:
        DataError: if it is empty, there is no such home folder, or no file can have that name.
    """
    if not os.fspath(path):
        raise DataError("an empty path names nothing; for the current folder, give a dot.")
    try:
        whole = Path(path).expanduser()
        whole.lstat()  # raises if no file can have this name; the file need not exist
    except RuntimeError as error:
        raise DataError(f"{path}: there is no home folder {Path(path).parts[0]} here; give the whole path.") from error
    except ValueError as error:  # a NUL in it, or half a surrogate pair
        raise DataError(f"{os.fspath(path)!r} is no name that a file can have.") from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise DataError(f"{os.fspath(path)[:60]!r}… is longer than the name of a file can be.") from error
    return whole


def cache_folder() -> Path:
    """The folder for downloads: ``$XDG_CACHE_HOME/tensorlite``, usually ``~/.cache/tensorlite``.

    Raises:
        DataError: if there is no home folder.
    """
    if cache := os.environ.get("XDG_CACHE_HOME"):
        return Path(cache, "tensorlite")
    try:
        return Path.home() / ".cache" / "tensorlite"
    except RuntimeError as error:
        raise DataError("there is no home folder to keep downloads in; set the variable XDG_CACHE_HOME to a folder.") from error
