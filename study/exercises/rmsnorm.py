"""RMS norm: y = x̂ · weight, x̂ = x / r, r = √(mean(x²) + eps)

Layer norm without the mean: a row is only scaled so that its numbers are about as large
as 1. Llama uses it.

Shapes: x and y (..., C), weight (C,).
By hand: x = [3, -4] has the mean square 12.5. Multiply the row by 2: y stays. So dx is
at right angles to x: Σ x · dx = 0.

>>> y, saved = rmsnorm_forward(np.array([[3.0, -4.0]]), np.ones(2), eps=0.0)
>>> dx, dweight = rmsnorm_backward(np.array([[1.0, 0.0]]), saved)
>>> (np.array([3.0, -4.0]) * dx).sum().round(6)
np.float64(0.0)
"""

import numpy as np

from tensorlite.ops.summation import sum_of  # sum_of(x, axes) is x.sum(axis=axes), rounded less


def rmsnorm_forward(x, weight, eps=1e-6):
    """y; x̂ (..., C), 1/r (..., 1) and weight for backward."""
    inverse = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps)
    x_hat = x * inverse
    return x_hat * weight, (x_hat, inverse, weight)


def rmsnorm_backward(dy, saved):
    """dx (..., C) and dweight (C,)."""
    x_hat, inverse, weight = saved
    rows = tuple(range(dy.ndim - 1))  # all axes but the last
    # --- write from here ---
    g = dy * weight
    dx = inverse * (g - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))
    return dx, sum_of(dy * x_hat, rows)


# --- for the checker ---

HINTS = (
    "It is layer norm with one term less. Which of the three is not needed when no mean is subtracted?",
    "A number of x moves its own x̂, and it changes r for its whole row. The gradient has no part along x̂.",
    "dx = (1/r) · (g - x̂ · mean(g · x̂)), with g = dy · weight.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 4)), rng.uniform(0.5, 2, 4))]


def _with(wrong):
    return lambda dy, s: (wrong(dy, *s), rmsnorm_backward(dy, s)[1])


def _mean(a):
    return a.mean(axis=-1, keepdims=True)


LIKELY = {
    "layer norm's backward: no mean was subtracted here, so there is no term mean(g).": _with(
        lambda dy, h, i, w: i * (dy * w - _mean(dy * w) - h * _mean(dy * w * h))
    ),
    "the weight left out: x̂ is multiplied with it, so g = dy · weight.": _with(lambda dy, h, i, w: i * (dy - h * _mean(dy * h))),
    "a sum where a mean belongs, in the second term.": _with(lambda dy, h, i, w: i * (dy * w - h * (dy * w * h).sum(-1, keepdims=True))),
    "dweight without x̂: the sum of dy alone is the gradient of a bias.": lambda dy, s: (
        rmsnorm_backward(dy, s)[0],
        sum_of(dy, tuple(range(dy.ndim - 1))),
    ),
    "a plus before the second term: a larger r makes x̂ smaller.": _with(lambda dy, h, i, w: i * (dy * w + h * _mean(dy * w * h))),
    "the second term without its factor x̂.": _with(lambda dy, h, i, w: i * (dy * w - _mean(dy * w * h))),
}
