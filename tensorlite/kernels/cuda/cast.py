"""Conversion from float32 to a half precision, for the operands of products under `tensorlite.precision`."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.elementwise import launch_elementwise, vector_aligned

HALVES = ("float16", "bfloat16")

_rounded: dict[int, tuple[weakref.ref[Any], Array]] = {}  # by the id of an array that is alive: that array, and its numbers rounded


def keep_rounded(x: Array, rounded: Array) -> None:
    """From now on `cast` of this very ``x`` is ``rounded``, which the kernel that wrote x has written beside it.

    Nobody may write to x any more; a gradient on its way through the tape is such an array. Both are freed together.
    """
    key = id(x)
    _rounded[key] = weakref.ref(x, lambda _: _rounded.pop(key, None)), rounded


def cast(x: Array, dtype: Any, out: Array | None = None) -> Array:
    """``x`` itself if it has this dtype, otherwise a converted copy, or the one that is kept beside x.

    With a contiguous ``out``, always a copy into it.
    """
    dtype = np.dtype(dtype)
    if out is None and x.dtype == dtype:
        return x
    if out is None:
        kept = _rounded.get(id(x))
        if kept is not None and kept[0]() is x and kept[1].dtype == dtype:
            return kept[1]
        out = array_module(x).empty(x.shape, dtype)
    if dtype.name in HALVES and on_gpu(x, types=("float32",)) and out.data.ptr % 8 == 0:
        launch_elementwise("cast.cu", "cast", x.size, vector_aligned(x), out, Half=dtype.name)
    else:
        out[...] = x
    return out
