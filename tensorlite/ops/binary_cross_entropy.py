"""Binary cross-entropy: how surprised one is by yes or no.

A model that says yes with probability x is surprised by a yes by -log x, and by a no by -log(1 - x). The target is 1 or 0, or a
probability in between. With x = σ(z) it is the cross-entropy of two classes with the scores z and 0, and its gradient is as simple:
x - target.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import broadcast_shape, require_floating, unbroadcast
from tensorlite.ops.summation import mean_of, sum_of

_LEAST_LOG = -100.0  # stands for log 0, which is -∞: one certain mistake would make the whole mean infinite
_LEAST_VARIANCE = float(np.float32(1e-12))  # as torch has it


def binary_cross_entropy_forward(x: Array, target: Array, reduction: str = "mean") -> tuple[Array, Any]:
    """loss = -(t log x + (1 - t) log(1 - x)), averaged, added up, or left as it is; a logarithm is at least -100

    Shapes: x (probabilities) and target of one shape; loss 0-d, or their shape for reduction "none".
    Saves: x, target.
    Raises: ValueError for other shapes, an unknown reduction or an x outside of [0, 1] (on the CPU, where looking is free).
    Source: equals torch.nn.functional.binary_cross_entropy.
    """
    _check("binary_cross_entropy", x, target, reduction)
    if isinstance(x, np.ndarray) and x.size and not (x.min() >= 0 and x.max() <= 1):
        raise ValueError(
            f"binary_cross_entropy: probabilities lie between 0 and 1, got {x.min()} to {x.max()}; for scores there is {_LOGITS}."
        )
    log_yes, log_no = _logs(x)
    return _reduced(-(target * log_yes + (1 - target) * log_no), reduction), (x, target, reduction)


def binary_cross_entropy_backward(dy: Array, saved: Any) -> tuple[Array, Array]:
    """dx = dy · (x - t) / (x (1 - x)),   dtarget = dy · (log(1 - x) - log x)   (/ n for the mean)

    -t/x + (1 - t)/(1 - x), over one denominator. It is the variance of a yes and no, small where the model is certain: there a mistake
    is felt most. Right at 0 and 1 it is taken as 1e-12.
    """
    x, target, reduction = saved
    dy = dy / x.size if reduction == "mean" else dy
    log_yes, log_no = _logs(x)
    return dy * (x - target) / array_module(x).maximum(x * (1 - x), _LEAST_VARIANCE), dy * (log_no - log_yes)


binary_cross_entropy = Op(binary_cross_entropy_forward, binary_cross_entropy_backward, in_float32=True)


def binary_cross_entropy_with_logits_forward(
    x: Array, target: Array, pos_weight: Array | None = None, reduction: str = "mean"
) -> tuple[Array, Any]:
    """loss = -(w t log σ(x) + (1 - t) log(1 - σ(x))) = (1 - t) x + (1 + (w - 1) t) · log(1 + e⁻ˣ),   w = pos_weight or 1

    The second form comes from 1 - σ(x) = e⁻ˣ σ(x). It never takes the logarithm of a probability that was rounded to 0, and
    log(1 + e⁻ˣ) = max(-x, 0) + log(1 + exp(-|x|)) has no positive exponent.

    Shapes: x (scores) and target of one shape; pos_weight broadcasts with them and gets no gradient.
    Saves: x, target, pos_weight.
    Raises: ValueError for other shapes or an unknown reduction.
    Source: equals torch.nn.functional.binary_cross_entropy_with_logits.
    """
    _check("binary_cross_entropy_with_logits", x, target, reduction)
    if pos_weight is not None:
        broadcast_shape("binary_cross_entropy_with_logits", x.shape, pos_weight.shape)
    weight = 1 if pos_weight is None else 1 + (pos_weight - 1) * target
    return _reduced((1 - target) * x + weight * _surprise_of_yes(x), reduction), (x, target, pos_weight, reduction)


def binary_cross_entropy_with_logits_backward(dy: Array, saved: Any) -> tuple[Array, Array]:
    """dx = dy · (σ(x) - t),   dtarget = -dy · x   (/ n for the mean), for w = 1

    log(1 + e⁻ˣ) has the derivative -σ(-x) = σ(x) - 1, so dx = (1 - t) + (σ(x) - 1). In words: what was said less what was true. It does not
    vanish where the model is certain and wrong; the squared error's would, for it would be multiplied by σ'.
    With w it is dx = (1 - t) + (1 + (w - 1) t) (σ(x) - 1), and the target's -x + (w - 1) log(1 + e⁻ˣ).
    """
    x, target, pos_weight, reduction = saved
    xp = array_module(x)
    dy = dy / x.size if reduction == "mean" else dy
    z = xp.exp(-xp.abs(x))
    not_yes = xp.where(x > 0, z, 1) / (1 + z)  # 1 - σ(x)
    if pos_weight is None:
        return dy * (1 - target - not_yes), -dy * x
    dx = dy * (1 - target - (1 + (pos_weight - 1) * target) * not_yes)
    return unbroadcast(dx, x.shape), dy * ((pos_weight - 1) * _surprise_of_yes(x) - x)


binary_cross_entropy_with_logits = Op(binary_cross_entropy_with_logits_forward, binary_cross_entropy_with_logits_backward, in_float32=True)
_LOGITS = "binary_cross_entropy_with_logits"


def _surprise_of_yes(x: Array) -> Array:
    """log(1 + e⁻ˣ)"""
    xp = array_module(x)
    return xp.maximum(-x, 0) + xp.log1p(xp.exp(-xp.abs(x)))


def _logs(x: Array) -> tuple[Array, Array]:
    """log x and log(1 - x), at least -100."""
    xp = array_module(x)
    some, not_all = x > 0, x < 1
    log_yes = xp.where(some, xp.log(xp.where(some, x, 1)), _LEAST_LOG)
    log_no = xp.where(not_all, xp.log1p(-xp.where(not_all, x, 0)), _LEAST_LOG)
    return xp.maximum(log_yes, _LEAST_LOG), xp.maximum(log_no, _LEAST_LOG)


def _check(name: str, x: Array, target: Array, reduction: str) -> None:
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"{name}: reduction is 'mean', 'sum' or 'none', got {reduction!r}.")
    if x.shape != target.shape:
        raise ValueError(f"{name}: input and target must have one shape, got {x.shape} and {target.shape}.")
    require_floating(name, x, target)


def _reduced(loss: Array, reduction: str) -> Array:
    return loss if reduction == "none" else sum_of(loss) if reduction == "sum" else mean_of(loss)
