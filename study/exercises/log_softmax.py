"""Log-softmax: the logarithms of the probabilities: yᵢ = xᵢ - log Σⱼ exp(xⱼ)

The sum goes over the last axis. y holds logarithms; the probabilities themselves are
exp(y).

Shapes: x and y (..., C).
By hand: x = [0, log 3] gives y = [log 1/4, log 3/4]. With dy = [1, 0], dx is
[3/4, -3/4].

>>> y, saved = log_softmax_forward(np.log([[1.0, 3.0]]))
>>> log_softmax_backward(np.array([[1.0, 0.0]]), saved).round(6)
array([[ 0.75, -0.75]])
"""

import numpy as np


def log_softmax_forward(x):
    """y, which is all that backward needs."""
    shifted = x - x.max(axis=-1, keepdims=True)
    y = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return y, y


def log_softmax_backward(dy, saved):
    """dx, of the shape of x."""
    y = saved
    # --- write from here ---
    return dy - np.exp(y) * dy.sum(axis=-1, keepdims=True)


# --- for the checker ---

HINTS = (
    "Two terms, two ways back. xᵢ stands by itself in yᵢ alone, and it stands in the log Σ exp of every y of its row.",
    "The derivative of log Σ exp(x) with respect to xⱼ is the probability pⱼ = exp(yⱼ). Every y of the row has that term, with a minus.",
    "dx = dy - p · (Σ dy over the row), with p = exp(y).",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 4)),)]


LIKELY = {
    "softmax's backward, applied to logarithms: saved holds log p, and p is exp(y).": lambda dy, y: (
        y * (dy - (dy * y).sum(axis=-1, keepdims=True))
    ),
    "softmax's backward: the derivative of the logarithm, 1/p, has cancelled its factor p.": lambda dy, y: (
        np.exp(y) * (dy - (dy * np.exp(y)).sum(axis=-1, keepdims=True))
    ),
    "p without the sum of dy over the row: every y of the row has the term log Σ exp.": lambda dy, y: dy - np.exp(y) * dy,
    "log p where p belongs: saved is y, and the probabilities are exp(y).": lambda dy, y: dy - y * dy.sum(axis=-1, keepdims=True),
    "the sum of dy weighted with p: here it is the plain sum.": lambda dy, y: dy - np.exp(y) * (dy * np.exp(y)).sum(axis=-1, keepdims=True),
    "the mean of dy over the row: it is the sum, for every y of the row has the term log Σ exp.": lambda dy, y: (
        dy - np.exp(y) * dy.mean(axis=-1, keepdims=True)
    ),
    "the sum of dy over all rows together: each row has its own.": lambda dy, y: dy - np.exp(y) * dy.sum(),
    "the probabilities left out of the second term: it is p · Σ dy, with p = exp(y).": lambda dy, y: dy - dy.sum(axis=-1, keepdims=True),
    "the second term left out: x stands in log Σ exp as well.": lambda dy, y: dy,
    "a plus where a minus belongs: log Σ exp is subtracted.": lambda dy, y: dy + np.exp(y) * dy.sum(axis=-1, keepdims=True),
    "p alone, without dy in the second term: it is p · Σ dy.": lambda dy, y: dy - np.exp(y),
}
