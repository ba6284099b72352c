"""The linear layer on the GPU: three matrix products, each in a layout that cuBLAS reads without a copy.

Under a half precision (`tensorlite.precision`) forward rounds the operands once and keeps the rounded ones for backward.
The gradient of the weight is summed in float32 and stored as float32, because the optimizer adds it up over steps.

A wide output whose width is no multiple of 8, such as a language model's logits, has padded rows; `kernels.cuda.padding` says why.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.cast import cast
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.gemm import gemm, gemm_with_bias
from tensorlite.kernels.cuda.padding import column_slices, padded_columns, padded_rows
from tensorlite.op import Pair, register
from tensorlite.ops.linear import linear
from tensorlite.precision import half_dtype


class RoundedSaved(NamedTuple):
    """What backward needs of the forward: the operands as they were multiplied, and what x was."""

    rows: Array  # x as (rows, in)
    weight: Array  # (out, in)
    shape: tuple[int, ...]  # of x
    dtype: Any  # of x
    has_bias: bool


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, RoundedSaved]:
    """y = x · weightᵀ + bias. Saves x and weight, as they were multiplied."""
    dtype, width = half_dtype() or x.dtype, len(weight)
    rows = cast(x.reshape(math.prod(x.shape[:-1]), x.shape[-1]), dtype)
    factor = padded_columns(weight, dtype)
    y = array_module(x).empty((len(rows), len(factor)), dtype)  # (rows, out), and the padding
    if bias is None:
        gemm(rows, factor.T, out=y)
    else:
        gemm_with_bias(rows, factor.T, padded_columns(bias[:, None], dtype)[:, 0], y)
    return y[:, :width].reshape(*x.shape[:-1], width), RoundedSaved(rows, factor[:width], x.shape, x.dtype, bias is not None)


def linear_backward(
    dy: Array,
    saved: RoundedSaved,
    needs_grad: tuple[bool, ...] = (True, True, True),
    out: tuple[Array | None, ...] = (None, None, None),
    add: tuple[bool, ...] = (False, False, False),
) -> tuple[Array | None, ...]:
    """dx = dy · weight,   dweight = dyᵀ · x,   dbias = Σ dy, the latter two in ``out``, added to what is there if ``add`` says so."""
    rows, weight = saved.rows, saved.weight
    xp, dy, dx, dweight, dbias = array_module(dy), padded_rows(dy), None, None, None
    columns = column_slices(len(weight), weight.dtype)
    if needs_grad[0]:
        dx = xp.empty(saved.shape, saved.dtype)
        for i, part in enumerate(columns):
            gemm(dy[:, part], weight[part], out=dx.reshape(rows.shape), add=i > 0)
    if needs_grad[1]:
        home = None if out[1] is None or _reads(out[1], dy, rows) else out[1]
        dweight = xp.empty(weight.shape, "float32") if home is None else home
        for part in columns:
            gemm(dy[:, part].T, rows, out=dweight[part], add=home is not None and add[1])
    if saved.has_bias and len(needs_grad) > 2 and needs_grad[2]:
        dbias = sum_rows(dy, out[2], add[2])
    return dx, dweight, dbias


def _reads(out: Array, *factors: Array) -> bool:
    """Whether a factor shares memory with ``out``, as when x is an old gradient of the weight. The product then cannot be written there."""
    begin, end = out.data.ptr, out.data.ptr + out.nbytes  # all are contiguous; CuPy's may_share_memory would wait for the device
    return any(x.data.ptr < end and begin < x.data.ptr + x.nbytes for x in factors)


def supports(x: Array, weight: Array, bias: Array | None = None) -> bool:
    """Parameters in float32; x in float32, or in the half precision that is in use. The book refuses wrong shapes."""
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
