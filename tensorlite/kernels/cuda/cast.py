"""From float32 to a half precision: what a product reads under `tensorlite.precision`."""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.elementwise import in_fours, run

HALVES = ("float16", "bfloat16")


def cast(x: Array, dtype: Any) -> Array:
    """``x`` itself if it has this dtype, else a copy that has it."""
    dtype = np.dtype(dtype)
    if x.dtype == dtype or dtype.name not in HALVES or not on_gpu(x, types=("float32",)):
        return x.astype(dtype, copy=False)
    y = array_module(x).empty(x.shape, dtype)
    run("cast.cu", "cast", x.size, in_fours(x), y, Half=dtype.name)
    return y
