"""The linear layer: y = x @ weight.T + bias

Nearly all the arithmetic of a GPT is here. The weight is stored as torch stores it,
(out, in), hence the .T in forward. All axes of x but the last are a list of rows; each
row is multiplied with the same weight.

Shapes: x (..., in), weight (out, in), bias (out,), y (..., out).
By hand: one row x = [1, 2], weight = [[3, 4]], bias = [5]: y = [3 + 8 + 5] = [16]. With
dy = [10]: dx = [30, 40], dweight = [[10, 20]], dbias = [10].

>>> y, saved = linear_forward(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([5.0]))
>>> linear_backward(np.array([[10.0]]), saved)
(array([[30., 40.]]), array([[10., 20.]]), array([10.]))
"""

import numpy as np


def linear_forward(x, weight, bias):
    """y, and both factors."""
    rows = x.reshape(-1, x.shape[-1])  # (rows, in)
    y = rows @ weight.T + bias
    return y.reshape(*x.shape[:-1], len(weight)), (x, weight)


def linear_backward(dy, saved):
    """dx (..., in), dweight (out, in) and dbias (out,)."""
    x, weight = saved
    rows = x.reshape(-1, x.shape[-1])  # (rows, in)
    dy_rows = dy.reshape(-1, dy.shape[-1])  # (rows, out)
    # --- write from here ---
    dx = (dy_rows @ weight).reshape(x.shape)
    dweight = dy_rows.T @ rows
    dbias = dy_rows.sum(axis=0)
    return dx, dweight, dbias


# --- for the checker ---

HINTS = (
    "One row, one output: y[o] = Σᵢ weight[o, i] · x[i] + bias[o]. In which outputs does x[i] occur? In which rows does weight[o, i]?",
    (
        "dx[i] = Σₒ dy[o] · weight[o, i]: no transpose this time. weight and bias are shared by all rows, so their "
        "gradients are sums over rows."
    ),
    "dx = dy_rows @ weight, in the shape of x; dweight = dy_rows.T @ rows; dbias = the sum of dy_rows over its rows.",
)


def cases(rng):
    """Inputs to check with."""
    return [
        (rng.standard_normal((2, 3, 4)), rng.standard_normal((5, 4)), rng.standard_normal(5)),
        (rng.standard_normal((4, 4)), rng.standard_normal((4, 4)), rng.standard_normal(4)),
    ]


def _rows(wrong):
    def backward(dy, saved):
        x, weight = saved
        dx, dweight, dbias = linear_backward(dy, saved)
        wrong_dx, wrong_dweight = wrong(dy.reshape(-1, dy.shape[-1]), x.reshape(-1, x.shape[-1]), weight)
        return (
            wrong_dx.reshape(x.shape) if wrong_dx.size == x.size else dx,
            wrong_dweight if wrong_dweight.shape == weight.shape else dweight,
            dbias,
        )

    return backward


LIKELY = {
    "weight transposed once too often: forward used weight.T, so backward uses weight.": _rows(
        lambda dy, x, w: (dy @ w.T if w.shape[0] == w.shape[1] else dy @ w, x.T @ dy)
    ),
    "dweight of the first row only: all rows share the weight, and their gradients add up.": _rows(
        lambda dy, x, w: (dy @ w, np.outer(dy[0], x[0]))
    ),
    "dweight of the last row only: all rows share the weight, and their gradients add up.": _rows(
        lambda dy, x, w: (dy @ w, np.outer(dy[-1], x[-1]))
    ),
    "dweight averaged over the rows: the gradients of all rows add up.": _rows(lambda dy, x, w: (dy @ w, dy.T @ x / len(x))),
}
