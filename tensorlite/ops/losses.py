"""Mean squared error. (Cross-entropy has a page of its own.)"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array
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
