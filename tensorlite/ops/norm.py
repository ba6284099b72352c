"""Norms: how long a vector is."""

from __future__ import annotations

import math
from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axes
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import root_mean_square, sum_of
from tensorlite.tensor import Tensor


def norm_forward(x: Array, p: float = 2, dim: Any = None, keepdim: bool = False) -> tuple[Array, Any]:
    """y = (Σ |x|ᵖ)^(1/p),   over the axes ``dim``: None for all, a number, or several

    p = 2 is the length of an arrow, p = 1 the way along streets. For p = ∞ only the largest counts, for -∞ the smallest, and p = 0 counts
    the numbers that are not 0.

    Shapes: y without the axes ``dim``, or with length 1 there if ``keepdim``.
    Saves: x, y, p.
    Raises: IndexError if an axis does not exist; RuntimeError for integers.
    Source: equals torch.linalg.vector_norm.
    """
    require_floating("norm", x)
    xp, over = array_module(x), normalize_axes("norm", dim, x.ndim)
    size = xp.abs(x)
    if p == 2:
        y = root_mean_square(x, over, 1)
    elif math.isinf(p):
        y = size.max(axis=over, keepdims=True, initial=0) if p > 0 else size.min(axis=over, keepdims=True)
    elif p == 0:
        y = sum_of(x != 0, over, keepdims=True).astype(x.dtype)
    else:
        y = sum_of(size if p == 1 else size**p, over, keepdims=True)
        y = y if p == 1 else y ** (1 / p)
    return y if keepdim else y.squeeze(over), (x, y, p)


def norm_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · sign(x) · (|x| / y)^(p-1)

    yᵖ = Σ |x|ᵖ, so p y^(p-1) ∂y/∂x = p |x|^(p-1) sign(x). For p = 2 that is x/y: the norm grows fastest in the direction of x itself,
    and by as much as x grows. For p = 1 every number counts alike; for ±∞ only those that are the largest (smallest), in equal shares,
    as for amax; for 0 none, since a count does not move.

    Where y = 0 the graph is the tip of a cone, and the gradient is taken as 0.
    """
    x, y, p = saved
    xp = array_module(x)
    dy = dy.reshape(y.shape)
    if p == 0:
        return xp.zeros_like(x)
    if math.isinf(p):
        chosen = xp.abs(x) == y
        return apply_mask(dy / sum_of(chosen, _reduced_axes(x, y), keepdims=True).astype(dy.dtype), chosen) * xp.sign(x)
    if p == 1:
        return dy * xp.sign(x)
    share = x / xp.where(y == 0, 1, y)
    if p != 2:
        size = xp.abs(share)
        share = xp.sign(x) * xp.where(size == 0, 0, xp.where(size == 0, 1, size) ** (p - 1))
    return apply_mask(dy, y != 0) * share


norm_op = Op(norm_forward, norm_backward, "norm", in_float32=True)


def norm(x: Tensor, p: float | str | None = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Tensor:
    """The p-norm of all numbers, or along axes; "fro" is 2.

    Raises:
        NotImplementedError: for "nuc", the sum of singular values.
    """
    if p == "nuc":
        raise NotImplementedError(
            "norm: 'nuc' needs singular values, which are not here; numpy.linalg.norm(x.numpy(), 'nuc') has no gradient."
        )
    return norm_op(x if dtype is None else x.to(dtype), 2 if p in ("fro", None) else float(p), dim, keepdim)


def _reduced_axes(x: Array, y: Array) -> tuple[int, ...]:
    return tuple(i for i in range(x.ndim) if y.shape[i] == 1)
