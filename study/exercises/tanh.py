"""The hyperbolic tangent: y = tanh x

It maps every number to one between -1 and 1. Its slope at 0 is 1, and it is flat far
away on both sides.

Shapes: x and y any, the same.
By hand: at y = 0.5 the slope is 0.75. At y = -0.5 it is 0.75 as well.

>>> y, saved = tanh_forward(np.arctanh([0.0, -0.5]))
>>> tanh_backward(np.array([4.0, 4.0]), saved)
array([4., 3.])
"""

import numpy as np


def tanh_forward(x):
    """y, which is all that backward needs."""
    y = np.tanh(x)
    return y, y


def tanh_backward(dy, saved):
    """dx, of the shape of x."""
    y = saved
    # --- write from here ---
    return dy * (1 - y * y)


# --- for the checker ---

HINTS = (
    "The slope at y = 0 is 1, at y = 0.5 and at y = -0.5 it is 0.75. Which function of y is that? It does not see the sign.",
    "tanh = sinh / cosh, and each of these two is the other's derivative. The quotient rule gives (cosh² - sinh²) / cosh².",
    "The derivative is 1 - y².",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((2, 3)),)]


LIKELY = {
    "y · (1 - y): that is the derivative of the logistic function; tanh has 1 - y².": lambda dy, y: dy * y * (1 - y),
    "1 + y²: the sign is wrong; far from 0, where y is near 1, the slope must vanish.": lambda dy, y: dy * (1 + y * y),
    "1 - x²: the rule is written with the output, 1 - y².": lambda dy, y: dy * (1 - np.arctanh(y) ** 2),
    "1 - y: the square is missing.": lambda dy, y: dy * (1 - y),
    "tanh taken twice: saved is y already.": lambda dy, y: dy * (1 - np.tanh(y) ** 2),
}
