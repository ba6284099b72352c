"""The mean of each row: y = (1/C) Σ x

Shapes: x (T, C), y (T,).
By hand: a row [1, 2, 3] gives 2. Raise one of the three by 3, and the mean rises by 1.
With dy = [30] each receives 10.

>>> y, saved = mean_forward(np.array([[1.0, 2.0, 3.0]]))
>>> y
array([2.])
>>> mean_backward(np.array([30.0]), saved)
array([[10., 10., 10.]])
"""

import numpy as np


def mean_forward(x):
    """y, and the shape of x."""
    return x.mean(axis=1), x.shape


def mean_backward(dy, saved):
    """dx (T, C)."""
    T, C = saved
    # --- write from here ---
    return np.broadcast_to(dy[:, None] / C, (T, C))


# --- for the checker ---

HINTS = (
    "A mean is a sum and a division. What does the division do to the gradient?",
    "Each of the C numbers of a row moves the mean by 1/C of its own move.",
    "As on the page sum, with every number divided by C, the length of a row.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 4)),), (rng.standard_normal((3, 3)),)]


LIKELY = {
    "a division by the number of rows T: the mean was taken over the C numbers of a row.": lambda dy, s: np.broadcast_to(
        dy[:, None] / s[0], s
    ),
    "a division by all T · C numbers: the mean was taken over the C numbers of a row.": lambda dy, s: np.broadcast_to(
        dy[:, None] / (s[0] * s[1]), s
    ),
    "the gradients of all rows averaged: each row receives its own.": lambda dy, s: np.full(s, dy.mean() / s[1]),
    "a square, (1/C)²: the division is done once.": lambda dy, s: np.broadcast_to(dy[:, None] / s[1] ** 2, s),
}
