"""Softmax: scores become probabilities: yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ)

The sum goes over the last axis, so each row of y adds up to 1. Every y depends on every
x of its row, through the denominator.

Shapes: x and y (..., C).
By hand: x = [0, log 3] gives y = [1/4, 3/4]. With dy = [1, 0], dx is [3/16, -3/16]:
what one probability gains, the others lose.

>>> y, saved = softmax_forward(np.log([[1.0, 3.0]]))
>>> y
array([[0.25, 0.75]])
>>> softmax_backward(np.array([[1.0, 0.0]]), saved)
array([[ 0.1875, -0.1875]])
"""

import numpy as np


def softmax_forward(x):
    """y, which is all that backward needs. The largest score is subtracted first, so that exp cannot overflow."""
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y = e / e.sum(axis=-1, keepdims=True)
    return y, y


def softmax_backward(dy, saved):
    """dx, of the shape of x."""
    y = saved
    # --- write from here ---
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


# --- for the checker ---

HINTS = (
    "The probabilities of a row add up to 1. If x₀ rises, y₀ rises and all others fall. So dx₀ depends on every dy of its row.",
    "The quotient rule gives ∂yᵢ/∂xⱼ = yᵢ · (1 if i = j else 0) - yᵢ · yⱼ. Multiply with dyᵢ and add up over i.",
    "dx = y · (dy - s), where s is one number for each row: Σ dy · y, with keepdims=True.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 4)),), (rng.standard_normal((2, 3, 3)),)]


LIKELY = {
    "the sum over the wrong axis: softmax competes within a row, along the last axis.": lambda dy, y: (
        y * (dy - (dy * y).sum(axis=0, keepdims=True))
    ),
    "a plain sum of dy in the bracket: it is weighted with the probabilities, Σ dy · y.": lambda dy, y: (
        y * (dy - dy.sum(axis=-1, keepdims=True))
    ),
    "a plain mean of dy in the bracket: it is weighted with the probabilities, Σ dy · y.": lambda dy, y: (
        y * (dy - dy.mean(axis=-1, keepdims=True))
    ),
    "the derivative of the logistic function, y · (1 - y): that is the diagonal alone; the other scores count, too.": lambda dy, y: (
        dy * y * (1 - y)
    ),
    "the derivative of the logistic function, y · (1 - y), without dy.": lambda dy, y: y * (1 - y),
    "a plus where a minus belongs: what one probability gains, the others lose.": lambda dy, y: (
        y * (dy + (dy * y).sum(axis=-1, keepdims=True))
    ),
    "the last factor y left out: y · (dy - Σ dy · y).": lambda dy, y: dy - (dy * y).sum(axis=-1, keepdims=True),
    "the sum over all rows together: each row has its own.": lambda dy, y: y * (dy - (dy * y).sum()),
}
