"""Layer normalisation on the CPU: tile by tile, with every sum computed by BLAS.

The derivation is in the book, and as there x̂, 1/σ and weight are saved. Four things are different:

- All steps of a tile of rows run before the next tile is read, so each of the large arrays is read or written once.
- Sums along rows and down columns are matrix-vector products, and squares are summed by dot products. In float32 these are three times
  as fast as `sum`, and more exact, because they add in blocks. One product p = dy ∘ x̂ then gives two sums. With g = dy ∘ weight,
      mean(g) = dy · weight / C,      mean(g ∘ x̂) = p · weight / C,      dweight = 1ᵀ · p.
- Long rows are not copied where a number for each row, or a row for all, is repeated (`without_buffer`).
- Backward adds the gradient that the residual connection has brought to x, while dx is in the cache.

Forward and backward together, in float32 on one core: 1.5 times as fast as the book on 384 rows of 128, 2.5 on 2048 of 384,
2.3 on 512 of 768.
"""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array
from tensorlite.kernels.cpu.tiling import row_tiles, without_buffer
from tensorlite.op import Pair, register
from tensorlite.ops import layernorm as book
from tensorlite.ops.layernorm import LayerNormSaved, layernorm
from tensorlite.ops.summation import sum_of_rows

FAR = 3  # standard deviations: rows whose mean is this far from 0 are centred twice


def layernorm_forward(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> tuple[Array, LayerNormSaved]:
    """y = x̂ · weight + bias. The variance takes two passes, as in the book. What is saved has the shape (rows, C)."""
    try:
        with np.errstate(over="raise"), without_buffer(x.shape[-1]):
            return _forward_by_tiles(x, weight, bias, eps)
    except FloatingPointError:  # a square overflows in float32, and the book scales such rows first; or a number is not finite
        y, saved = book.layernorm_forward(x, weight, bias, eps)
        return y, saved._replace(x_hat=saved.x_hat.reshape(-1, x.shape[-1]), inverse_std=saved.inverse_std.reshape(-1, 1))


def _forward_by_tiles(x: Array, weight: Array | None, bias: Array | None, eps: float) -> tuple[Array, LayerNormSaved]:
    C = x.shape[-1]
    y, x_hat = np.empty_like(x), np.empty_like(x)
    rows, y_rows, x_hat_rows = x.reshape(-1, C), y.reshape(-1, C), x_hat.reshape(-1, C)
    inverse_std = np.empty((len(rows), 1), x.dtype)
    ones = np.ones((C, 1), x.dtype)
    for part in row_tiles(len(rows), C * x.itemsize):
        hat, out, scale = x_hat_rows[part], y_rows[part], inverse_std[part]
        mean = (rows[part] @ ones) / C  # (n, 1)
        np.subtract(rows[part], mean, out=hat)
        variance = _mean_squares(hat)
        if (mean * mean > FAR * FAR * variance).any():  # the mean was rounded: subtract the remainder
            hat -= (hat @ ones) / C
            variance = _mean_squares(hat)
        np.divide(1, np.sqrt(variance + eps), out=scale)
        hat *= scale
        if weight is None:
            out[...] = hat
        else:
            np.multiply(hat, weight, out=out)
        if bias is not None:
            out += bias
    return y, LayerNormSaved(x_hat_rows, inverse_std, weight, bias is not None)


def _mean_squares(x: Array) -> Array:
    """The mean of the squares of each row, (n, 1).

    Raises:
        FloatingPointError: if a sum is not finite.
    """
    squares = np.vecdot(x, x)[:, None]
    if not np.isfinite(squares).all():  # not every BLAS reports an overflow
        raise FloatingPointError("the squares of a row overflow, or it has an infinity or a nan.")
    return squares / x.shape[1]


def layernorm_backward(dy: Array, saved: LayerNormSaved, accumulated: Array | None = None) -> tuple[Array, Array | None, Array | None]:
    """dx = (1/σ) (g - mean(g) - x̂ mean(g ∘ x̂)),   dweight = Σ dy ∘ x̂,   dbias = Σ dy.

    ``accumulated`` is the gradient of x from the residual connection around this op. It is added to dx in the cache.
    """
    with without_buffer(dy.shape[-1]):
        return _backward_by_tiles(dy, saved, accumulated)


def _backward_by_tiles(dy: Array, saved: LayerNormSaved, accumulated: Array | None) -> tuple[Array, Array | None, Array | None]:
    x_hat, inverse_std, weight = saved.x_hat, saved.inverse_std, saved.weight
    (N, C), dtype = x_hat.shape, x_hat.dtype
    dy_rows = dy.reshape(N, C)
    stream = None if accumulated is None else accumulated.reshape(N, C)
    dx = np.empty((N, C), dtype)
    mean_weights = (np.ones(C, dtype) if weight is None else weight) / dtype.type(C)
    tiles = list(row_tiles(N, C * dtype.itemsize))
    dweight, dbias = np.empty((2, len(tiles), C), dtype)  # a row of sums for each tile
    scratch, ones = np.empty((tiles[0].stop, C), dtype), np.ones(tiles[0].stop, dtype)
    for i, part in enumerate(tiles):
        n = part.stop - part.start
        d, hat, out, products = dy_rows[part], x_hat[part], dx[part], scratch[:n]
        np.multiply(d, hat, out=products)
        np.matmul(ones[:n], products, out=dweight[i])
        np.matmul(ones[:n], d, out=dbias[i])
        mean_g = (d @ mean_weights)[:, None]  # (n, 1)
        mean_g_hat = (products @ mean_weights)[:, None]
        np.multiply(hat, mean_g_hat, out=products)
        products += mean_g
        if weight is None:
            np.subtract(d, products, out=out)
        else:
            np.multiply(d, weight, out=out)
            out -= products
        out *= inverse_std[part]
        if stream is not None:
            out += stream[part]
    return dx.reshape(dy.shape), None if weight is None else sum_of_rows(dweight), sum_of_rows(dbias) if saved.has_bias else None


def supports(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> bool:
    """Rows of float32 or float64 in row-major order, weight and bias of the same type. The book refuses wrong shapes."""
    return (
        isinstance(x, np.ndarray)
        and x.dtype.char in "fd"
        and x.ndim > 0
        and x.size > 0
        and x.flags.c_contiguous
        and all(p is None or (p.shape == x.shape[-1:] and p.dtype == x.dtype) for p in (weight, bias))
    )


register(layernorm, Pair("cpu", layernorm_forward, layernorm_backward, supports))
