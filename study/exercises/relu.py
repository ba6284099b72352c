"""The rectifier: y = max(x, 0)

Where x is positive, y is x. Where x is negative, y is 0 and stays 0 when x moves a
little.

Shapes: x and y any, the same.
By hand: x = [-2, 3], dy = [10, 10]: dx = [0, 10].

>>> y, saved = relu_forward(np.array([-2.0, 3.0]))
>>> y
array([0., 3.])
>>> relu_backward(np.array([10.0, 10.0]), saved)
array([ 0., 10.])
"""

import numpy as np


def relu_forward(x):
    """y, and where x is positive."""
    return np.maximum(x, 0), x > 0


def relu_backward(dy, saved):
    """dx, of the shape of x."""
    positive = saved
    # --- write from here ---
    return np.where(positive, dy, 0)


# --- for the checker ---

HINTS = (
    "Draw the function. What is its slope on the left of 0, and on the right?",
    "The slope is 0 or 1, so each number of dy is passed on or replaced by 0. `positive` says which.",
    "np.where(positive, dy, 0) takes dy where positive is True and 0 elsewhere.",
)


def cases(rng):
    """Inputs to check with."""
    x = rng.uniform(0.2, 2, (3, 4)) * np.where(rng.random((3, 4)) < 0.5, -1, 1)
    return [(x,)]


LIKELY = {
    "the branches exchanged: the gradient passes where x is positive, and is stopped where it is negative.": lambda dy, s: np.where(
        s, 0, dy
    ),
    "max(dy, 0): the gate looks at the sign of x, not at that of dy.": lambda dy, s: np.maximum(dy, 0),
    "a gate that looks at the sign of dy besides that of x: a negative dy passes too where x is positive.": lambda dy, s: np.where(
        s, np.maximum(dy, 0), 0
    ),
}
