"""Layer norm: y = x̂ · weight + bias, x̂ = (x - μ) / σ

μ is the mean of a row of C numbers, σ = √(mean of (x - μ)² + eps) is its spread, and x̂
has the mean 0 and the spread 1. Every number of x moves the mean and the spread of its
row, and through them all numbers of that row of y. This is the gradient that is most
often wrong.

Shapes: x and y (..., C), weight and bias (C,).
By hand: x = [1, 3]: μ = 2, σ = 1, x̂ = [-1, 1]. Raise both by 1: x̂ stays. Multiply
both by 2: x̂ stays. With two numbers nothing else can happen, so dx is [0, 0], whatever
dy is. With dy = [1, 0] and weight 1, dweight is [-1, 0] and dbias is [1, 0].

>>> y, saved = layernorm_forward(np.array([[1.0, 3.0]]), np.ones(2), np.zeros(2))
>>> dx, dweight, dbias = layernorm_backward(np.array([[1.0, 0.0]]), saved)
>>> np.abs(dx).round(3), dweight.round(3), dbias
(array([[0., 0.]]), array([-1.,  0.]), array([1., 0.]))
"""

import numpy as np

from tensorlite.ops.summation import sum_of  # sum_of(x, axes) is x.sum(axis=axes), rounded less


def layernorm_forward(x, weight, bias, eps=1e-5):
    """y; x̂ (..., C), 1/σ (..., 1) and weight for backward."""
    centred = x - x.mean(axis=-1, keepdims=True)
    centred -= centred.mean(axis=-1, keepdims=True)  # what rounding has left of the mean
    inverse_std = 1 / np.sqrt((centred * centred).mean(axis=-1, keepdims=True) + eps)
    x_hat = centred * inverse_std
    return x_hat * weight + bias, (x_hat, inverse_std, weight)


def layernorm_backward(dy, saved):
    """dx (..., C), dweight (C,) and dbias (C,)."""
    x_hat, inverse_std, weight = saved
    rows = tuple(range(dy.ndim - 1))  # all axes but the last
    # --- write from here ---
    g = dy * weight
    dx = inverse_std * (g - g.mean(axis=-1, keepdims=True) - x_hat * (g * x_hat).mean(axis=-1, keepdims=True))
    return dx, sum_of(dy * x_hat, rows), sum_of(dy, rows)


# --- for the checker ---

HINTS = (
    (
        "weight and bias first: they are shared by all rows, so their gradients are sums over the rows. Then g = dy ·"
        " weight is the gradient of x̂."
    ),
    (
        "A number xⱼ does three things: it moves its own x̂ⱼ, it moves the mean of its row, and it changes the "
        "spread of its row. Three terms."
    ),
    "dx = (1/σ) · (g - mean(g) - x̂ · mean(g · x̂)), the means over the last axis with keepdims=True.",
)


def cases(rng):
    """Inputs to check with."""
    return [
        (rng.standard_normal((3, 4)), rng.uniform(0.5, 2, 4), rng.standard_normal(4)),
        (rng.standard_normal((2, 2, 5)), rng.uniform(0.5, 2, 5), rng.standard_normal(5)),
    ]


def _mean(a):
    return a.mean(axis=-1, keepdims=True)


def _with(wrong):
    def backward(dy, saved):
        _, dweight, dbias = layernorm_backward(dy, saved)
        return wrong(dy, *saved), dweight, dbias

    return backward


LIKELY = {
    "the weight left out: x̂ is multiplied with it, so g = dy · weight.": _with(
        lambda dy, h, i, w: i * (dy - _mean(dy) - h * _mean(dy * h))
    ),
    "the mean and the spread taken for constants: a number of x moves both.": _with(lambda dy, h, i, w: i * dy * w),
    "sums where means belong, in the second and third term.": _with(
        lambda dy, h, i, w: i * (dy * w - (dy * w).sum(-1, keepdims=True) - h * (dy * w * h).sum(-1, keepdims=True))
    ),
    "means over all rows together: each row has its own, axis=-1 with keepdims=True.": _with(
        lambda dy, h, i, w: i * (dy * w - (dy * w).mean() - h * (dy * w * h).mean())
    ),
    "a division by the weight: x̂ is multiplied by it, and so is dy.": _with(
        lambda dy, h, i, w: i * (dy / w - _mean(dy / w) - h * _mean(dy / w * h))
    ),
    "a plus before the third term: a larger spread makes x̂ smaller.": _with(
        lambda dy, h, i, w: i * (dy * w - _mean(dy * w) + h * _mean(dy * w * h))
    ),
    "the third term without its factor x̂.": _with(lambda dy, h, i, w: i * (dy * w - _mean(dy * w) - _mean(dy * w * h))),
    "σ where 1/σ belongs.": _with(lambda dy, h, i, w: (dy * w - _mean(dy * w) - h * _mean(dy * w * h)) / i),
}
