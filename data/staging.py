"""Write a prepared folder so that an incomplete one is never taken for a complete one.

Everything is written to ``DIR/.preparing``. When all of it is on the disk, the old meta.json is removed, and the new files are moved into
DIR one by one, meta.json last. So after a crash at any moment there is the complete old folder, the complete new one, or a folder without
meta.json and with a ``.preparing`` in it. `is_incomplete` distinguishes the latter from a folder of nanoGPT's, which never had a meta.json.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.errors import DataError
from data.files import explain, sync_folder
from data.lock import locked

FILES = ("train.bin", "val.bin", "tokenizer.json", "meta.json")
STAGING = ".preparing"
_CHUNK = 1 << 20  # ids moved at a time


def is_incomplete(folder: Path) -> bool:
    """Whether a crash occurred while the new files were moved. To prepare the folder again repairs it."""
    return (folder / STAGING).is_dir() and not (folder / "meta.json").exists() and (folder / STAGING / "meta.json").exists()


def require_own_files(folder: Path) -> None:
    """Refuse to replace files of other programs. Ours have our meta.json, or are incomplete after a crash.

    Raises:
        DataError: naming the first of them.
    """
    there = [name for name in FILES if (folder / name).exists() or (folder / name).is_symlink()]
    if there and not is_incomplete(folder) and not _is_our_meta(folder / "meta.json"):
        raise DataError(
            f"{folder} has a {there[0]} that data.prepare did not write, or not completely: it would be replaced; "
            "choose another --out, or remove it."
        )


def _is_our_meta(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"version", "dtype", "tokenizer_hash", "tokens"} <= content.keys()


@contextlib.contextmanager
def staging(folder: Path) -> Iterator[Path]:
    """A temporary folder for `FILES`, which are moved into ``folder`` at the end of the block, unless it raises.

    Raises:
        DataError: if ``folder`` cannot be written, has such files of another program, or is in use by another process.
    """
    missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    place = folder / STAGING
    done = False
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _exclusive(folder):
            require_own_files(folder)
            try:
                _remove(place)
                place.mkdir()
                yield place
                _publish(place, folder)
                done = True
            finally:
                if not is_incomplete(folder):
                    _remove(place)
    except OSError as error:
        raise DataError(explain(error, folder)) from error
    finally:
        if not done:
            for parent in missing:
                with contextlib.suppress(OSError):
                    parent.rmdir()


class TokenWriter:
    """Writes ids, and nothing else, to a file: the format of nanoGPT."""

    def __init__(self, path: Path, dtype: np.dtype) -> None:
        self.path = path
        self.dtype = dtype
        self.tokens = 0
        self._lock = threading.Lock()
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 - `close` does

    def append(self, ids: np.ndarray) -> None:
        """Write ``ids`` at the end."""
        self.write(ids, self.tokens)

    def write(self, ids: np.ndarray, at: int) -> None:
        """Write ``ids`` from position ``at`` on. Several threads may write at the same time, each to its own positions."""
        left = np.ascontiguousarray(ids, self.dtype).data.cast("B")
        with self._lock:
            self._file.seek(at * self.dtype.itemsize)
            while left:  # a write may be partial
                left = left[self._file.write(left) :]
            self.tokens = max(self.tokens, at + len(ids))

    def cut(self, tokens: int, rest: TokenWriter | None = None) -> None:
        """Keep the first ``tokens`` ids, and move the others to ``rest``, or drop them."""
        size = self.dtype.itemsize
        if rest is not None:
            with open(self.path, "rb") as source:
                source.seek(tokens * size)
                while block := source.read(_CHUNK * size):
                    rest.append(np.frombuffer(block, self.dtype))
        self._file.truncate(tokens * size)
        self.tokens = tokens

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as indented JSON."""
    path.write_bytes(json.dumps(content, indent=2).encode("ascii") + b"\n")  # the same bytes on every system


def _publish(place: Path, folder: Path) -> None:
    for name in FILES:
        with open(place / name, "rb+") as file:
            os.fsync(file.fileno())
    sync_folder(place)
    for name in FILES:
        if (folder / name).exists():
            os.replace(folder / name, folder / name)  # does nothing, but fails where a file in use cannot be replaced
    (folder / "meta.json").unlink(missing_ok=True)
    sync_folder(folder)
    for name in FILES:
        if name == "meta.json":
            sync_folder(folder)
        os.replace(place / name, folder / name)
    sync_folder(folder)


@contextlib.contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(folder))
        except BlockingIOError as error:
            raise DataError(f"another process is preparing {folder}; wait for it, or choose another --out.") from error
        yield


def _remove(place: Path) -> None:
    if place.is_dir() and not place.is_symlink():
        shutil.rmtree(place)
    else:
        place.unlink(missing_ok=True)
