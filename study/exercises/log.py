"""The natural logarithm of every number: y = log x

Shapes: x and y any, the same; x > 0.
By hand: log 2 = 0.693, and log 2.02 = 0.703: at x = 2 the logarithm grows half as fast
as x. At x = 4 it grows a quarter as fast. With dy = 1, dx is 0.5 and 0.25.

>>> y, saved = log_forward(np.array([2.0, 4.0]))
>>> log_backward(np.array([1.0, 1.0]), saved)
array([0.5 , 0.25])
"""

import numpy as np


def log_forward(x):
    """y, and x."""
    return np.log(x), x


def log_backward(dy, saved):
    """dx, of the shape of x."""
    x = saved
    # --- write from here ---
    return dy / x


# --- for the checker ---

HINTS = (
    "x = 2 gives 0.5, and x = 4 gives 0.25. What does x = 10 give? Compute log 10 and log 10.1.",
    "exp is the inverse of log: e^y = x. The derivative of an inverse function is one over the derivative of the function, at y.",
    "The derivative of log x is 1/x.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.uniform(0.5, 3, (2, 3)),)]


LIKELY = {
    "dy / x²: that is, up to the sign, the derivative of 1/x.": lambda dy, x: dy / (x * x),
    "dy / log x: the derivative is 1/x, not 1/y.": lambda dy, x: dy / np.log(x),
    "-dy / x²: the derivative of 1/x.": lambda dy, x: -dy / (x * x),
}
