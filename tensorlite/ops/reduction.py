"""Reductions: many numbers to one, along some axes or all.

Every input of a sum contributes to the same output, so its gradient is the gradient of that output, repeated along
the summed axes. The backward of "sum" is "repeat", as the backward of "repeat" is "sum" (see `broadcasting`). The other
reductions multiply the repeated gradient by their own derivative.

The largest and the smallest element are on the page `extremum`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axes, normalize_axis
from tensorlite.ops.broadcasting import require_floating, to_floating
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import mean_of, root_mean_square, sum_of
from tensorlite.tensor import Tensor, is_floating, unwrap


def sum_forward(x: Array, dim: Any = None, keepdim: bool = False) -> tuple[Array, Any]:
    """y = Σ x,   over the axes ``dim``: None for all, a number, or several

    Integers and bools add up to int64.

    Shapes: x any; y without the axes ``dim``, or with length 1 there if ``keepdim``.
    Saves: the shape of x, the axes.
    Raises: IndexError if an axis does not exist, ValueError if one is named twice.
    Source: equals torch.sum.
    """
    over = normalize_axes("sum", dim, x.ndim)
    return sum_of(x, over, keepdim), (x.shape, over)


def sum_backward(dy: Array, saved: Any) -> Array:
    """∂y/∂xᵢ = 1 for every i, so dy is repeated for all summed elements. A view is enough: nothing is multiplied or moved."""
    shape, over = saved
    return _spread(dy, shape, over)


sum = Op(sum_forward, sum_backward)


def mean_forward(x: Array, dim: Any = None, keepdim: bool = False) -> tuple[Array, Any]:
    """y = (1/n) Σ x,   n elements along the axes ``dim``; nan for n = 0

    Shapes, Raises: as sum; also RuntimeError for integers, because the dtype of their mean is not clear.
    Saves: the shape of x, the axes.
    Source: equals torch.mean.
    """
    require_floating("mean", x)
    over = normalize_axes("mean", dim, x.ndim)
    return mean_of(x, over, keepdim), (x.shape, over)


def mean_backward(dy: Array, saved: Any) -> Array:
    """∂y/∂xᵢ = 1/n, so dx = dy / n. The division comes before the repetition, where there are fewer elements."""
    shape, over = saved
    return _spread(dy / _count(shape, over), shape, over)


mean = Op(mean_forward, mean_backward)


def var_forward(x: Array, dim: Any = None, correction: float = 1, keepdim: bool = False) -> tuple[Array, Any]:
    """y = Σ (x - μ)² / (n - correction),   μ the mean of the n numbers along the axes ``dim``

    With ``correction=1`` the variance of a sample is an unbiased estimate of the variance of its distribution. With 0 it
    is the mean squared distance from the mean.

    Shapes, Raises: as mean.
    Saves: x - μ, the axes, the divisor.
    Source: equals torch.var.
    """
    centred, over, divisor = _centred("var", x, dim, correction)
    return sum_of(centred * centred, over, keepdim) / divisor, (centred, over, divisor)


def var_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · 2 (x - μ) / (n - correction)

    x also changes μ, but this has no effect: the distances from the mean sum to 0, so to first order the sum of their
    squares does not depend on μ.
    """
    centred, over, divisor = saved
    return _spread(2 * dy, centred.shape, over) * centred / divisor


var_op = Op(var_forward, var_backward, in_float32=True)


def std_forward(x: Array, dim: Any = None, correction: float = 1, keepdim: bool = False) -> tuple[Array, Any]:
    """y = √var

    Shapes, Raises: as mean.
    Saves: x - μ, the divisor, y.
    Source: equals torch.std.
    """
    centred, over, divisor = _centred("std", x, dim, correction)
    y = root_mean_square(centred, over, divisor)
    return y if keepdim else y.squeeze(over), (centred, divisor, y)


def std_backward(dy: Array, saved: Any) -> Array:
    """y² = var, so 2y ∂y = ∂var, and  dx = dy · (x - μ) / (y · (n - correction)).

    Where all inputs are equal, y = 0. The function has a kink there, like |x| at 0, and the gradient is taken as 0.
    """
    centred, divisor, y = saved
    per_distance = apply_mask(dy.reshape(y.shape), y != 0) / array_module(y).where(y == 0, 1, y) / divisor
    return per_distance * centred


std_op = Op(std_forward, std_backward, in_float32=True)


def var(x: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float = 1) -> Tensor:
    """`var_forward` on tensors, with torch's older spelling too: ``unbiased`` means ``correction`` 1 or 0."""
    dim, correction = _older_spelling(dim, unbiased, correction)
    return var_op(x, dim, correction, keepdim)


def std(x: Tensor, dim: Any = None, unbiased: bool | None = None, keepdim: bool = False, *, correction: float = 1) -> Tensor:
    """`std_forward` on tensors, with torch's older spelling too: ``unbiased`` means ``correction`` 1 or 0."""
    dim, correction = _older_spelling(dim, unbiased, correction)
    return std_op(x, dim, correction, keepdim)


def prod_forward(x: Array, dim: int | None = None, keepdim: bool = False) -> tuple[Array, Any]:
    """y = Π x,   along one axis or over everything

    Integers and bools multiply to int64.

    Shapes: as sum.
    Saves: x, the axis.
    Raises: IndexError if the axis does not exist; NotImplementedError for several.
    Source: equals torch.prod.
    """
    if isinstance(dim, tuple | list):
        raise NotImplementedError(f"prod: dim={dim!r} names several axes; take the product over one, or over all (dim=None).")
    over = normalize_axes("prod", dim, x.ndim)
    return x.prod(axis=over, dtype=_accumulator(x), keepdims=keepdim), (x, over)


def prod_backward(dy: Array, saved: Any) -> Array:
    """∂y/∂xᵢ = Π_{j≠i} xⱼ,   the product of all the others.

    That is y/xᵢ, unless some x is 0. With one zero, only the zero itself has a gradient; with two, no element has one.
    So this page does not divide. The others are the elements before i and those after i, and their products are
    cumulative products, one from the front and one from the back. With a zero among the others, y is 0 for every xᵢ,
    so dxᵢ is 0 whatever dy is.
    """
    x, over = saved
    xp = array_module(x)
    rows = x.reshape(-1) if len(over) != 1 else xp.moveaxis(x, over[0], -1)  # (..., n)
    ones = xp.ones((*rows.shape[:-1], 1), rows.dtype)
    before = xp.cumprod(xp.concatenate((ones, rows[..., :-1]), axis=-1)[..., : rows.shape[-1]], axis=-1)
    after = xp.cumprod(xp.concatenate((ones, rows[..., :0:-1]), axis=-1)[..., : rows.shape[-1]], axis=-1)[..., ::-1]
    others = before * after
    others = others.reshape(x.shape) if len(over) != 1 else xp.moveaxis(others, -1, over[0])
    return apply_mask(_spread(dy, x.shape, over), others != 0) * others


prod = Op(prod_forward, prod_backward, in_float32=True)


def logsumexp_forward(x: Array, dim: Any, keepdim: bool = False) -> tuple[Array, Any]:
    """y = log Σ exp(x) = m + log Σ exp(x - m),   for any m

    m is the largest x along the axes ``dim``. Then the largest term of the sum is exactly 1, so nothing overflows, and
    the sum cannot round to 0. If the largest x is infinite, m = 0 is used instead, which avoids ∞ - ∞. A row of
    only -∞ has y = -∞.

    Shapes, Raises: as sum.
    Saves: x, y, the axes.
    Source: equals torch.logsumexp.
    """
    x = to_floating(x)
    xp = array_module(x)
    over = normalize_axes("logsumexp", dim, x.ndim)
    if not _count(x.shape, over):
        y = xp.log(sum_of(xp.exp(x), over, keepdims=True))
        return y if keepdim else y.squeeze(over), (x, y, over)
    largest = x.max(axis=over, keepdims=True)
    m = xp.where(xp.isfinite(largest), largest, 0)
    total = sum_of(xp.exp(x - m), over, keepdims=True)
    y = xp.where(total == 0, largest, m + xp.log(xp.where(total == 0, 1, total)))
    return y if keepdim else y.squeeze(over), (x, y, over)


def logsumexp_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · exp(x - y),   which is dy · softmax(x)

    In words: y is close to the largest x, and each x gets dy in proportion to its share of the sum. A row of only -∞ has
    no shares, and gets 0.
    """
    x, y, over = saved
    xp = array_module(x)
    return _spread(dy, x.shape, over) * xp.exp(x - xp.where(y == -xp.inf, 0, y))


logsumexp = Op(logsumexp_forward, logsumexp_backward, in_float32=True)


def cumsum_forward(x: Array, dim: int) -> tuple[Array, Any]:
    """yᵢ = x₀ + … + xᵢ,   along the axis ``dim``

    Shapes: x, y of one shape.
    Saves: the axis.
    Raises: IndexError if the axis does not exist.
    Source: equals torch.cumsum.
    """
    along = normalize_axis("cumsum", dim, x.ndim)
    return _running_sum(x, along).reshape(x.shape), along


def cumsum_backward(dy: Array, saved: Any) -> Array:
    """dxᵢ = dyᵢ + … + dyₙ, because xᵢ is part of every sum from yᵢ on: a cumulative sum from the other end."""
    along = saved
    if dy.ndim == 0:
        return dy
    xp = array_module(dy)
    return xp.flip(_running_sum(xp.flip(dy, along), along), along)


cumsum = Op(cumsum_forward, cumsum_backward, in_float32=True)


def all(x: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Whether all elements along the axes ``dim`` are True, or not 0. Not recorded: a bool has no gradient."""
    x = unwrap(x)
    return Tensor(x.all(axis=normalize_axes("all", dim, x.ndim), keepdims=keepdim))


def any(x: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
    """Whether any element along the axes ``dim`` is True, or not 0. Not recorded: a bool has no gradient."""
    x = unwrap(x)
    return Tensor(x.any(axis=normalize_axes("any", dim, x.ndim), keepdims=keepdim))


def _spread(dy: Array, shape: tuple[int, ...], over: tuple[int, ...]) -> Array:
    """``dy`` repeated along the axes that a reduction removed; a view, which must not be written to."""
    kept = tuple(1 if i in over else n for i, n in enumerate(shape))
    return array_module(dy).broadcast_to(dy.reshape(kept), shape)


def _count(shape: tuple[int, ...], over: tuple[int, ...]) -> int:
    """How many elements are reduced to one."""
    n = 1
    for i in over:
        n *= shape[i]
    return n


def _accumulator(x: Array) -> Any:
    """The dtype of a sum or product: int64 for integers and bools, as in torch; otherwise that of ``x``."""
    return x.dtype if is_floating(x.dtype) else "int64"


def _running_sum(x: Array, axis: int) -> Array:
    """x₀, x₀ + x₁, …. Each number is added to the last sum, so this adds in float64, as torch does."""
    if not is_floating(x.dtype):
        return x.cumsum(axis=axis, dtype="int64")
    y = x.reshape(x.shape or 1).astype("float64")
    xp = array_module(y)
    (np.add.accumulate if xp is np else xp.cumsum)(y, axis=axis, out=y)
    return y.astype(x.dtype, copy=False)


def _centred(op: str, x: Array, dim: Any, correction: float) -> tuple[Array, tuple[int, ...], float]:
    """x - μ, the axes, n - correction.

    The variance is computed in two passes: first μ, then the mean of squared distances from it. E[x²] - E[x]² would subtract two
    large, nearly equal numbers, and lose most digits in float32. μ is rounded, so the distances do not quite sum to 0;
    the subtraction of their own mean corrects that.
    """
    require_floating(op, x)
    over = normalize_axes(op, dim, x.ndim)
    centred = x - mean_of(x, over, keepdims=True)
    centred -= mean_of(centred, over, keepdims=True)
    return centred, over, max(_count(x.shape, over) - correction, 0)


def _older_spelling(dim: Any, unbiased: bool | None, correction: float) -> tuple[Any, float]:
    """torch also allows ``var(x, unbiased)`` and ``var(x, dim, unbiased)``."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    return dim, correction if unbiased is None else int(unbiased)
