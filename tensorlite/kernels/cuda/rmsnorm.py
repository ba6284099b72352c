"""RMS normalisation on the GPU: each row is read once, and only x and 1/rms of each row are kept for backward."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.cast import keep_rounded
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.compile import kernel
from tensorlite.kernels.cuda.rows import BACKWARD_BLOCKS, BLOCK, blocks_for, can_normalise, lanes, matrix_shape, out_dtype
from tensorlite.op import Pair, register
from tensorlite.ops.rmsnorm import rmsnorm

FLOAT32_STEP = 2.0**-23  # float32's eps: the sums are float32, whatever the type of x


def rmsnorm_forward(x: Array, weight: Array | None = None, eps: float | None = None) -> tuple[Array, Any]:
    """y = x / rms(x) · weight. Saves x, and 1/rms of each row."""
    xp, (rows, C) = array_module(x), matrix_shape(x)
    y, inverse_rms = xp.empty(x.shape, out_dtype(x)), xp.empty(rows, "float32")
    run = kernel("rmsnorm.cu", "rmsnorm_forward", In=x.dtype.name, Out=y.dtype.name, **lanes(C, x, weight))
    run(blocks_for(rows), BLOCK, (x, weight, y, inverse_rms, rows, C, FLOAT32_STEP if eps is None else float(eps)))
    return y, (x, inverse_rms, weight)


def rmsnorm_backward(
    dy: Array,
    saved: Any,
    out: tuple[Array | None, ...] = (None, None),
    add: tuple[bool, ...] = (False, False),
    accumulated: Array | None = None,
) -> tuple[Array, Array | None]:
    """dx row by row. Each block writes one row of partial sums for dweight, and `sum_rows` adds these rows.

    ``accumulated`` is the gradient of x from the residual connection around this op. The kernel writes its sum with dx, and under a half
    precision writes it rounded as well, as layernorm's does.
    """
    x, inverse_rms, weight = saved
    xp, (rows, C) = array_module(x), matrix_shape(x)
    dy, dx = xp.ascontiguousarray(dy), xp.empty_like(x)
    stream = None if accumulated is None else xp.ascontiguousarray(accumulated, x.dtype)
    blocks = blocks_for(rows, BACKWARD_BLOCKS)
    partial_dweight = xp.empty((blocks, C), "float32")
    rounded = None if stream is None or dy.dtype == x.dtype else xp.empty(x.shape, dy.dtype)
    run = kernel("rmsnorm.cu", "rmsnorm_backward", In=x.dtype.name, Out=dy.dtype.name, **lanes(C, dy, x, weight, stream))
    run(blocks, BLOCK, (dy, x, weight, inverse_rms, stream, dx, rounded, partial_dweight, rows, C))
    if rounded is not None:
        keep_rounded(dx, rounded)
    return dx, None if weight is None else sum_rows(partial_dweight, out[1], add[1])


def supports(x: Array, weight: Array | None = None, eps: float | None = None) -> bool:
    """Rows of up to 2048 numbers, in float32 or the half precision that is in use; the book takes wider ones."""
    return can_normalise(x, weight)


register(rmsnorm, Pair("cuda", rmsnorm_forward, rmsnorm_backward, supports))
