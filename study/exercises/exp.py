"""The exponential of every number: y = eˣ

Shapes: x and y any, the same.
By hand: x = 0 gives 1, and x = 0.01 gives 1.01005: there y grows as fast as x. At
x = log 5 = 1.609 y is 5, and x = 1.619 gives 5.0503: there it grows 5 times as fast.

>>> y, saved = exp_forward(np.log([1.0, 5.0]))
>>> exp_backward(np.array([2.0, 2.0]), saved)
array([ 2., 10.])
"""

import numpy as np


def exp_forward(x):
    """y, which is all that backward needs."""
    y = np.exp(x)
    return y, y


def exp_backward(dy, saved):
    """dx, of the shape of x."""
    y = saved
    # --- write from here ---
    return dy * y


# --- for the checker ---

HINTS = (
    "Look at what forward saved. Why is y enough for backward?",
    "eˣ is the function that is its own derivative.",
    "dx = dy · y.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((2, 3)),)]


LIKELY = {
    "the exponential taken twice: saved is eˣ already.": lambda dy, y: dy * np.exp(y),
    "x · eˣ⁻¹, the rule for powers xⁿ: here x is the exponent, and eˣ is its own derivative.": lambda dy, y: dy * np.log(y) * y / np.e,
}
