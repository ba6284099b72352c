"""A sum of two arrays of different shapes: y = a + b

a and b may have different shapes; then one of them, or both, are repeated. The backward
of that is the page broadcast. Here it is given: unbroadcast(dy, shape).

Shapes: any two that broadcast; y has the common shape.
By hand: a has the shape (2, 2), b is a single row. With dy = [[1, 2], [3, 4]], da is dy
and db is [4, 6].

>>> y, saved = add_forward(np.zeros((2, 2)), np.zeros(2))
>>> add_backward(np.array([[1.0, 2.0], [3.0, 4.0]]), saved)[1]
array([4., 6.])
"""

import numpy as np

from tensorlite.ops.broadcasting import unbroadcast  # unbroadcast(dy, shape) sums over what was repeated


def add_forward(a, b):
    """y, and both shapes."""
    return a + b, (a.shape, b.shape)


def add_backward(dy, saved):
    """da and db, of the shapes of a and b."""
    a_shape, b_shape = saved
    # --- write from here ---
    return unbroadcast(dy, a_shape), unbroadcast(dy, b_shape)


# --- for the checker ---

HINTS = (
    "If a grows by 1, by how much does y grow? Does it matter what b is?",
    "∂y/∂a = ∂y/∂b = 1, so both receive dy. But dy has the shape of y, and a gradient has the shape of its input.",
    "da = unbroadcast(dy, a_shape), and b in the same way.",
)


def cases(rng):
    """Inputs to check with."""
    return [
        (rng.standard_normal((4, 3)), rng.standard_normal(3)),
        (rng.standard_normal((4, 1)), rng.standard_normal((4, 3))),
        (rng.standard_normal((4, 3)), rng.standard_normal((4, 3))),
    ]


LIKELY = {
    "the sign of a difference, a - b: in a sum both gradients are positive.": lambda dy, saved: (
        unbroadcast(dy, saved[0]),
        -unbroadcast(dy, saved[1]),
    ),
}
