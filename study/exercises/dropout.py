"""Dropout: y = x · keep / (1 - p)

keep is True with the probability 1 - p and False otherwise; it is drawn once, in
forward, and given here. What is kept is divided by 1 - p, so that the expected value of
y stays x.

Shapes: x, keep and y any, the same; p a number.
By hand: p = 0.75, keep = [True, False]: y = [4x₀, 0]. With dy = [1, 1], dx is [4, 0].
keep and p have no gradient; they come last, so nothing
is returned for them.

>>> y, saved = dropout_forward(np.array([1.0, 2.0]), np.array([True, False]), 0.75)
>>> y
array([4., 0.])
>>> dropout_backward(np.array([1.0, 1.0]), saved)
array([4., 0.])
"""

import numpy as np


def dropout_forward(x, keep, p):
    """y; keep and p for backward."""
    return np.where(keep, x, 0) / (1 - p), (keep, p)


def dropout_backward(dy, saved):
    """dx, of the shape of x."""
    keep, p = saved
    # --- write from here ---
    return np.where(keep, dy, 0) / (1 - p)


# --- for the checker ---

HINTS = (
    "Once keep is drawn, dropout is a multiplication by fixed numbers: 0 or 1 / (1 - p). What is the derivative of c · x?",
    "Backward does what forward did, with the same keep: a new draw would be the gradient of another function.",
    "dx = dy where keep is True and 0 elsewhere, divided by 1 - p.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 4)), np.array([[1, 0, 1, 1], [0, 1, 1, 0], [1, 1, 0, 1]], bool), 0.2)]


def _drawn_again(dy, s):
    return np.where(np.random.default_rng(0).random(dy.shape) >= s[1], dy, 0) / (1 - s[1])


LIKELY = {
    "the division by 1 - p left out.": lambda dy, s: np.where(s[0], dy, 0),
    "a division by p: what is kept has the probability 1 - p.": lambda dy, s: np.where(s[0], dy, 0) / s[1],
    "the places exchanged: the gradient passes where keep is True.": lambda dy, s: np.where(s[0], 0, dy) / (1 - s[1]),
    "keep left out: what was dropped has no gradient.": lambda dy, s: dy / (1 - s[1]),
    "dy unchanged: forward multiplied by keep / (1 - p), and so does backward.": lambda dy, s: dy,
    "a product with 1 - p: forward divides, and so does backward.": lambda dy, s: np.where(s[0], dy, 0) * (1 - s[1]),
}
