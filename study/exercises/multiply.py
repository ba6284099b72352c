"""A product, number by number: y = a · b

There are two inputs, so there are two gradients, returned in the order of the inputs.
Keep one factor as it is and change the other: how fast does y change?

Shapes: a, b and y any, the same.
By hand: a = 3 and b = 5 give 15. With a = 3.1 it is 15.5: y moved 5 times as far as a.

>>> y, saved = multiply_forward(np.array([3.0]), np.array([5.0]))
>>> multiply_backward(np.array([2.0]), saved)
(array([10.]), array([6.]))
"""

import numpy as np


def multiply_forward(a, b):
    """y, and what backward will need."""
    return a * b, (a, b)


def multiply_backward(dy, saved):
    """da and db, of the shapes of a and b."""
    a, b = saved
    # --- write from here ---
    return dy * b, dy * a


# --- for the checker ---

HINTS = (
    "Let a be 3 and b be 5. Move a by 0.1. How far does y move, and which of the two numbers is that?",
    "The slope of a · b along a is b: the effect of a factor is proportional to the other factor.",
    "da = dy · b and db = dy · a, in this order.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((2, 3)), rng.standard_normal((2, 3)))]


LIKELY = {
    "dy times this input itself: the derivative of a product is the other factor.": lambda dy, saved: (dy * saved[0], dy * saved[1]),
    "the whole product y as derivative: only the other factor belongs there.": lambda dy, saved: (
        dy * saved[0] * saved[1],
        dy * saved[0] * saved[1],
    ),
}
