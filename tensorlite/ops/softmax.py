"""Softmax: scores to probabilities. Every output depends on every input of its row."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axis
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.summation import sum_of


def softmax_forward(x: Array, dim: int = -1) -> tuple[Array, Any]:
    """yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ),   the sum along ``dim``

    The row's maximum is subtracted first. It cancels in the quotient, and exp then sees only numbers
    up to 0: exp(1000) overflows, exp(1000 - 1000) does not.

    Shapes: x, y of any shape.
    Saves: y; backward needs nothing else.
    Raises: IndexError if ``dim`` does not exist, RuntimeError for integers.
    Source: Bridle 1990; equals torch.nn.functional.softmax.
    """
    require_floating("softmax", x)
    along = normalize_axis("softmax", dim, x.ndim) - x.ndim if x.ndim else None
    if x.size == 0:  # of no numbers none is the largest
        return x.copy(), (x, along)
    exponentials = array_module(x).exp(x - x.max(axis=along, keepdims=True))
    y = exponentials / sum_of(exponentials, along, keepdims=True)
    return y, (y, along)


def softmax_backward(dy: Array, saved: Any) -> Array:
    """dx = y · (dy - Σⱼ dyⱼ yⱼ)

    Raising xⱼ raises the numerator of yⱼ and the denominator of all. With the quotient rule
        ∂yᵢ/∂xⱼ = yᵢ δᵢⱼ - yᵢ yⱼ
    so the Jacobian is a diagonal minus a matrix of rank one, y yᵀ. A matrix of C x C numbers never
    needs to exist: multiplied by dy,
        dxⱼ = Σᵢ dyᵢ (yᵢ δᵢⱼ - yᵢ yⱼ) = yⱼ dyⱼ - yⱼ Σᵢ dyᵢ yᵢ.

    In words: probabilities sum to 1, so what one gains the others lose. Σ dy y is the gradient averaged
    over the row with the probabilities as weights; a score is pushed up only as far as its own
    gradient is better than that average. Hence each row of dx sums to 0: adding a constant to all
    scores changes nothing.

    Shapes: dy, dx as x.
    """
    y, dim = saved
    return y * (dy - sum_of(dy * y, dim, keepdims=True))


softmax = Op(softmax_forward, softmax_backward, in_float32=True)


def log_softmax_forward(x: Array, dim: int = -1) -> tuple[Array, Any]:
    """yᵢ = xᵢ - log Σⱼ exp(xⱼ)

    Never log(softmax(x)): a probability that rounds to 0 would become -inf.

    Shapes: x, y of any shape.
    Saves: y.
    Raises: IndexError if ``dim`` does not exist, RuntimeError for integers.
    Source: equals torch.nn.functional.log_softmax.
    """
    require_floating("log_softmax", x)
    xp = array_module(x)
    along = normalize_axis("log_softmax", dim, x.ndim) - x.ndim if x.ndim else None
    if x.size == 0:  # of no numbers none is the largest
        return x.copy(), (x, along)
    shifted = x - x.max(axis=along, keepdims=True)
    y = shifted - xp.log(sum_of(xp.exp(shifted), along, keepdims=True))
    return y, (y, along)


def log_softmax_backward(dy: Array, saved: Any) -> Array:
    """The derivative of log Σ exp(x) is softmax(x) = exp(y), so ∂yᵢ/∂xⱼ = δᵢⱼ - exp(yⱼ) and

    dx = dy - exp(y) · Σ dy.
    """
    y, dim = saved
    return dy - array_module(y).exp(y) * sum_of(dy, dim, keepdims=True)


log_softmax = Op(log_softmax_forward, log_softmax_backward, in_float32=True)
