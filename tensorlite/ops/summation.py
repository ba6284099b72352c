"""Blocked summation: adding many numbers with few roundings.

Each addition rounds the partial sum by up to half a unit in its last place. If a million numbers are added one after the other, the
first takes part in a million roundings: in float32, a sum of numbers around 1000 is wrong in its third digit. In blocked summation,
blocks of numbers are added first, and then the sums of the blocks in the same way. A number then takes part in at most BLOCK roundings
at each level, and a million numbers need four levels.

NumPy does this along the axis whose elements are contiguous in memory. Along any other axis it adds row after row. There, the product
with ones, 1ᵀ · x, adds the rows of all blocks at once. It also takes at most half the time of ``x.sum(axis=0)``.

On a GPU, CuPy's sum is a tree along any axis, and is used directly; CuPy's products could not be recorded in a CUDA graph.

The half precisions are added in float32: counting by ones, float16 stops at 2048 and bfloat16 at 256.

Every sum over an axis in the book is computed by this page. It defines no op: `reduction` does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.tensor import is_half

BLOCK = 64
FEW = 16  # for up to so many rows NumPy's sum is as fast as a product
WIDE = 16  # in rows of at least this length every BLAS adds four rows at a time


def sum_of(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """Σ x along ``axis``: None for all axes, a number, or several. Integers and bools add up to int64.

    Shapes: x any; the result without those axes, or with length 1 there if ``keepdims``.
    """
    if x.dtype.kind in "iub":
        return x.sum(axis=axis, dtype="int64", keepdims=keepdims)
    if x.itemsize == 2:
        return sum_of(x.astype("float32"), axis, keepdims).astype(x.dtype)
    if x.size <= BLOCK or array_module(x) is not np:
        return x.sum(axis=axis, keepdims=keepdims)
    over = _as_tuple(axis, x.ndim)
    if _numpy_adds_in_blocks(x, over):
        return x.sum(axis=over, keepdims=keepdims)
    y = _sum_over(x, over)
    return y.reshape([1 if i in over else n for i, n in enumerate(x.shape)]) if keepdims else y


def mean_of(x: Array, axis: Any = None, keepdims: bool = False) -> Array:
    """The mean along ``axis``; nan for an empty axis."""
    if x.itemsize == 2 and is_half(x.dtype):
        return mean_of(x.astype("float32"), axis, keepdims).astype(x.dtype)  # the sum alone may overflow in float16
    total = sum_of(x, axis, keepdims)
    return total / (x.size // (total.size or 1))


def root_mean_square(x: Array, axis: Any, n: float, eps: float = 0.0) -> Array:
    """√(Σ x²/n + eps) along ``axis``, whose axes keep length 1.

    In float32, x² overflows from 1.8e19 on and underflows to 0 below 1e-23, while the root does neither. So x is divided by s, and the
    root multiplied by s. s is a power of 2 near the largest |x|, so this rounds nothing. The CPU reports overflow and underflow, so there
    the plain formula is tried first.
    """
    xp = array_module(x)
    if xp is np or not x.size:
        try:
            with np.errstate(over="raise", under="ignore" if eps else "raise", invalid="raise"):
                total = sum_of(x * x, axis, keepdims=True)
                xp.subtract(total, total)  # raises for ∞ - ∞, because an overflow in a thread of BLAS is not reported
            return xp.sqrt(total / n + eps if eps else total / n)
        except FloatingPointError:
            pass
    largest = abs(x).max(axis=axis, keepdims=True)
    exponent = xp.frexp(xp.where(xp.isfinite(largest), largest, 1))[1] - 1
    s = xp.where(largest > (1 if eps else 0), xp.ldexp(xp.ones_like(largest), exponent), 1)  # next to eps, small squares do not matter
    return s * xp.sqrt(sum_of((x / s) ** 2, axis, keepdims=True) / n + eps / s / s)


def accumulation_dtype(dtype: Any) -> Any:
    """The dtype for sums of ``dtype`` that `sum_of` does not compute: float32 for the half precisions."""
    return np.dtype("float32") if is_half(dtype) else dtype


def _numpy_adds_in_blocks(x: Array, over: tuple[int, ...]) -> bool:
    """Whether NumPy's own sum is blocked: along the last axes, or where all elements are one block."""
    if not over or (over[0] == x.ndim - len(over) and x.flags.c_contiguous):
        return True
    return math.prod([x.shape[i] for i in over]) <= BLOCK


def _as_tuple(axis: Any, ndim: int) -> tuple[int, ...]:
    return tuple(range(ndim)) if axis is None else axis if isinstance(axis, tuple) else (axis % ndim,)


def _first_of_the_last(over: tuple[int, ...], ndim: int) -> int:
    """The first of the trailing axes that are all summed; ``ndim`` if the last axis is not summed."""
    first = ndim
    while first - 1 in over:
        first -= 1
    return first


def _sum_over(x: Array, over: tuple[int, ...]) -> Array:
    """The sum over the axes ``over``, one after the other. Axes at one end of a contiguous array are summed together."""
    if not over:
        return x
    if x.flags.c_contiguous:
        first = _first_of_the_last(over, x.ndim)
        if first < x.ndim:
            return _sum_over(x.sum(axis=tuple(range(first, x.ndim))), tuple(i for i in over if i < first))
        if over[-1] == len(over) - 1:
            kept = x.shape[len(over) :]
            return sum_of_rows(x.reshape(-1, math.prod(kept))).reshape(kept)
    along = min(over, key=lambda i: abs(x.strides[i]))
    return _sum_over(_sum_along(x, along), tuple(i - (i > along) for i in over if i != along))


def _sum_along(x: Array, axis: int) -> Array:
    """The sum along one axis, for any memory layout of x."""
    n = x.shape[axis]
    if x.strides[axis] == 0 and n > 1:  # broadcast: the same element n times
        return x[(slice(None),) * axis + (0,)] * n
    nearest = min((i for i in range(x.ndim) if x.shape[i] > 1), key=lambda i: abs(x.strides[i]), default=axis)
    if nearest == axis or n <= BLOCK:
        return x.sum(axis=axis)
    xp = array_module(x)
    y = sum_of_rows(xp.moveaxis(x, (axis, nearest), (-2, -1)))
    return xp.moveaxis(y, -1, nearest - (nearest > axis))


def sum_of_rows(x: Array) -> Array:
    """(..., n, C) to (..., C), in blocks.

    Block j has the rows j, j + blocks, j + 2·blocks, …. Then the sums of all blocks are the row sum of a matrix with fewer, wider rows.
    A product adds four wide rows at a time, so a block may have four times as many rows.
    """
    if array_module(x) is not np:
        return x.sum(axis=-2)
    *batch, n, C = x.shape
    side_by_side = x.strides[-1] == x.itemsize and x.strides[-2] == C * x.itemsize
    if n <= (4 if side_by_side and C >= WIDE else 1) * BLOCK:
        return _sum_of_few_rows(x)
    blocks = max(-(-n // BLOCK), math.isqrt(n))  # at most BLOCK rows in each, and best as many blocks as rows in a block
    whole = n - n % blocks
    if side_by_side:
        sums = _sum_of_few_rows(x[..., :whole, :].reshape(*batch, whole // blocks, blocks * C)).reshape(*batch, blocks, C)
    else:
        sums = x[..., :whole, :].reshape(*batch, whole // blocks, blocks, C).sum(axis=-3)
    return sum_of_rows(sums if whole == n else np.concatenate((sums, x[..., whole:, :]), axis=-2))


def _sum_of_few_rows(x: Array) -> Array:
    """The sum of the rows: a product with ones where BLAS can read the rows without a copy."""
    n = x.shape[-2]
    if n == 1:
        return x[..., 0, :]
    if n > FEW and x.strides[-1] == x.itemsize and x.strides[-2] > 0:
        return np.ones(n, x.dtype) @ x
    return x.sum(axis=-2)
