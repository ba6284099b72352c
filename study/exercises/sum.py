"""The sum of each row: y = Σ x

Shapes: x (T, C), y (T,).
By hand: a row [1, 2, 3] gives 6. Raise any of the three by 1, and y rises by 1. With dy
= [10] all three receive 10.

>>> y, saved = sum_forward(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
>>> y
array([ 6., 15.])
>>> sum_backward(np.array([10.0, 20.0]), saved)
array([[10., 10., 10.],
       [20., 20., 20.]])
"""

import numpy as np


def sum_forward(x):
    """y, and the shape of x."""
    return x.sum(axis=1), x.shape


def sum_backward(dy, saved):
    """dx (T, C)."""
    T, C = saved
    # --- write from here ---
    return np.broadcast_to(dy[:, None], (T, C))


# --- for the checker ---

HINTS = (
    "How fast does the sum of a row grow when its second number grows? Does it matter how large that number is?",
    "All numbers of a row receive the same gradient, the one of their row's sum. It has to be repeated.",
    "dy[:, None] has the shape (T, 1); np.broadcast_to(…, (T, C)) repeats it.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 4)),), (rng.standard_normal((3, 3)),)]


LIKELY = {
    "the gradient of the first row for all: each row receives its own.": lambda dy, s: np.full(s, dy[0]),
    "the gradients of all rows added up: each row receives its own.": lambda dy, s: np.full(s, dy.sum()),
    "dy repeated along the wrong axis: dy[t] belongs to row t, not to column t.": lambda dy, s: (
        np.broadcast_to(dy, s) if s[0] == s[1] else np.broadcast_to(dy[:, None], s)
    ),
}
