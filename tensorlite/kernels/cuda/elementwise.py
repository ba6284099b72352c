"""What kernels share that go through an array number by number, four neighbours at a time."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel

BLOCK = 256  # threads, four numbers each at a time
MOST_BLOCKS = 132 * 16  # twice what the largest GPUs hold at once; more would only be queued


def launch_elementwise(file: str, name: str, count: int, *args: Any, **macros: Any) -> None:
    """Queue a kernel whose last parameter is how many numbers there are; the grid has as many threads as they need, up to a limit.

    A thread takes four numbers, and then those that lie a whole grid further on.
    """
    blocks = min(-(-count // (4 * BLOCK)), MOST_BLOCKS)
    kernel(file, name, **macros)(blocks, BLOCK, (*args, np.int64(count)))


def vector_aligned(x: Array) -> Array:
    """``x``, or a copy of it that is contiguous and begins where four numbers can be read at once; only views may need one."""
    x = array_module(x).ascontiguousarray(x).reshape(x.shape)  # of an array without axes it makes one with an axis, as NumPy's does
    return x if x.data.ptr % (4 * x.itemsize) == 0 else x.copy()
