"""The linear layer on the GPU: three products, each as cuBLAS likes it, none of them copied for.

Under a half precision (`tensorlite.precision`) the operands are rounded to it once, in forward, and the rounded ones are kept for backward.
The gradient of the weight is summed in float32 and leaves the product as float32: it is what the optimizer adds up over steps.

A wide output of an odd width, a language model's logits, has padded rows; `kernels.cuda.padding` says why.
"""

from __future__ import annotations

import math
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.cast import cast
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.gemm import gemm, gemm_with_bias
from tensorlite.kernels.cuda.padding import column_slices, padded_columns, padded_rows
from tensorlite.op import Pair, register
from tensorlite.ops.linear import linear
from tensorlite.precision import half_dtype


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, Any]:
    """y = x · weightᵀ + bias. Saves x and weight, as they were multiplied."""
    dtype, width = half_dtype() or x.dtype, len(weight)
    rows = cast(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), dtype)
    factor = padded_columns(weight, dtype)
    y = array_module(x).empty((len(rows), len(factor)), dtype)  # (rows, out), and the padding
    if bias is None:
        gemm(rows, factor.T, out=y)
    else:
        gemm_with_bias(rows, factor.T, padded_columns(bias[:, None], dtype)[:, 0], y)
    return y[:, :width].reshape(*x.shape[:-1], width), (rows, factor[:width], x.shape, x.dtype, bias is not None)


def linear_backward(
    dy: Array, saved: Any, needs_grad: tuple[bool, ...] = (True, True, True), out: tuple[Array | None, ...] = (None, None, None)
) -> tuple[Array | None, ...]:
    """dx = dy · weight,   dweight = dyᵀ · x,   dbias = Σ dy."""
    rows, factor, shape, dtype, has_bias = saved
    xp, dy, dx, dweight, dbias = array_module(dy), padded_rows(dy), None, None, None
    columns = column_slices(len(factor), factor.dtype)
    if needs_grad[0]:
        dx = xp.empty(shape, dtype)
        for i, part in enumerate(columns):
            gemm(dy[:, part], factor[part], out=dx.reshape(rows.shape), add=i > 0)
    if needs_grad[1]:
        dweight = xp.empty(factor.shape, "float32") if out[1] is None or _reads(out[1], dy, rows) else out[1]
        for part in columns:
            gemm(dy[:, part].T, rows, out=dweight[part])
    if has_bias and len(needs_grad) > 2 and needs_grad[2]:
        dbias = sum_rows(dy, out[2])
    return dx, dweight, dbias


def _reads(home: Array, *factors: Array) -> bool:
    """Whether a product of these reads what stands in ``home``, as where x is an old gradient of the weight: it cannot be written there."""
    begin, end = home.data.ptr, home.data.ptr + home.nbytes  # of contiguous arrays; CuPy's may_share_memory would wait for the device
    return any(x.data.ptr < end and begin < x.data.ptr + x.nbytes for x in factors)


def supports(x: Array, weight: Array, bias: Array | None = None) -> bool:
    """Parameters in float32; x in float32, or in the half precision that is in use. Wrong shapes are left to the book to refuse."""
    half = half_dtype()
    return (
        on_gpu(x, types=("float32",) if half is None else ("float32", half.name))
        and on_gpu(weight, bias, types=("float32",))
        and weight.ndim == 2
        and x.ndim > 0
        and x.shape[-1] == weight.shape[1]
        and (bias is None or bias.shape == weight.shape[:1])
    )


register(linear, Pair("cuda", linear_forward, linear_backward, supports))
