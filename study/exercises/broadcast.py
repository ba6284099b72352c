"""Broadcasting, and its backward: y = x, repeated until it has a larger shape

NumPy repeats an array along new axes on the left, and along axes of length 1. Every
a + b of two different shapes does this, so the backward of every arithmetic op ends
with this function. It is often called unbroadcast.

Shapes: x any, y the given shape; x must broadcast to it.
By hand: x (3, 1) repeated to (2, 3, 4): each number of x stands in y 2 · 4 = 8 times.

>>> y, saved = broadcast_forward(np.array([[1.0], [2.0]]), (2, 3))
>>> y
array([[1., 1., 1.],
       [2., 2., 2.]])
>>> broadcast_backward(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]]), saved)
array([[ 6.],
       [60.]])
"""

import numpy as np


def broadcast_forward(x, shape):
    """y, and the shape to come back to."""
    return np.broadcast_to(x, shape), x.shape


def broadcast_backward(dy, saved):
    """dx, of the shape of x."""
    shape = saved
    # --- write from here ---
    new = dy.ndim - len(shape)
    dx = dy.sum(axis=tuple(range(new)))
    for axis, length in enumerate(shape):
        if length == 1:
            dx = dx.sum(axis=axis, keepdims=True)
    return dx


# --- for the checker ---

HINTS = (
    ("Write down x = [[1], [2]] and its repetition to (2, 3). At which places of y is each number of x? Each has a gradient."),
    "Two kinds of axes were repeated: new ones on the left, which dx does not have, and axes of length 1, which dx keeps.",
    "Sum over the first dy.ndim - len(shape) axes. Then, for each axis where shape has 1, sum over it with keepdims=True.",
)


def cases(rng):
    """Inputs to check with."""
    return [
        (rng.standard_normal((3, 1)), (2, 3, 4)),
        (rng.standard_normal(4), (2, 3, 4)),
        (rng.standard_normal((1, 3, 1)), (2, 3, 2)),
        (rng.standard_normal((2, 3)), (2, 3)),
    ]


LIKELY = {
    "the mean over the copies: the gradients of all copies add up.": lambda dy, shape: (
        broadcast_backward(dy, shape) / (dy.size / max(1, int(np.prod(shape))))
    ),
}
