"""Layer normalisation on the GPU: each row is read once, and three numbers of it are kept for backward.

The book keeps x̂. This pair keeps x, which exists anyway, and the mean and 1/σ of each row: to compute x̂ again is faster than to read it.
layernorm.cu says what each thread does.
"""

from __future__ import annotations

from typing import NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.cast import keep_rounded
from tensorlite.kernels.cuda.columns import sum_rows_of_two
from tensorlite.kernels.cuda.compile import kernel
from tensorlite.kernels.cuda.rows import BACKWARD_BLOCKS, BLOCK, blocks_for, can_normalise, lanes, matrix_shape, out_dtype
from tensorlite.op import Pair, register
from tensorlite.ops.layernorm import layernorm


class RowsSaved(NamedTuple):
    """What backward needs of the forward."""

    x: Array  # (..., C)
    mean: Array  # (rows, 2): the sum of the two floats is the mean
    inverse_std: Array  # (rows,)
    weight: Array | None
    has_bias: bool


def layernorm_forward(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> tuple[Array, RowsSaved]:
    """y = x̂ · weight + bias. Saves x, and the mean and 1/σ of each row."""
    xp, (rows, C) = array_module(x), matrix_shape(x)
    y = xp.empty(x.shape, out_dtype(x))
    mean, inverse_std = xp.empty((rows, 2), "float32"), xp.empty(rows, "float32")
    run = kernel("layernorm.cu", "layernorm_forward", In=x.dtype.name, Out=y.dtype.name, **lanes(C, x, weight, bias))
    run(blocks_for(rows), BLOCK, (x, weight, bias, y, mean, inverse_std, rows, C, float(eps)))
    return y, RowsSaved(x, mean, inverse_std, weight, bias is not None)


def layernorm_backward(
    dy: Array,
    saved: RowsSaved,
    out: tuple[Array | None, ...] = (),
    add: tuple[bool, ...] = (),
    accumulated: Array | None = None,
) -> tuple[Array, Array | None, Array | None]:
    """dx row by row. Each block writes one row of partial sums for dweight and dbias, and `sum_rows_of_two` adds these rows.

    ``accumulated`` is the gradient of x from the residual connection around this op. The kernel writes its sum with dx, and under a half
    precision writes it rounded as well: the branch before this one begins its backward with that.
    """
    x, mean, inverse_std, weight, has_bias = saved
    xp, (rows, C) = array_module(x), matrix_shape(x)
    dy, dx = xp.ascontiguousarray(dy), xp.empty_like(x)
    stream = None if accumulated is None else xp.ascontiguousarray(accumulated, x.dtype)
    blocks = blocks_for(rows, BACKWARD_BLOCKS)
    partial = xp.empty((blocks, 2 * C), "float32")
    rounded = None if stream is None or dy.dtype == x.dtype else xp.empty(x.shape, dy.dtype)
    run = kernel("layernorm.cu", "layernorm_backward", In=x.dtype.name, Out=dy.dtype.name, **lanes(C, dy, x, weight, stream))
    run(blocks, BLOCK, (dy, x, weight, mean, inverse_std, stream, dx, rounded, partial, rows, C))
    if rounded is not None:
        keep_rounded(dx, rounded)
    if weight is None and not has_bias:
        return dx, None, None
    _, *homes = (*out, None, None, None)[:3]  # the op may have been called without a bias
    _, *adds = (*add, False, False, False)[:3]
    dweight, dbias = sum_rows_of_two(partial, C, homes, adds)
    return dx, None if weight is None else dweight, dbias if has_bias else None


def supports(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> bool:
    """Rows of up to 2048 numbers, in float32 or the half precision that is in use; the book takes wider ones."""
    return can_normalise(x, weight, bias)


register(layernorm, Pair("cuda", layernorm_forward, layernorm_backward, supports))
