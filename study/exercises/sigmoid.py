"""The logistic function: y = 1 / (1 + e⁻ˣ)

It maps every number to one between 0 and 1. It is steepest at 0 and flat far away on
both sides.

Shapes: x and y any, the same.
By hand: x = 0 gives y = 1/2, and there the slope is 1/4. At y = 3/4 it is 3/16.

>>> y, saved = sigmoid_forward(np.log([1.0, 3.0]))
>>> y
array([0.5 , 0.75])
>>> sigmoid_backward(np.array([16.0, 16.0]), saved)
array([4., 3.])
"""

import numpy as np


def sigmoid_forward(x):
    """y, which is all that backward needs."""
    y = 1 / (1 + np.exp(-x))
    return y, y


def sigmoid_backward(dy, saved):
    """dx, of the shape of x."""
    y = saved
    # --- write from here ---
    return dy * y * (1 - y)


# --- for the checker ---

HINTS = (
    "The slope at y = 1/2 is 1/4, and at y = 3/4 it is 3/16. Which product of two numbers made of y gives that?",
    "The chain rule gives e⁻ˣ / (1 + e⁻ˣ)². One factor 1 / (1 + e⁻ˣ) is y. What is the other, e⁻ˣ / (1 + e⁻ˣ), in terms of y?",
    "The derivative is y · (1 - y).",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((2, 3)),)]


LIKELY = {
    "1 - y²: that is the derivative of tanh; the logistic function has y · (1 - y).": lambda dy, y: dy * (1 - y * y),
    "y · (1 + y): e⁻ˣ / (1 + e⁻ˣ) is 1 - y.": lambda dy, y: dy * y * (1 + y),
    "x where y belongs: the rule is y · (1 - y), with the output.": lambda dy, y: dy * np.log(y / (1 - y)) * (1 - np.log(y / (1 - y))),
    "the logistic function taken twice: saved is y already.": lambda dy, y: dy / (1 + np.exp(-y)) * (1 - 1 / (1 + np.exp(-y))),
}
