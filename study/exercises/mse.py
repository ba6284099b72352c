"""The mean squared error: loss = (1/n) Σ (x - target)²

A loss is a single number, and so is dy; usually it is 1. The target is data, but it can
have a gradient, too.

Shapes: x and target any, the same, n numbers; loss ().
By hand: x = [3, 1], target = [1, 1]: the loss is (4 + 0) / 2 = 2. Move x[0] to 3.1: it
is 2.205, and 0.205 / 0.1 is about 2.

>>> loss, saved = mse_forward(np.array([3.0, 1.0]), np.array([1.0, 1.0]))
>>> mse_backward(np.array(1.0), saved)
(array([2., 0.]), array([-2., -0.]))
"""

import numpy as np


def mse_forward(x, target):
    """The loss, and the differences."""
    difference = x - target
    return (difference * difference).mean(), difference


def mse_backward(dy, saved):
    """dx and dtarget."""
    difference = saved
    # --- write from here ---
    dx = dy * 2 * difference / difference.size
    return dx, -dx


# --- for the checker ---

HINTS = (
    "Three steps were taken: a difference, a square, a mean. Go back through them one after the other.",
    "The mean gives dy / n to each square, the square multiplies with 2 · difference, and in x - target the target has a minus.",
    "dx = dy · 2 · difference / n, where n is difference.size; dtarget = -dx.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((2, 3)), rng.standard_normal((2, 3)))]


LIKELY = {
    "the same sign for both: in x - target the target has a minus.": lambda dy, d: (2 * dy * d / d.size, 2 * dy * d / d.size),
    "the square still there: the derivative of d² is 2d.": lambda dy, d: (dy * d * d / d.size, -dy * d * d / d.size),
    "a division by the number of rows: the mean is taken over all numbers.": lambda dy, d: (2 * dy * d / len(d), -2 * dy * d / len(d)),
    "only the sign of the difference: that is the derivative of |d|.": lambda dy, d: (dy * np.sign(d) / d.size, -dy * np.sign(d) / d.size),
}
