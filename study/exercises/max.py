"""The largest number of each row: y = max x

Shapes: x (T, C), y (T,).
By hand: a row [1, 5, 3] gives 5. Raise the 1 a little: y stays. Raise the 5: y rises
with it. With dy = [10] dx is [0, 10, 0].

>>> y, saved = max_forward(np.array([[1.0, 5.0, 3.0]]))
>>> max_backward(np.array([10.0]), saved)
array([[ 0., 10.,  0.]])
"""

import numpy as np


def max_forward(x):
    """y; the shape of x, and where the largest numbers are."""
    place = x.argmax(axis=1)
    return x[np.arange(len(x)), place], (x.shape, place)


def max_backward(dy, saved):
    """dx (T, C)."""
    shape, place = saved  # place (T,): the column of the largest number of each row
    # --- write from here ---
    dx = np.zeros(shape)
    dx[np.arange(len(place)), place] = dy
    return dx


# --- for the checker ---

HINTS = (
    "Which numbers of x can move the maximum, if they move only a little?",
    "Only the largest number of a row receives the row's gradient. The others receive 0. Begin with np.zeros(shape).",
    "dx[np.arange(T), place] = dy writes dy[t] to row t, column place[t].",
)


def cases(rng):
    """Inputs to check with."""
    rows = np.array([[0.0, 1.0, 2.0, 3.0], [3.0, 1.0, 0.0, 2.0], [1.0, 0.0, 3.0, 2.0]])
    return [(rows + rng.uniform(-0.2, 0.2, rows.shape),)]


def _written(dy, saved, columns):
    dx = np.zeros(saved[0])
    if isinstance(columns, tuple):
        dx[columns] = dy
    else:
        dx[:, columns] = dy[:, None]
    return dx


LIKELY = {
    "the gradient of a sum, which goes to all: only the largest number of a row receives it.": lambda dy, s: np.broadcast_to(
        dy[:, None], s[0]
    ),
    "the gradient of a row shared by all its numbers: only the largest one receives it.": lambda dy, s: np.broadcast_to(
        dy[:, None] / s[0][1], s[0]
    ),
    "dx[:, place] = …, which writes to these columns in all rows: pair each row with its column, dx[np.arange(T), place].": lambda dy, s: (
        _written(dy, s, s[1])
    ),
    "the rows in another order: dy[t] belongs to row t.": lambda dy, s: _written(dy[::-1], s, (np.arange(len(dy)), s[1])),
    "the first column: the largest number stands at `place`.": lambda dy, s: _written(dy, s, [0]),
}
