"""The Kullback-Leibler divergence: how much is lost when q is taken for p."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import broadcast_shape, promote, require_floating, unbroadcast
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import mean_of, sum_of


def kl_div_forward(x: Array, target: Array, reduction: str = "mean", log_target: bool = False) -> tuple[Array, Any]:
    """loss = p (log p - x),   x = log q,   p = target, or exp(target) if ``log_target``; 0 where p = 0

    Added up over a distribution it is the cross-entropy of p and q less the entropy of p: what q costs beyond what cannot be helped. "mean"
    divides by the number of all elements, "batchmean" by the number of rows, which is the divergence of a row.

    Shapes: x and target broadcast.
    Saves: x, target.
    Raises: ValueError if the shapes do not broadcast, or for an unknown reduction.
    Source: Kullback, Leibler 1951; equals torch.nn.functional.kl_div.
    """
    if reduction not in ("mean", "batchmean", "sum", "none"):
        raise ValueError(f"kl_div: reduction is 'mean', 'batchmean', 'sum' or 'none', got {reduction!r}.")
    broadcast_shape("kl_div", x.shape, target.shape)
    shapes = x.shape, target.shape
    x, target = promote(x, target)
    require_floating("kl_div", x)
    xp = array_module(x)
    if log_target:
        loss = xp.exp(target) * (target - x)
    else:
        is_0 = target == 0
        loss = target * xp.where(is_0, 0, xp.log(xp.where(is_0, 1, target))) - target * x
    n = _divisor(loss.shape, shapes[0], reduction)
    y = loss if reduction == "none" else mean_of(loss) if reduction == "mean" else sum_of(loss) / n
    return y, (x, target, log_target, None if reduction == "none" else n, shapes)


def kl_div_backward(dy: Array, saved: Any) -> tuple[Array, Array]:
    """dx = -p · dy,   dtarget = (log p + 1 - x) · dy   (/ n), or p (log p + 1 - x) · dy for ``log_target``

    The loss is a straight line in x = log q. In p it is p log p, whose derivative is log p + 1, less p x. A target of 0 gets 0: the graph
    of p log p is vertical there.
    """
    x, target, log_target, n, shapes = saved
    xp = array_module(x)
    dy = xp.broadcast_to(dy if n is None else dy / n, broadcast_shape("kl_div", x.shape, target.shape))
    if log_target:
        p = xp.exp(target)
        dtarget = dy * p * (target + 1 - x)
    else:
        p = target
        is_0 = target == 0
        dtarget = apply_mask(dy * (xp.log(xp.where(is_0, 1, target)) + 1 - x), ~is_0)
    return unbroadcast(-dy * p, shapes[0]), unbroadcast(dtarget, shapes[1])


kl_div = Op(kl_div_forward, kl_div_backward, in_float32=True)


def _divisor(shape: tuple[int, ...], input_shape: tuple[int, ...], reduction: str) -> int:
    """By what the sum of all is divided."""
    size = 1
    for n in shape:
        size *= n
    return size if reduction == "mean" else (input_shape[0] if input_shape else 1) if reduction == "batchmean" else 1
