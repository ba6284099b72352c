"""Memory that several processes see, without a name that could outlive them.

On Linux (memfd_create) and other POSIX systems (a temporary file that is deleted at once) the memory is an open file, which a child
process inherits; on Windows it is a mapping that the last process takes with it. However the processes end, nothing stays behind, and on
Linux the size of /dev/shm, 64 MB in most containers, is no limit.

`multiprocessing.shared_memory` is not used: its memory has a name, which stays when all processes are killed.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import secrets
import sys
import tempfile
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensorlite.backend import Array

ALIGNMENT = 64  # bytes: where each array begins


@dataclass(frozen=True)
class Place:
    """Where an array lies in shared memory.

    Attributes:
        axes: the axes from the one with the largest stride to the one with the smallest; the memory has them in this order.
    """

    offset: int
    shape: tuple[int, ...]
    dtype: Any
    axes: tuple[int, ...]


class Plan:
    """Collects the arrays that will lie in shared memory."""

    def __init__(self) -> None:
        self.size = ALIGNMENT  # never 0, which cannot be mapped

    def add(self, array: Array) -> Place:
        """A place for an array like this one: same shape, dtype and order of the axes, on which the rounding of a product may depend."""
        place = Place(self.size, array.shape, array.dtype, tuple(sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))))
        self.size += math.ceil(array.nbytes / ALIGNMENT) * ALIGNMENT
        return place


class SharedMemory:
    """``size`` bytes of zeros that this process shares with those that `attach` to its handle.

    Raises:
        OSError: if there is not so much memory.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.name = f"tensorlite-{secrets.token_hex(8)}"
        if sys.platform == "win32":
            self._file, self._map = None, mmap.mmap(-1, size, tagname=self.name)
        else:
            self._file = _anonymous_file(self.name, size)
            self._map = mmap.mmap(self._file.fileno(), size)
            weakref.finalize(self, self._file.close)

    @property
    def handle(self) -> tuple[int | str, int]:
        """What a child process needs for `attach`."""
        return (self.name if self._file is None else self._file.fileno()), self.size

    @property
    def inherited(self) -> Sequence[int]:
        """The files that the child must inherit."""
        return () if self._file is None else (self._file.fileno(),)

    @staticmethod
    def attach(handle: tuple[int | str, int]) -> SharedMemory:
        """The memory that the parent process shares."""
        memory = SharedMemory.__new__(SharedMemory)
        source, memory.size = handle
        memory._file = None
        if isinstance(source, str):
            memory._map = mmap.mmap(-1, memory.size, tagname=source)  # type: ignore[call-arg, unused-ignore]
        else:
            memory._map = mmap.mmap(source, memory.size)
            os.close(source)  # the mapping keeps it
        return memory

    def array(self, place: Place) -> Array:
        """The array at ``place``. It keeps the memory, which ends with the last of its arrays."""
        flat = np.frombuffer(self._map, place.dtype, math.prod(place.shape), place.offset)
        return flat.reshape([place.shape[axis] for axis in place.axes]).transpose(np.argsort(place.axes))


def _anonymous_file(name: str, size: int) -> Any:
    """A file without a name, of which ``size`` bytes are reserved: memory that is short is reported now, not when it is written to."""
    file = os.fdopen(os.memfd_create(name), "r+b") if hasattr(os, "memfd_create") else tempfile.TemporaryFile()  # noqa: SIM115
    try:
        os.ftruncate(file.fileno(), size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
    except BaseException:
        with contextlib.suppress(OSError):
            file.close()
        raise
    return file
