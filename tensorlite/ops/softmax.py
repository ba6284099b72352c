"""Softmax turns scores into probabilities. Every output depends on every input of its row."""

from __future__ import annotations

from typing import NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axis
from tensorlite.ops.broadcasting import require_floating
from tensorlite.ops.summation import sum_of


class SoftmaxSaved(NamedTuple):
    """What backward needs of the forward, here and in `log_softmax`."""

    y: Array
    dim: int | None  # negative; None for an array without axes


def softmax_forward(x: Array, dim: int = -1) -> tuple[Array, SoftmaxSaved]:
    """yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ),   the sum along ``dim``

    The row's maximum is subtracted first. It cancels in the quotient, and exp is then applied to numbers
    up to 0 only: exp(1000) overflows, exp(1000 - 1000) does not.

    Shapes: x, y of any shape.
    Saves: y and the axis. Backward needs nothing else.
    Raises: IndexError if ``dim`` does not exist, RuntimeError for integers.
    Source: Bridle 1990; equals torch.nn.functional.softmax.
    """
    require_floating("softmax", x)
    along = normalize_axis("softmax", dim, x.ndim) - x.ndim if x.ndim else None
    if x.size == 0:  # max() of an empty array raises
        return x.copy(), SoftmaxSaved(x, along)
    exponentials = array_module(x).exp(x - x.max(axis=along, keepdims=True))
    y = exponentials / sum_of(exponentials, along, keepdims=True)
    return y, SoftmaxSaved(y, along)


def softmax_backward(dy: Array, saved: SoftmaxSaved) -> Array:
    """dx = y · (dy - Σⱼ dyⱼ yⱼ)

    A larger xⱼ raises the numerator of yⱼ and the denominator of all outputs. With the quotient rule
        ∂yᵢ/∂xⱼ = yᵢ δᵢⱼ - yᵢ yⱼ
    so the Jacobian is a diagonal minus a matrix of rank one, y yᵀ. This matrix of C x C numbers is never
    formed. Multiplied by dy, it is
        dxⱼ = Σᵢ dyᵢ (yᵢ δᵢⱼ - yᵢ yⱼ) = yⱼ dyⱼ - yⱼ Σᵢ dyᵢ yᵢ.

    In words: probabilities sum to 1, so when one grows the others shrink. Σ dy y is the mean of the gradient
    over the row, with the probabilities as weights. The gradient of a score is its own dy minus that mean,
    times its probability. Hence each row of dx sums to 0: adding a constant to all scores changes nothing.

    Shapes: dy, dx as x.
    """
    y = saved.y
    return y * (dy - sum_of(dy * y, saved.dim, keepdims=True))


softmax = Op(softmax_forward, softmax_backward, in_float32=True)


def log_softmax_forward(x: Array, dim: int = -1) -> tuple[Array, SoftmaxSaved]:
    """yᵢ = xᵢ - log Σⱼ exp(xⱼ)

    This is not computed as log(softmax(x)): a probability that rounds to 0 would become -inf.

    Shapes: x, y of any shape.
    Saves: y and the axis.
    Raises: IndexError if ``dim`` does not exist, RuntimeError for integers.
    Source: equals torch.nn.functional.log_softmax.
    """
    require_floating("log_softmax", x)
    xp = array_module(x)
    along = normalize_axis("log_softmax", dim, x.ndim) - x.ndim if x.ndim else None
    if x.size == 0:  # max() of an empty array raises
        return x.copy(), SoftmaxSaved(x, along)
    shifted = x - x.max(axis=along, keepdims=True)
    y = shifted - xp.log(sum_of(xp.exp(shifted), along, keepdims=True))
    return y, SoftmaxSaved(y, along)


def log_softmax_backward(dy: Array, saved: SoftmaxSaved) -> Array:
    """The derivative of log Σ exp(x) is softmax(x) = exp(y), so ∂yᵢ/∂xⱼ = δᵢⱼ - exp(yⱼ) and

    dx = dy - exp(y) · Σ dy.
    """
    probabilities = array_module(saved.y).exp(saved.y)
    return dy - probabilities * sum_of(dy, saved.dim, keepdims=True)


log_softmax = Op(log_softmax_forward, log_softmax_backward, in_float32=True)
