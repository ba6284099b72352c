"""Rotary positions on the GPU: one kernel for both directions, which reads each number once.

The cosines and sines are the book's, computed in float64: in float32 the angle of a late position would be off by 1e-3.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import TYPES, is_cupy, kernel
from tensorlite.kernels.cuda.elementwise import BLOCK, MOST_BLOCKS
from tensorlite.op import Pair, register
from tensorlite.ops.rotary import rotary_embedding, rotation


def rotary_embedding_forward(x: Array, base: float = 10000.0, start: int = 0) -> tuple[Array, Any]:
    """R(t) x_t. Saves the cosines and sines in float32."""
    xp = array_module(x)
    cos, sin = rotation(xp.empty(x.shape[-2:], "float32"), base, start)
    return _rotate(x, cos, sin, 1.0), (cos, sin)


def rotary_embedding_backward(dy: Array, saved: Any) -> Array:
    """R(-t) dy_t."""
    cos, sin = saved
    return _rotate(dy, cos, sin, -1.0)


def supports(x: Array, base: float = 10000.0, start: int = 0) -> bool:
    """Arrays (..., T, D) of float32 and the half precisions. Heads that lie apart, as in the model, are copied together first."""
    return is_cupy(x) and x.dtype.name in TYPES and x.ndim > 1 and x.shape[-1] % 2 == 0 and base > 0


def _rotate(x: Array, cos: Array, sin: Array, direction: float) -> Array:
    xp = array_module(x)
    x = xp.ascontiguousarray(x)
    y, (T, D), pairs = xp.empty(x.shape, x.dtype), x.shape[-2:], x.size // 2
    run = kernel("rotary.cu", "rotate", Real=x.dtype.name)
    run(min(-(-pairs // BLOCK), MOST_BLOCKS), BLOCK, (x, cos, sin, y, direction, T, D // 2, np.int64(pairs)))
    return y


register(rotary_embedding, Pair("cuda", rotary_embedding_forward, rotary_embedding_backward, supports))
