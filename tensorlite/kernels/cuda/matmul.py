"""Products of matrices, and of stacks of them, on the GPU.

The transposes in backward are flags of the product (`tensorlite.kernels.cuda.gemm`), so they need no copy.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array
from tensorlite.kernels.cuda.compile import TYPES, is_cupy
from tensorlite.kernels.cuda.gemm import bmm
from tensorlite.op import Pair, register
from tensorlite.ops.broadcasting import unbroadcast
from tensorlite.ops.matmul import matmul
from tensorlite.precision import half_dtype


def matmul_forward(a: Array, b: Array) -> tuple[Array, Any]:
    """y = a · b, in the half precision that is in use, if any. Saves the factors as they were multiplied."""
    dtype = half_dtype() or a.dtype
    left, right = a.astype(dtype, copy=False), b.astype(dtype, copy=False)
    return bmm(left, right), (left, right, a.dtype, b.dtype)


def matmul_backward(dy: Array, saved: Any, needs_grad: tuple[bool, ...] = (True, True)) -> tuple[Array | None, Array | None]:
    """da = dy · bᵀ,   db = aᵀ · dy, summed over the axes along which an operand was repeated."""
    a, b, a_dtype, b_dtype = saved
    da = unbroadcast(bmm(dy, b.swapaxes(-1, -2), dtype=a_dtype), a.shape) if needs_grad[0] else None
    db = unbroadcast(bmm(a.swapaxes(-1, -2), dy, dtype=b_dtype), b.shape) if needs_grad[1] else None
    return da, db


def supports(a: Array, b: Array) -> bool:
    """Two or more axes, of one type unless a half precision is in use. The book takes vectors and float64, and refuses wrong shapes."""
    return (
        is_cupy(a)
        and is_cupy(b)
        and a.ndim > 1
        and b.ndim > 1
        and a.dtype.name in TYPES
        and b.dtype.name in TYPES
        and (a.dtype == b.dtype or half_dtype() is not None)
        and a.shape[-1] == b.shape[-2]
        and all(i == j or 1 in (i, j) for i, j in zip(a.shape[-3::-1], b.shape[-3::-1], strict=False))
    )


register(matmul, Pair("cuda", matmul_forward, matmul_backward, supports))
