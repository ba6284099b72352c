"""Every matrix product on the GPU, through one function that calls cuBLAS with the current precision.

CuPy's own ``matmul`` cannot be used: with more than two axes it ignores TF32, computes float16 in float32, and refuses bfloat16
(version 14).

cuBLAS is column-major, as Fortran is: for it, the rows of Y in memory are the matrix Yᵀ. So we compute

    Yᵀ = Bᵀ · Aᵀ        which cuBLAS reads as        (p, n) = (p, m) · (m, n)

and pass B and A in this order, without a copy. An operand that is a transposed view gets the flag T instead of N. cuBLAS also needs the
distance from one row to the next (the *leading dimension*, which is larger than a row in a slice of columns), and for a batch the
distance from one matrix to the next.
"""

from __future__ import annotations

import ctypes
import itertools
from typing import Any, NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda import cublas, cublaslt
from tensorlite.kernels.cuda.cublas import COMPUTE_FLOAT32, COMPUTE_TF32, DATA_TYPES, DEFAULT_ALGORITHM, NORMAL, TRANSPOSED
from tensorlite.precision import current

_ONE, _ZERO = ctypes.c_float(1), ctypes.c_float(0)  # cuBLAS takes its two factors by address


class Layout(NamedTuple):
    """The memory layout of an operand's matrices, in elements.

    Attributes:
        array: the operand, or a copy if cuBLAS cannot read its layout.
        transposed: whether columns are contiguous instead of rows.
        leading: the distance from one row (or column) to the next.
        stride: the distance from one matrix of the batch to the next; 0 repeats one matrix.
    """

    array: Array
    transposed: bool
    leading: int
    stride: int


def gemm(a: Array, b: Array, out: Array | None = None, dtype: Any = None, add: bool = False) -> Array:
    """y = a · b for matrices (n, m) and (m, p); `bmm` without a batch."""
    return bmm(a, b, out, dtype, add)


def gemm_with_bias(a: Array, b: Array, bias: Array, out: Array) -> Array:
    """y = a · b + bias into ``out`` (n, p), which is contiguous; all of one dtype, bias (p,).

    The bias is added before the result leaves the registers. Where cuBLASLt cannot do that, the bias is written first and the product
    added to it.
    """
    if 0 in (*a.shape, *b.shape) or not gemm_with_epilogue(cublaslt.BIAS, a, b, out, bias):
        out[...] = bias
        gemm(a, b, out=out, add=True)
    return out


def gemm_with_epilogue(epilogue: int, a: Array, b: Array, out: Array, bias: Array | None = None, aux: Array | None = None) -> bool:
    """A product with an epilogue of `cublaslt`; ``aux`` is contiguous and of the shape and dtype of ``out`` (n, p).

    Returns:
        False if cuBLASLt cannot do that; then nothing has been written.
    """
    left, right = layout(b, ()), layout(a, ())  # as in bmm
    (n, m), p = a.shape, b.shape[1]
    arrays = left.array, right.array, out, aux, bias
    left_at, right_at, out_at, aux_at, bias_at = (0 if x is None else x.data.ptr for x in arrays)
    of = cublaslt.alignment
    shape = cublaslt.Shape(
        p, n, m, left.transposed, right.transposed, left.leading, right.leading, p, a.dtype.name, out.dtype.name, _compute_type(a),
        epilogue, (of(left_at), of(right_at), of(out_at), of(aux_at)),
    )  # fmt: skip
    return cublaslt.get_cublaslt(array_module(a)).multiply(shape, left_at, right_at, out_at, bias_at, aux_at)


def bmm(a: Array, b: Array, out: Array | None = None, dtype: Any = None, add: bool = False) -> Array:
    """y = a · b for stacks of matrices.

    Args:
        a, b: (..., n, m) and (..., m, p) of one dtype, float32 or a half precision. Leading axes broadcast.
        out: a contiguous array for y, (..., n, p).
        dtype: of y without ``out``: that of the operands, or float32.
        add: add y to ``out`` instead of overwriting it.

    Under ``tf32`` the tensor cores round float32 operands (`tensorlite.precision`). The sums are always float32.
    """
    xp = array_module(a)
    batch = _broadcast(a.shape[:-2], b.shape[:-2])
    n, m, p = a.shape[-2], a.shape[-1], b.shape[-1]
    if out is None:
        out = xp.empty((*batch, n, p), dtype or a.dtype)
    if 0 in (n, p, *batch):
        return out
    if m == 0:
        if not add:
            out[...] = 0
        return out
    left, right = layout(b, batch), layout(a, batch)  # Yᵀ = Bᵀ · Aᵀ
    count = out.size // (n * p)
    kind = DATA_TYPES[a.dtype.name]
    compute = _compute_type(a)
    flags = (TRANSPOSED if left.transposed else NORMAL, TRANSPOSED if right.transposed else NORMAL)
    alpha, beta = ctypes.addressof(_ONE), ctypes.addressof(_ONE if add else _ZERO)
    left_at, right_at, out_at = left.array.data.ptr, right.array.data.ptr, out.data.ptr
    blas = cublas.get_handle(xp)
    if count == 1:
        blas.gemm(
            *flags, p, n, m, alpha, left_at, kind, left.leading, right_at, kind, right.leading,
            beta, out_at, DATA_TYPES[out.dtype.name], p, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip
    else:
        blas.gemm_strided_batched(
            *flags, p, n, m, alpha, left_at, kind, left.leading, left.stride, right_at, kind, right.leading, right.stride,
            beta, out_at, DATA_TYPES[out.dtype.name], p, n * p, count, compute, DEFAULT_ALGORITHM,
        )  # fmt: skip
    return out


def _compute_type(x: Array) -> int:
    return COMPUTE_TF32 if current() == "tf32" and x.dtype.name == "float32" else COMPUTE_FLOAT32


def layout(x: Array, batch: tuple[int, ...]) -> Layout:
    """The layout in which cuBLAS can read ``x`` (..., rows, columns) as a stack of ``batch``, with a copy only if it cannot."""
    xp = array_module(x)
    rows, columns = x.shape[-2:]
    down, along = (step // x.itemsize for step in x.strides[-2:])
    # the stride of an axis of length 1 is never used, so any value is right
    by_rows = (along == 1 or columns == 1) and (down >= columns or rows == 1)
    by_columns = (down == 1 or rows == 1) and (along >= rows or columns == 1)
    stride = _batch_stride(x, batch)
    if not (by_rows or by_columns) or stride is None:
        return layout(xp.ascontiguousarray(xp.broadcast_to(x, (*batch, rows, columns))), batch)
    if by_rows:
        return Layout(x, False, columns if rows == 1 else max(down, 1), stride)
    return Layout(x, True, rows if columns == 1 else max(along, 1), stride)


def _batch_stride(x: Array, batch: tuple[int, ...]) -> int | None:
    """The distance between neighbouring matrices of the batch; None if it is not the same for all."""
    if all(length == 1 for length in x.shape[:-2]):
        return 0  # one matrix for the whole batch
    if x.shape[:-2] != batch:
        return None
    stepped = [(length, step // x.itemsize) for length, step in zip(x.shape[:-2], x.strides[:-2], strict=True) if length > 1]
    for (_, outer), (length, inner) in itertools.pairwise(stepped):
        if outer != length * inner:
            return None
    return stepped[-1][1] or None  # an axis with stride 0 is copied: it may be one of several


def _broadcast(a: tuple[int, ...], b: tuple[int, ...]) -> tuple[int, ...]:
    if a == b:
        return a
    longer, shorter = (a, b) if len(a) >= len(b) else (b, a)
    shorter = (1,) * (len(longer) - len(shorter)) + shorter
    return tuple(j if i == 1 else i for i, j in zip(longer, shorter, strict=True))
