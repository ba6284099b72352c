"""Padded rows: wide rows of an odd length are padded, so that tensor cores can read them.

Where every row begins at a multiple of 16 bytes, cuBLAS reads 16 bytes at a time. Otherwise much slower kernels read one number at a time.
GPT-2 has 50257 logits. In half precision a row is 2 bytes longer than such a multiple, so all three products of its head, a quarter of the
model's arithmetic, would be slow. So its logits are the left part of an array of 50304 columns, and so is their gradient. The padding
is never read.
"""

from __future__ import annotations

import math
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.cast import cast
from tensorlite.precision import rounded_copy

EIGHT = 8  # halves in 16 bytes
LINE = 64  # halves in 128 bytes, a cache line: no two rows then share one
WORTH_IT = 1024  # columns: below, the padding would take more than 6% of the memory, and the product takes little time


def padded_width(width: int, dtype: Any) -> int:
    """The length of the rows in memory: ``width``, or for wide rows of halves that need padding the next multiple of 64."""
    needs_it = dtype.itemsize == 2 and width % EIGHT != 0 and width >= WORTH_IT
    return -(-width // LINE) * LINE if needs_it else width


def column_slices(width: int, dtype: Any) -> list[slice]:
    """All columns as slices. Where rows are padded: first the few columns after the last multiple of 16 bytes, then the others.

    A product whose width is not a multiple of 16 bytes is slow. Two products, of which one is very small, are not.
    """
    whole = width - width % EIGHT
    return [slice(0, width)] if padded_width(width, dtype) == width else [slice(whole, width), slice(0, whole)]


def padded_rows(x: Array) -> Array:
    """``x`` (..., width) as a matrix with rows that cuBLAS reads fast; a copy only if necessary."""
    xp, width = array_module(x), x.shape[-1]
    x = x.reshape(math.prod(x.shape[:-1]), width)
    wide = padded_width(width, x.dtype)
    if wide == width:
        return xp.ascontiguousarray(x)
    if x.strides[1] == x.itemsize and x.strides[0] >= width * x.itemsize and x.strides[0] % 16 == 0 and x.data.ptr % 16 == 0:
        return x
    copy = xp.empty((len(x), wide), x.dtype)[:, :width]
    copy[...] = x
    return copy


def padded_columns(x: Array, dtype: Any) -> Array:
    """``x`` (rows, C) in ``dtype``, with any rows below, which become the padding columns of a product with xᵀ.

    An optimizer has written a parameter in the half precision already, with the next one behind it; otherwise it is converted here.
    """
    rows, wide = len(x), padded_width(len(x), dtype)
    rounded = rounded_copy(x, wide) if x.dtype != dtype else None
    if rounded is not None:
        return rounded
    if wide == rows:
        return cast(x, dtype)
    longer = array_module(x).empty((wide, x.shape[1]), dtype)
    cast(x, dtype, out=longer[:rows])
    longer[rows:] = 0
    return longer
