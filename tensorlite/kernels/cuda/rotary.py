"""Rotary positions on the GPU: one kernel for both directions, which reads each number once.

The cosines and sines are the book's, computed in float64: in float32 the angle of a late position would be off by 1e-3. They are computed
once for each length, and all layers and steps share them.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import TYPES, is_cupy, kernel
from tensorlite.kernels.cuda.elementwise import BLOCK, MOST_BLOCKS, vector_aligned
from tensorlite.op import Pair, register
from tensorlite.ops.rotary import rotary_embedding, rotation


def rotary_embedding_forward(x: Array, base: float = 10000.0, start: int = 0) -> tuple[Array, Any]:
    """R(t) x_t. Saves the cosines and sines in float32."""
    x, (T, D) = vector_aligned(x), x.shape[-2:]
    tables = cosines_and_sines(x, T, D, float(base), start)
    return rotate(x, array_module(x).empty(x.shape, x.dtype), tables, 1.0), tables


def rotary_embedding_backward(dy: Array, saved: Any) -> Array:
    """R(-t) dy_t."""
    dy = vector_aligned(dy)
    return rotate(dy, array_module(dy).empty(dy.shape, dy.dtype), saved, -1.0)


def supports(x: Array, base: float = 10000.0, start: int = 0) -> bool:
    """Arrays (..., T, D) of float32 and the half precisions. Heads that lie apart are copied together first."""
    return is_cupy(x) and x.dtype.name in TYPES and x.ndim > 1 and x.shape[-1] % 2 == 0 and base > 0


def cosines_and_sines(x: Array, T: int, D: int, base: float, start: int) -> tuple[Array, Array]:
    """The book's tables (T, D/2) in float32 on the device of ``x``."""
    xp = array_module(x)
    if xp.cuda.get_current_stream().is_capturing():  # what is captured has not been computed yet, so nobody else may use it
        return rotation(xp.empty((T, D), "float32"), base, start)
    return _kept_tables(xp, x.device.id, T, D, base, start)


@functools.lru_cache(maxsize=8)
def _kept_tables(xp: Any, device: int, T: int, D: int, base: float, start: int) -> tuple[Array, Array]:
    cos, sin = rotation(xp.empty((T, D), "float32"), base, start)
    return cos, sin


def rotate(x: Array, y: Array, tables: tuple[Array, Array], direction: float, heads: int = 1, taken: int = 1, rotated: int = 1) -> Array:
    """Write into y, which may be x, what the kernel makes of x, and return y; the tables' rows are the positions (rotary.cu)."""
    cos, sin = tables
    T, half = cos.shape
    pairs, wide = x.size // (2 * heads) * taken, 4 if half % 4 == 0 else 1
    run = kernel("rotary.cu", "rotate", Real=x.dtype.name, HALF=max(1, half), Wide=wide)
    blocks = min(-(-pairs // (wide * BLOCK)), MOST_BLOCKS)
    run(blocks, BLOCK, (x, cos, sin, y, direction, T, heads, taken, rotated, np.int64(pairs)))
    return y


register(rotary_embedding, Pair("cuda", rotary_embedding_forward, rotary_embedding_backward, supports))
