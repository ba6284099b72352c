"""Heads: one wide row of numbers cut into H short ones: (B, T, C) becomes (B, H, T, D) with C = H · D

No arithmetic, only axes: the C numbers of a token are H groups of D, side by side, and
the axis of the groups moves before that of the tokens. Nothing is added or multiplied,
so the gradient is moved back the same way. It is easy to get a result of the right
shape with wrong numbers.

Shapes: x (B, T, C), y (B, H, T, D).
By hand: one token [1, 2, 3, 4] and H = 2: head 0 gets [1, 2] and head 1 gets [3, 4].

>>> y, saved = heads_forward(np.array([[[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]]), 2)
>>> y
array([[[[1., 2.],
         [5., 6.]],
<BLANKLINE>
        [[3., 4.],
         [7., 8.]]]])
>>> heads_backward(y, saved)
array([[[1., 2., 3., 4.],
        [5., 6., 7., 8.]]])
"""

import numpy as np


def heads_forward(x, n_head):
    """y; backward needs nothing but the shape of dy."""
    B, T, C = x.shape
    return x.reshape(B, T, n_head, C // n_head).swapaxes(1, 2), None


def heads_backward(dy, saved):
    """dx (B, T, C) from dy (B, H, T, D)."""
    B, H, T, D = dy.shape
    # --- write from here ---
    return dy.swapaxes(1, 2).reshape(B, T, H * D)


# --- for the checker ---

HINTS = (
    "Undo the last step of forward first, then the one before.",
    "Forward was reshape, then swapaxes(1, 2). So backward is swapaxes(1, 2), then reshape. Exchanging two axes twice changes nothing.",
    "dy.swapaxes(1, 2) has the shape (B, T, H, D), and reshape(B, T, H * D) puts the heads side by side.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((4, 5, 6)), 3), (rng.standard_normal((1, 4, 6)), 3)]


LIKELY = {
    "a reshape without swapping the axes back: the shape is right, and the numbers of different tokens are mixed.": lambda dy, s: (
        dy.reshape(dy.shape[0], dy.shape[2], -1)
    ),
    "the numbers of the heads interleaved: the D numbers of a head stay side by side.": lambda dy, s: dy.transpose(0, 2, 3, 1).reshape(
        dy.shape[0], dy.shape[2], -1
    ),
    "only the first head, repeated: each head has its own gradient.": lambda dy, s: np.concatenate([dy[:, 0]] * dy.shape[1], axis=-1),
    "the heads in reverse order.": lambda dy, s: dy[:, ::-1].swapaxes(1, 2).reshape(dy.shape[0], dy.shape[2], -1),
    "the heads added up: they were cut apart, not copied.": lambda dy, s: np.concatenate([dy.sum(axis=1)] * dy.shape[1], axis=-1),
    "a reshape of the transposed axes (3, 2, 1): only the axes 1 and 2 were exchanged.": lambda dy, s: dy.transpose(0, 3, 2, 1).reshape(
        dy.shape[0], dy.shape[2], -1
    ),
}
