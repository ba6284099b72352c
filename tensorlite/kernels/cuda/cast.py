"""Conversion from float32 to a half precision, for the operands of products under `tensorlite.precision`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.elementwise import launch_elementwise, vector_aligned

HALVES = ("float16", "bfloat16")


def cast(x: Array, dtype: Any, out: Array | None = None) -> Array:
    """``x`` itself if it has this dtype, otherwise a converted copy. With a contiguous ``out``, always a copy into it."""
    dtype = np.dtype(dtype)
    if out is None and x.dtype == dtype:
        return x
    if out is None:
        out = array_module(x).empty(x.shape, dtype)
    if dtype.name in HALVES and on_gpu(x, types=("float32",)) and out.data.ptr % 8 == 0:
        launch_elementwise("cast.cu", "cast", x.size, vector_aligned(x), out, Half=dtype.name)
    else:
        out[...] = x
    return out
