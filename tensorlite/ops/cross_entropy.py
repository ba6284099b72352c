"""Cross-entropy: minus the log-probability that the model gave to the right class."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import mean_of, sum_of


class CrossEntropySaved(NamedTuple):
    """What backward needs of the forward. The class axis is the last one here."""

    probabilities: Array  # p, (..., V)
    target: Array  # (...), 0 where the row is ignored
    kept: Array  # (...), False where the row is ignored
    divisor: Any  # of each row's loss
    label_smoothing: float
    class_axis: int  # where x has it


def cross_entropy_forward(
    x: Array, target: Array, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
) -> tuple[Array, CrossEntropySaved]:
    """loss = -Σᵥ q_v log p_v,   p = softmax(x),   q = 1 at the target, 0 elsewhere

    For such a q this is -log p_target: the number of nats needed to encode the target. A model that gives
    every one of V tokens the same probability has the loss log V. With label smoothing ε, q = 1 - ε + ε/V at the
    target and ε/V elsewhere. ``reduction`` is "mean" over the rows whose target is not ``ignore_index``, "sum", or
    "none". The mean over no rows is nan, as in torch. Its gradient is 0, so such a batch changes no weight.

    log p is computed as x - max(x) - log Σ exp(x - max(x)), never as the log of a probability, which may round to 0.

    Shapes: x (N, V), or (V,), or (N, V, d1, ...) with the classes on axis 1; target as x without the class axis.
        loss 0-d, or the shape of target for "none".
    Saves: p, the targets, which rows are kept, the divisor.
    Raises: ValueError if shapes or options do not fit; TypeError for targets that are not integers; IndexError for a
        target out of range (on the CPU only, see `embedding_forward`).
    Source: Shannon 1948; equals torch.nn.functional.cross_entropy.
    """
    rows, class_axis = _rows_of_classes("cross_entropy", x, target)  # (..., V)
    kept, index = check_targets("cross_entropy", target, rows.shape[-1], ignore_index)  # (...,)
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"cross_entropy: label_smoothing is between 0 and 1, got {label_smoothing}.")
    xp = array_module(x)
    shifted = rows - rows.max(axis=-1, keepdims=True)
    exponentials = xp.exp(shifted)
    total = sum_of(exponentials, -1, keepdims=True)
    log_total = xp.log(total)[..., 0]
    loss = log_total - xp.take_along_axis(shifted, index[..., None], axis=-1)[..., 0]  # -log p_target
    if label_smoothing:
        loss = (1 - label_smoothing) * loss + label_smoothing * (log_total - mean_of(shifted, -1))
    loss, divisor = _reduced("cross_entropy", loss, kept, reduction)
    return loss, CrossEntropySaved(exponentials / total, index, kept, divisor, label_smoothing, class_axis)


def cross_entropy_backward(dy: Array, saved: CrossEntropySaved) -> tuple[Array, None]:
    """dx = (p - q) · dy / divisor

    Per row, loss = -Σᵥ q_v log p_v with log p_v = x_v - log Σ exp(x). The derivative of log Σ exp(x) with respect
    to x_v is exp(x_v) / Σ exp(x) = p_v, so
        ∂log p_u/∂x_v = δ_uv - p_v
        ∂loss/∂x_v = -Σᵤ q_u (δ_uv - p_v) = p_v Σᵤ q_u - q_v = p_v - q_v
    since q sums to 1. The softmax's Jacobian of rank one and the logarithm's 1/p have cancelled.

    In words: the gradient is the predicted distribution minus the true one. A step against it raises the
    target's score in proportion to the probability that it lacks, and lowers every other score in proportion to
    the probability that it has. A row of the gradient sums to 0, and a prediction that was certain and right has
    the gradient 0. "mean" divides every row by the number of kept rows. Ignored rows get 0, even where they hold
    nan; there torch gives nan.

    Shapes: dy as the loss, dx as x.
    """
    p, smoothing = saved.probabilities, saved.label_smoothing
    xp = array_module(p)
    dx = p - smoothing / p.shape[-1] if smoothing else p.copy()
    target = saved.target[..., None]
    at_target = xp.take_along_axis(dx, target, axis=-1)
    xp.put_along_axis(dx, target, at_target - (1 - smoothing), axis=-1)
    dx *= (dy / saved.divisor)[..., None]
    dx[~saved.kept] = 0
    return xp.moveaxis(dx, -1, saved.class_axis), None


cross_entropy = Op(cross_entropy_forward, cross_entropy_backward, in_float32=True)


def nll_loss_forward(x: Array, target: Array, ignore_index: int = -100, reduction: str = "mean") -> tuple[Array, Any]:
    """loss = -x_target, where x holds log-probabilities: the second half of cross-entropy.

    Shapes: as `cross_entropy_forward`.
    Saves: the shape of x, the targets, which rows are kept, the divisor.
    Raises: as `cross_entropy_forward`.
    Source: equals torch.nn.functional.nll_loss.
    """
    rows, class_axis = _rows_of_classes("nll_loss", x, target)
    kept, index = check_targets("nll_loss", target, rows.shape[-1], ignore_index)
    loss = -array_module(x).take_along_axis(rows, index[..., None], axis=-1)[..., 0]
    loss, divisor = _reduced("nll_loss", loss, kept, reduction)
    return loss, (rows.shape, index, kept, divisor, class_axis)


def nll_loss_backward(dy: Array, saved: Any) -> tuple[Array, None]:
    """dx is -dy / divisor at each row's target and 0 elsewhere, because the loss reads only the target's entry."""
    shape, index, kept, divisor, class_axis = saved
    xp = array_module(dy)
    dx = xp.zeros(shape, dy.dtype)
    xp.put_along_axis(dx, index[..., None], -apply_mask(dy / divisor, kept)[..., None], axis=-1)
    return xp.moveaxis(dx, -1, class_axis), None


nll_loss = Op(nll_loss_forward, nll_loss_backward, in_float32=True)


def _rows_of_classes(op: str, x: Array, target: Array) -> tuple[Array, int]:
    """x with its class axis moved to the end, and the axis where it was.

    Raises:
        RuntimeError: if x holds integers.
        ValueError: if x has no axes or no classes, or target is not x without its class axis.
    """
    require_floating(op, x)
    class_axis = 1 if x.ndim > 1 else 0
    if x.ndim == 0 or target.shape != x.shape[:class_axis] + x.shape[class_axis + 1 :]:
        raise ValueError(f"{op}: x {x.shape} needs a target of its shape without the class axis (axis {class_axis}), got {target.shape}.")
    if x.shape[class_axis] == 0:
        raise ValueError(f"{op}: x {x.shape} has no classes (axis {class_axis} is empty): there is nothing to choose from.")
    return array_module(x).moveaxis(x, class_axis, -1), class_axis


def check_targets(op: str, target: Array, classes: int, ignore_index: int) -> tuple[Array, Array]:
    """Which rows count, and the targets as indices (0 where the row does not count).

    Raises:
        TypeError: if targets are not integers.
        IndexError: for NumPy arrays with a target out of range. CuPy arrays are not read: that would wait for the device.
    """
    if target.dtype.kind not in "iu":
        raise TypeError(f"{op}: targets must be class numbers (integers), got {target.dtype}.")
    xp = array_module(target)
    kept = target != ignore_index
    index = xp.where(kept, target, 0).astype(np.int64)
    if xp is np and index.size and (index.min() < 0 or index.max() >= classes):
        wrong = index.min() if index.min() < 0 else index.max()
        raise IndexError(f"{op}: target {wrong} is out of range: there are {classes} classes, 0 to {classes - 1}.")
    return kept, index


def _reduced(op: str, loss: Array, kept: Array, reduction: str) -> tuple[Array, Any]:
    """The losses of the rows reduced as ``reduction`` says, and the divisor of each row's loss."""
    xp = array_module(loss)
    loss = xp.where(kept, loss, 0)
    if reduction == "mean":
        rows = kept.sum().astype(loss.dtype)
        divisor = xp.maximum(rows, 1)
        return xp.where(rows == 0, math.nan, sum_of(loss / divisor)), divisor
    if reduction == "sum":
        return sum_of(loss), 1
    if reduction == "none":
        return loss, 1
    raise ValueError(f"{op}: reduction is 'mean', 'sum' or 'none', got {reduction!r}.")
