"""Rows that begin where tensor cores can read them: wide rows of an odd length get a little room behind them.

cuBLAS reads 16 bytes at a time where every row begins at a multiple of 16 bytes, and much slower kernels read number by number where not.
GPT-2 has 50257 logits: in half precision a row is 2 bytes longer than such a multiple, and all three products of its head, a quarter of the
model's arithmetic, are of the slow kind. So its logits are the left part of an array of 50304 columns, and so is their gradient. What
stands in the padding is nobody's: it is never read.
"""

from __future__ import annotations

import math
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.cast import cast

EIGHT = 8  # halves in 16 bytes
LINE = 64  # halves in 128 bytes, which the memory brings at once: a row then shares none with the next
WORTH_IT = 1024  # columns: below, the padding takes more than 6% of the memory, and the product little time either way


def padded_width(width: int, dtype: Any) -> int:
    """How long the rows are in memory: ``width``, or for wide rows of halves that need it the next multiple of 64."""
    needs_it = dtype.itemsize == 2 and width % EIGHT != 0 and width >= WORTH_IT
    return -(-width // LINE) * LINE if needs_it else width


def column_slices(width: int, dtype: Any) -> list[slice]:
    """All columns: where rows are padded, first the few that are left over, then as many as are whole 16 bytes.

    A product that ends within 16 bytes is as slow as one that begins there. Two products, of which one is very small, are not.
    """
    whole = width - width % EIGHT
    return [slice(0, width)] if padded_width(width, dtype) == width else [slice(whole, width), slice(0, whole)]


def padded_rows(x: Array) -> Array:
    """``x`` (..., width) as a matrix that cuBLAS reads well: as it lies if it can be, else a copy."""
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
    """``x`` (rows, C) in ``dtype``, with rows of zeros below for the padding in the columns of a product with xᵀ."""
    rows, wide = len(x), padded_width(len(x), dtype)
    if wide == rows:
        return cast(x, dtype)
    longer = array_module(x).empty((wide, x.shape[1]), dtype)
    cast(x, dtype, out=longer[:rows])
    longer[rows:] = 0
    return longer
