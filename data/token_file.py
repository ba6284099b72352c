"""A file of token ids, of any length."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.errors import DataError

CHUNK = 2**20  # tokens


class TokenFileError(DataError):
    """A file of tokens that is missing, damaged, or has changed."""


class TokenFile:
    """The ids in a file such as train.bin: one after the other in little-endian uint16 or uint32, and nothing else, as in nanoGPT.

    ``open()`` maps the file into memory, which is fast: the system reads a page at its first access. But pages that were accessed count as
    this process's memory as long as the map exists. So a map is not kept: to read a batch, open the file, copy the ids, and drop the map.
    Every ``open()`` checks that it is still the same file.

    Args:
        path: the file.
        dtype: "uint16" or "uint32".

    Raises:
        TokenFileError: if there is no such file, it cannot be read, or its size is not a whole number of ids.
    """

    def __init__(self, path: str | os.PathLike[str], dtype: str | type | np.dtype = "uint16") -> None:
        self.path = Path(path)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        if self.dtype.name not in ("uint16", "uint32"):
            raise TokenFileError(f"tokens are stored as uint16 or uint32, not as {self.dtype.name}.")
        self._state = self._status()
        size = self._state[0]
        if size % self.dtype.itemsize:
            raise TokenFileError(
                f"{self.path} is damaged: its {size:,} bytes are not a whole number of {self.dtype.name} tokens of "
                f"{self.dtype.itemsize} bytes; prepare it again."
            )
        self._length = size // self.dtype.itemsize

    def __len__(self) -> int:
        return self._length

    def open(self) -> np.ndarray:
        """All ids, (N,), as a read-only map, for a short time.

        Raises:
            TokenFileError: if the file has changed since this object was made.
        """
        if self._status() != self._state:
            raise TokenFileError(f"{self.path} has been changed while it was in use; start again.")
        return np.memmap(self.path, self.dtype, mode="r") if self._length else np.zeros(0, self.dtype)

    def __getitem__(self, part: slice) -> np.ndarray:
        """A copy of the ids of a slice."""
        return np.array(self.open()[part])

    def chunks(self, length: int = CHUNK) -> Iterator[np.ndarray]:
        """All ids, ``length`` at a time."""
        for start in range(0, len(self), length):
            yield self[start : start + length]

    def max(self) -> int:
        """The highest id in the file, or -1 if it is empty; reads all of it."""
        return max((int(chunk.max()) for chunk in self.chunks()), default=-1)

    def __repr__(self) -> str:
        return f"TokenFile({str(self.path)!r}, {len(self):,} tokens of {self.dtype.name})"

    def _status(self) -> tuple[int, ...]:
        """Size, inode, device and time of the last change."""
        try:
            with open(self.path, "rb") as file:  # stat alone does not check that it can be read
                status = os.fstat(file.fileno())
        except FileNotFoundError as error:
            raise TokenFileError(f"there is no file {self.path}.") from error
        except OSError as error:
            raise TokenFileError(f"{self.path} cannot be read: {(error.strerror or str(error)).lower()}.") from error
        return status.st_size, status.st_ino, status.st_dev, status.st_mtime_ns
