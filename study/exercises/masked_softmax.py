"""Softmax over what may be seen: hidden scores count as -∞, and their probability is 0

In a GPT row t of the scores may look at columns s ≤ t only. The mask is True where a
place may be seen.

Shapes: x and y (..., T, T), mask (T, T) of True and False; every row has a True.
By hand: x = [[5, 7]], mask = [[True, False]]: y = [[1, 0]]. Moving the 7 changes
nothing, and moving the 5 neither, so dx is [[0, 0]].

>>> y, saved = masked_softmax_forward(np.array([[5.0, 7.0]]), np.array([[True, False]]))
>>> y
array([[1., 0.]])
>>> masked_softmax_backward(np.array([[1.0, 9.0]]), saved)
array([[0., 0.]])
"""

import numpy as np


def masked_softmax_forward(x, mask):
    """y, which is all that backward needs."""
    x = np.where(mask, x, -np.inf)
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y = e / e.sum(axis=-1, keepdims=True)
    return y, y


def masked_softmax_backward(dy, saved):
    """dx, of the shape of x. The mask has no gradient, and as the last input it needs no None."""
    y = saved
    # --- write from here ---
    return y * (dy - (dy * y).sum(axis=-1, keepdims=True))


# --- for the checker ---

HINTS = (
    "What is y at a hidden place? What does softmax's backward give there?",
    "Nothing new is needed: at hidden places y is 0, and softmax's formula multiplies with y.",
    "dx = y · (dy - Σ dy · y): the same line as for softmax. A second mask would change nothing.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((2, 4, 4)), np.tri(4, dtype=bool))]


LIKELY = {
    "the bracket without its factor y: hidden places receive a gradient.": lambda dy, y: dy - (dy * y).sum(axis=-1, keepdims=True),
    "the plain sum of dy in the bracket: hidden places count in it; weight it with y.": lambda dy, y: (
        y * (dy - dy.sum(axis=-1, keepdims=True))
    ),
    "the plain mean of dy in the bracket: hidden places count in it; weight it with y.": lambda dy, y: (
        y * (dy - dy.mean(axis=-1, keepdims=True))
    ),
    "the mask on the wrong side: the gradient of places that may not be seen.": lambda dy, y: np.where(y == 0, dy, 0),
    "the derivative of the logistic function, y · (1 - y): the other scores of the row count, too.": lambda dy, y: dy * y * (1 - y),
    "dy where it may be seen: the competition within a row is left out.": lambda dy, y: np.where(y == 0, 0, dy),
    "the sum over the wrong axis: softmax competes along the last one.": lambda dy, y: y * (dy - (dy * y).sum(axis=-2, keepdims=True)),
    "a plus where a minus belongs: what one probability gains, the others lose.": lambda dy, y: (
        y * (dy + (dy * y).sum(axis=-1, keepdims=True))
    ),
}
