"""The linear layer. Nearly all the arithmetic of a GPT happens here."""

from __future__ import annotations

import math
from typing import NamedTuple

from tensorlite.backend import Array
from tensorlite.op import Op
from tensorlite.ops.summation import sum_of_rows


class LinearSaved(NamedTuple):
    """What backward needs of the forward."""

    x: Array  # (..., in)
    weight: Array  # (out, in)
    has_bias: bool


def linear_forward(x: Array, weight: Array, bias: Array | None = None) -> tuple[Array, LinearSaved]:
    """y = x · weightᵀ + bias

    The leading axes are a list of rows, so x is treated as one matrix. One large product is the fastest form,
    on a CPU and on a GPU.

    Shapes: x (..., in), weight (out, in), bias (out,) or None, y (..., out).
    Saves: x, weight.
    Raises: ValueError if the shapes do not fit.
    Source: equals torch.nn.functional.linear; the weight's layout is torch's.
    """
    if weight.ndim != 2 or x.ndim == 0 or x.shape[-1] != weight.shape[1]:
        raise ValueError(f"linear: x {x.shape} does not fit weight {weight.shape}: it is (..., in) and (out, in).")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(f"linear: weight {weight.shape} needs a bias of shape {weight.shape[:1]}, got {bias.shape}.")
    y = _as_rows(x) @ weight.T  # (rows, out)
    if bias is not None:
        y += bias  # in place: nobody else holds y yet
    return y.reshape(*x.shape[:-1], len(weight)), LinearSaved(x, weight, bias is not None)


def linear_backward(dy: Array, saved: LinearSaved, needs_grad: tuple[bool, ...] = (True, True, True)) -> tuple[Array | None, ...]:
    """dx = dy · weight        dweight = dyᵀ · x        dbias = Σ dy

    Write one output of one row:  y_o = Σᵢ weight_oᵢ xᵢ + bias_o.
    - xᵢ goes into every output o of its row with the factor weight_oᵢ:      dxᵢ = Σ_o dy_o weight_oᵢ.
    - weight_oᵢ goes into output o of *every row* with the factor xᵢ:    dweight_oᵢ = Σ_rows dy_o xᵢ.
    - bias_o goes into output o of every row with the factor 1:            dbias_o = Σ_rows dy_o.

    In words: the gradient takes the connections of the forward in the opposite direction, with the same strength.
    Hence the same weight, transposed. All B·T rows share weight and bias, and a shared parameter receives the sum
    of the gradients of all its uses. dyᵀ · x is that sum: one outer product of dy and x for each row, computed
    by a single matrix product.

    Shapes: dy (..., out), dx (..., in), dweight (out, in), dbias (out,).
    """
    dy_rows = _as_rows(dy)  # (rows, out)
    dx = (dy_rows @ saved.weight).reshape(saved.x.shape) if needs_grad[0] else None
    dweight = dy_rows.T @ _as_rows(saved.x) if needs_grad[1] else None
    dbias = sum_of_rows(dy_rows) if saved.has_bias and needs_grad[2] else None
    return dx, dweight, dbias


linear = Op(linear_forward, linear_backward, in_float32=True)


def _as_rows(x: Array) -> Array:
    """(..., C) as (rows, C). NumPy could not infer a -1 where C is 0."""
    return x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
