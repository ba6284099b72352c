"""How far from the target: the square of the distance, the distance, and both. (Cross-entropies have pages of their own.)"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import broadcast_shape, promote, require_floating, unbroadcast
from tensorlite.ops.summation import mean_of, sum_of


def mse_loss_forward(x: Array, target: Array, reduction: str = "mean") -> tuple[Array, Any]:
    """loss = (x - target)², averaged over all elements, added up, or left as it is.

    Shapes: x and target broadcast; loss 0-d, or their common shape for reduction "none".
    Saves: x - target.
    Raises: ValueError if the shapes do not broadcast, or for an unknown reduction; RuntimeError if both are integers.
    Source: equals torch.nn.functional.mse_loss.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"mse_loss: reduction is 'mean', 'sum' or 'none', got {reduction!r}.")
    broadcast_shape("mse_loss", x.shape, target.shape)
    shapes = x.shape, target.shape
    x, target = promote(x, target)
    require_floating("mse_loss", x)
    difference = x - target
    square = difference * difference
    loss = square if reduction == "none" else sum_of(square) if reduction == "sum" else mean_of(square)
    return loss, (difference, reduction, shapes)


def mse_loss_backward(dy: Array, saved: Any) -> tuple[Array, Array]:
    """dx = 2 (x - target) · dy, divided by n for the mean. The target is subtracted, so it gets -dx."""
    difference, reduction, (x_shape, target_shape) = saved
    dx = 2 * difference * (dy / difference.size if reduction == "mean" else dy)
    return unbroadcast(dx, x_shape), unbroadcast(-dx, target_shape)


mse_loss = Op(mse_loss_forward, mse_loss_backward, in_float32=True)


def l1_loss_forward(x: Array, target: Array, reduction: str = "mean") -> tuple[Array, Any]:
    """loss = |x - target|, averaged over all elements, added up, or left as it is.

    Its best constant guess is the median, where that of the square is the mean: an outlier pulls no harder than any other.

    Shapes, Raises: as mse_loss.
    Saves: the sign of x - target.
    Source: equals torch.nn.functional.l1_loss.
    """
    difference, shapes = _difference("l1_loss", x, target, reduction)
    xp = array_module(difference)
    return _reduced(xp.abs(difference), reduction), (xp.sign(difference), reduction, shapes)


def l1_loss_backward(dy: Array, saved: Any) -> tuple[Array, Array]:
    """dx = ±dy (/ n for the mean), towards the target, however far that is; at the target itself 0, the middle of both."""
    slope, reduction, shapes = saved
    return _both(slope, dy, reduction, shapes)


l1_loss = Op(l1_loss_forward, l1_loss_backward, in_float32=True)


def smooth_l1_loss_forward(x: Array, target: Array, reduction: str = "mean", beta: float = 1.0) -> tuple[Array, Any]:
    """loss = d²/(2 beta) where |d| < beta, else |d| - beta/2,   d = x - target

    The square near the target, the absolute value far from it; the two meet at beta with the same height and slope.

    Shapes, Raises: as mse_loss; also ValueError for a negative beta.
    Saves: d, beta.
    Source: Girshick 2015, "Fast R-CNN"; equals torch.nn.functional.smooth_l1_loss.
    """
    if beta < 0:
        raise ValueError(f"smooth_l1_loss: beta must not be negative, got {beta}.")
    d, shapes = _difference("smooth_l1_loss", x, target, reduction)
    xp = array_module(d)
    size = xp.abs(d)
    near = xp.minimum(size, beta)  # |d| where it is below beta: a square of more could overflow
    loss = xp.where(size < beta, near * near / (2 * beta or 1), size - beta / 2)
    return _reduced(loss, reduction), (d, beta, reduction, shapes)


def smooth_l1_loss_backward(dy: Array, saved: Any) -> tuple[Array, Array]:
    """dx = d / beta · dy where |d| < beta, else ±dy (/ n for the mean): the slope grows with the distance until it is 1, and no further."""
    d, beta, reduction, shapes = saved
    xp = array_module(d)
    return _both(xp.sign(d) if beta == 0 else xp.clip(d / beta, -1, 1), dy, reduction, shapes)


smooth_l1_loss = Op(smooth_l1_loss_forward, smooth_l1_loss_backward, in_float32=True)


def _difference(name: str, x: Array, target: Array, reduction: str) -> tuple[Array, Any]:
    """x - target, and the two shapes, after the checks."""
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction is 'mean', 'sum' or 'none', got {reduction!r}.")
    broadcast_shape(name, x.shape, target.shape)
    shapes = x.shape, target.shape
    x, target = promote(x, target)
    require_floating(name, x)
    return x - target, shapes


def _reduced(loss: Array, reduction: str) -> Array:
    return loss if reduction == "none" else sum_of(loss) if reduction == "sum" else mean_of(loss)


def _both(slope: Array, dy: Array, reduction: str, shapes: Any) -> tuple[Array, Array]:
    """The gradients of x and of the target, which stands on the other side of the minus."""
    dx = slope * (dy / slope.size if reduction == "mean" else dy)
    return unbroadcast(dx, shapes[0]), unbroadcast(-dx, shapes[1])
