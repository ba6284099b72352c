"""The same row added to every row: y = x + bias

Each number of bias is used once in every row. A number that is used many times receives
a gradient from each use.

Shapes: x and y (T, C), bias (C,).
By hand: T = 3, C = 1. Raise bias[0] by 1: three numbers of y rise by 1. If the three
numbers of dy are 1, 10 and 100, dbias is [111].

>>> y, saved = add_bias_forward(np.zeros((3, 1)), np.array([7.0]))
>>> add_bias_backward(np.array([[1.0], [10.0], [100.0]]), saved)[1]
array([111.])
"""

import numpy as np


def add_bias_forward(x, bias):
    """y; backward needs nothing of it."""
    return x + bias, None


def add_bias_backward(dy, saved):
    """dx (T, C) and dbias (C,)."""
    # --- write from here ---
    return dy, dy.sum(axis=0)


# --- for the checker ---

HINTS = (
    "Raise one number of x by 1: which numbers of y rise? Raise one number of bias by 1: which rise now?",
    "Each row of dy is a gradient for bias. The gradients of all uses add up.",
    "dx = dy, unchanged. dbias = the sum of dy over its rows, axis 0.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 4)), rng.standard_normal(4))]


LIKELY = {
    "the largest of the rows: their gradients add up.": lambda dy, saved: (dy, dy.max(axis=0)),
    "a running sum along the columns: each column of bias has its own sum over the rows.": lambda dy, saved: (dy, dy.sum(axis=0).cumsum()),
}
