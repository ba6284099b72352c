"""The linear layer on the CPU: the book's forward, and its backward with dweight computed in the place where it is kept.

The book returns a new array, which the tape copies to the weight's ``grad_buffer``. For a head of 50,257 rows and 768 columns that is
another 154 MB to write and to read.
"""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array
from tensorlite.op import Pair, register
from tensorlite.ops.linear import LinearSaved, linear, linear_forward
from tensorlite.ops.summation import sum_of_rows


def linear_backward(
    dy: Array,
    saved: LinearSaved,
    needs_grad: tuple[bool, ...] = (True, True, True),
    out: tuple[Array | None, ...] = (None, None, None),
) -> tuple[Array | None, ...]:
    """dx = dy · weight,   dweight = dyᵀ · x, in ``out``,   dbias = Σ dy."""
    x, weight = saved.x, saved.weight
    dy_rows, x_rows = dy.reshape(-1, weight.shape[0]), x.reshape(-1, weight.shape[1])
    dx = (dy_rows @ weight).reshape(x.shape) if needs_grad[0] else None
    dweight = np.matmul(dy_rows.T, x_rows, out=out[1]) if needs_grad[1] else None
    dbias = sum_of_rows(dy_rows) if saved.has_bias and needs_grad[2] else None
    return dx, dweight, dbias


def supports(x: Array, weight: Array, bias: Array | None = None) -> bool:
    """NumPy arrays of float32, or all of float64, with at least one number each. The book refuses wrong shapes."""
    return (
        isinstance(x, np.ndarray)
        and isinstance(weight, np.ndarray)
        and x.dtype in (np.float32, np.float64)
        and x.dtype == weight.dtype
        and (bias is None or x.dtype == bias.dtype)
        and x.size > 0
        and weight.size > 0
    )


register(linear, Pair("cpu", linear_forward, linear_backward, supports))
