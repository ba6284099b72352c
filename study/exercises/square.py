"""The square of every number: y = x²

Somewhere behind y a loss is computed. dy says, for every number of y, how fast the loss
grows when that number grows. You compute dx: how fast the loss grows when x grows. The
chain rule: dx = dy · (how fast y grows when x grows).

Shapes: x and y any, the same.
By hand: x = 3 gives 9, and x = 3.01 gives 9.0601. So y grows 6 times as fast as x. With
dy = 10, dx is 60.

>>> y, saved = square_forward(np.array([3.0, -1.0]))
>>> y
array([9., 1.])
>>> square_backward(np.array([10.0, 1.0]), saved)
array([60., -2.])
"""

import numpy as np


def square_forward(x):
    """y, and what backward will need."""
    return x * x, x


def square_backward(dy, saved):
    """dx, of the shape of x."""
    x = saved
    # --- write from here ---
    return dy * 2 * x


# --- for the checker ---

HINTS = (
    "Take x = 3 and x = 3.01, and compare the two squares. How many times as far as x did y move? Try x = 5 as well.",
    "The derivative of x² is 2x. The chain rule multiplies it by dy, which comes in.",
    "dx = dy · 2 · x, number by number.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 4)) + 0.1,), (rng.standard_normal(5),)]


LIKELY = {
    "the derivative of x³, or x² once too often: the derivative of x² is 2x.": lambda dy, x: dy * 3 * x * x,
    "dy · x²: that multiplies with y itself, not with how fast y grows.": lambda dy, x: dy * x * x,
}
