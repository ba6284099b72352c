"""Dropout on the CPU: in tiles, so that neither the random bits nor a product with the mask ever leave the cache.

The bits are those of the book, read piece by piece; the mathematics is told in `tensorlite.ops.dropout`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import Array
from tensorlite.kernels.cpu.tiling import row_tiles
from tensorlite.op import Pair, register
from tensorlite.ops.dropout import dropout

TILE_BYTES = 128 * 1024  # of x


def dropout_forward(x: Array, p: float = 0.5, generator: np.random.Generator | None = None) -> tuple[Array, Any]:
    """y = x · keep · factor; saves keep, one byte an element, and the factor."""
    reader = random.KeepReader(p, generator)
    y, keep = np.empty_like(x), np.empty(x.shape, bool)
    flat_x, flat_y, flat_keep = x.reshape(-1), y.reshape(-1), keep.reshape(-1)
    for part in row_tiles(x.size, x.itemsize, TILE_BYTES):
        kept, out = flat_keep[part], flat_y[part]
        kept[...] = reader.read(kept.shape)
        np.multiply(flat_x[part], kept, out=out)
        out *= reader.factor
    return y, (keep, reader.factor)


def dropout_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · keep · factor."""
    keep, factor = saved
    dx = np.empty(dy.shape, dy.dtype)
    flat_dy, flat_dx, flat_keep = dy.reshape(-1), dx.reshape(-1), keep.reshape(-1)
    for part in row_tiles(dy.size, dy.itemsize, TILE_BYTES):
        out = flat_dx[part]
        np.multiply(flat_dy[part], flat_keep[part], out=out)
        out *= factor
    return dx


def supports(x: Array, p: float = 0.5, generator: np.random.Generator | None = None) -> bool:
    """Float32 and float64 arrays in row-major order, which can be seen as one row."""
    return isinstance(x, np.ndarray) and x.dtype in (np.float32, np.float64) and x.flags.c_contiguous


register(dropout, Pair("cpu", dropout_forward, dropout_backward, supports))
