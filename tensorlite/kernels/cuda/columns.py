"""Sums over the rows of a matrix, for the gradients of parameters that all rows share."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel

WARP = 32
COLUMNS = 4 * WARP  # of a block
STRETCH = 256  # rows for one block, so that a tall array has enough blocks
SHORT = 1024  # up to so many rows one block adds all of them
COUNTERS = 1 << 14  # for so many blocks side by side; more are enough to keep a GPU busy with a stretch each


def sum_rows(x: Array, out: Array | None = None, add: bool = False) -> Array:
    """Σ over the rows of ``x`` (rows, C): (C,) in float32, always added in the same order. Rows may be padded.

    Args:
        out: where the sums go; it is returned then.
        add: add them to what ``out`` holds.
    """
    return sum_rows_of_two(x, x.shape[1], (out, None), (add, False))[0]


def sum_rows_of_two(x: Array, split: int, out: Sequence[Array | None], add: Sequence[bool] = (False, False)) -> tuple[Array, Array]:
    """`sum_rows` of the first ``split`` columns and of the others, in one launch, each to its own place."""
    xp, (rows, C) = array_module(x), x.shape
    across = -(-C // COLUMNS)
    stretch = rows if rows <= SHORT or across > COUNTERS else STRETCH
    stretches = -(-rows // stretch) if rows else 1
    partial, counters = (xp.empty((stretches, C), "float32"), _counters(xp)) if stretches > 1 else (None, None)
    widths = split, C - split
    y, second = (xp.empty(width, "float32") if place is None else place for width, place in zip(widths, out, strict=True))
    arguments = (x, partial, counters, y, second, split, add[0] + 2 * add[1], rows, stretch, C, np.int64(x.strides[0] // x.itemsize))
    kernel("columns.cu", "sum_rows", Real=x.dtype.name)((across, stretches), WARP * WARP, arguments)
    return y, second


_of_thread = threading.local()


def _counters(cupy: Any) -> Array:
    """Zeros, for the calling thread and the current device: the kernel leaves them as it finds them."""
    counters: dict[int, Array] = _of_thread.__dict__.setdefault("counters", {})
    device = cupy.cuda.runtime.getDevice()
    if device not in counters:
        with cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):  # not in a graph's memory pool
            counters[device] = cupy.zeros(COUNTERS, "uint32")
    return counters[device]


def clear_cache() -> None:
    """Drop the calling thread's counters: for tests, which replace CuPy by another module."""
    _of_thread.__dict__.clear()
