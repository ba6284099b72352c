"""The embedding: y[t] = weight[ids[t]]

weight is a table with one row of C numbers for each of V tokens. Forward looks rows up.
A token that occurs twice uses its row twice. ids are whole numbers and have no gradient:
return None in their place.

Shapes: ids (...) whole numbers, weight (V, C), y (..., C).
By hand: ids = [1, 1], dy = [[3], [4]]: row 1 was used twice, and dweight[1] is 7. All
other rows of dweight are 0.

>>> y, saved = embedding_forward(np.array([1, 1]), np.zeros((3, 1)))
>>> embedding_backward(np.array([[3.0], [4.0]]), saved)[1]
array([[0.],
       [7.],
       [0.]])
"""

import numpy as np


def embedding_forward(ids, weight):
    """y; ids and the shape of weight."""
    return weight[ids], (ids, weight.shape)


def embedding_backward(dy, saved):
    """None for ids, and dweight (V, C)."""
    ids, shape = saved
    # --- write from here ---
    dweight = np.zeros(shape, dy.dtype)
    np.add.at(dweight, ids.reshape(-1), dy.reshape(ids.size, shape[1]))
    return None, dweight


# --- for the checker ---

HINTS = (
    "Begin with zeros: a token that does not occur has no gradient. Which rows of dy belong to token 1 in the example?",
    (
        "dweight[ids] += dy looks right and is not: NumPy reads the rows, adds, and writes them back, so of a token's"
        " gradients one survives."
    ),
    "np.add.at(dweight, ids, dy) makes one addition after the other. A plain for loop over the places does so, too.",
)


def cases(rng):
    """Inputs to check with."""
    return [(np.array([[2, 0, 0], [4, 2, 2]]), rng.standard_normal((5, 3)))]


def _written(dy, saved, number):
    ids, shape = saved
    dweight = np.zeros(shape)
    count = np.zeros(shape[0])
    np.add.at(dweight, ids, dy)
    np.add.at(count, ids, 1)
    return None, number(dweight, np.maximum(count, 1)[:, None])


LIKELY = {
    "all of dy added to a token at each of its places: dy[t] belongs to the token at place t alone.": lambda dy, s: _written(
        np.broadcast_to(dy.reshape(-1, s[1][1]).sum(axis=0), dy.shape), s, lambda total, count: total
    ),
    "the mean over a token's places: the gradients of all its uses add up.": lambda dy, s: _written(
        dy, s, lambda total, count: total / count
    ),
    "how often each token occurs, without dy.": lambda dy, s: _written(np.ones_like(dy), s, lambda total, count: total),
    "all of dy added to every token that occurs: dy[t] belongs to the token at place t alone.": lambda dy, s: (
        None,
        np.where(np.isin(np.arange(s[1][0]), s[0])[:, None], dy.reshape(-1, s[1][1]).sum(axis=0), 0.0),
    ),
    "the rows of tokens one further: row ids[t] receives dy[t].": lambda dy, s: _written(
        dy, s, lambda total, count: np.roll(total, 1, axis=0)
    ),
}
