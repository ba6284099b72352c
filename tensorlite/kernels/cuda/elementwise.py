"""Shared code of the elementwise kernels, which process four neighbours at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel

BLOCK = 256  # threads; each processes four numbers at a time
MOST_BLOCKS = 132 * 16  # twice as many as the largest GPUs run at once; more would only wait


def launch_elementwise(file: str, name: str, count: int, *args: Any, **macros: Any) -> None:
    """Queue a kernel whose last parameter is the number of elements. The grid has a thread for every four of them, up to a limit.

    A thread processes four elements, and then those one whole grid further on.
    """
    blocks = min(-(-count // (4 * BLOCK)), MOST_BLOCKS)
    kernel(file, name, **macros)(blocks, BLOCK, (*args, np.int64(count)))


def vector_aligned(x: Array) -> Array:
    """``x``, or a contiguous copy that is aligned for reads of four elements. Only views can need a copy."""
    x = array_module(x).ascontiguousarray(x).reshape(x.shape)  # for a 0-d array it returns a 1-d one, as NumPy's does
    return x if x.data.ptr % (4 * x.itemsize) == 0 else x.copy()
