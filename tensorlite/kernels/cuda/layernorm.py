"""Layer normalisation on the GPU: a row is read once, and what backward needs of it is three numbers.

The book keeps x̂; here x, which is there anyway, is kept instead, with each row's mean and 1/σ: x̂ is faster computed again than read.
See layernorm.cu for who does what.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.compile import kernel
from tensorlite.kernels.cuda.rows import BACKWARD_BLOCKS, BLOCK, blocks_for, can_normalise, lanes, matrix_shape, out_dtype
from tensorlite.op import Pair, register
from tensorlite.ops.layernorm import layernorm


def layernorm_forward(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> tuple[Array, Any]:
    """y = x̂ · weight + bias. Saves x, and of each row the mean (as a sum of two floats) and 1/σ."""
    xp, (rows, C) = array_module(x), matrix_shape(x)
    y = xp.empty(x.shape, out_dtype(x))
    mean, inverse_std = xp.empty((rows, 2), "float32"), xp.empty(rows, "float32")
    run = kernel("layernorm.cu", "layernorm_forward", In=x.dtype.name, Out=y.dtype.name, **lanes(C, x, weight, bias))
    run(blocks_for(rows), BLOCK, (x, weight, bias, y, mean, inverse_std, rows, C, float(eps)))
    return y, (x, mean, inverse_std, weight, bias is not None)


def layernorm_backward(dy: Array, saved: Any, accumulated: Array | None = None) -> tuple[Array, Array | None, Array | None]:
    """dx row by row; dweight and dbias in one row of partial sums for each block, which `sum_rows` adds up.

    ``accumulated`` is the gradient that has come down the residual stream, past this op: dx is added to it on its way to the memory.
    """
    x, mean, inverse_std, weight, has_bias = saved
    xp, (rows, C) = array_module(x), matrix_shape(x)
    dy, dx = xp.ascontiguousarray(dy), xp.empty_like(x)
    stream = None if accumulated is None else xp.ascontiguousarray(accumulated, x.dtype)
    blocks = blocks_for(rows, BACKWARD_BLOCKS)
    partial = xp.empty((blocks, 2 * C), "float32")
    run = kernel("layernorm.cu", "layernorm_backward", In=x.dtype.name, Out=dy.dtype.name, **lanes(C, dy, x, weight, stream))
    run(blocks, BLOCK, (dy, x, weight, mean, inverse_std, stream, dx, partial, rows, C))
    if weight is None and not has_bias:
        return dx, None, None
    dweight, dbias = sum_rows(partial).reshape(2, C)
    return dx, None if weight is None else dweight, dbias if has_bias else None


def supports(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> bool:
    """Rows of up to 2048 numbers, in float32 or the half precision that is in use; wider ones are the book's."""
    return can_normalise(x, weight, bias)


register(layernorm, Pair("cuda", layernorm_forward, layernorm_backward, supports))
