"""Sums over the rows of a matrix, for the gradients of parameters that all rows share."""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel

WARP = 32
COLUMNS = 4 * WARP  # of a block
STRETCH = 256  # rows for one block, so that a tall array has enough blocks
SHORT = 1024  # up to so many rows one block adds all of them, which is faster than a second launch


def sum_rows(x: Array, out: Array | None = None) -> Array:
    """Σ over the rows of ``x`` (rows, C): (C,) in float32, always added in the same order. Rows may be padded."""
    rows, C = x.shape
    stretch = rows if rows <= SHORT else STRETCH
    stretches = -(-rows // stretch) if rows else 1
    y = out if out is not None and stretches == 1 else array_module(x).empty((stretches, C), "float32")
    arguments = (x, y, rows, stretch, C, np.int64(x.strides[0] // x.itemsize))
    kernel("columns.cu", "sum_rows", Real=x.dtype.name)((-(-C // COLUMNS), stretches), WARP * WARP, arguments)
    if stretches > 1:
        return sum_rows(y, out)
    return y if y is out else y.reshape(C)
