"""The head and the loss in one: loss = cross_entropy(x @ weight.T, target)

At the end of a GPT the scores of all V tokens are computed, and a loss from them. As one
op, the gradient of the scores can be written over the scores, so that the largest array
of the model exists once. Backward is two pages that you have written, one after the
other.

Shapes: x (N, C), weight (V, C), target (N,) whole numbers, loss ().
By hand: x = [[1]], weight = [[0], [log 3]], target = [0]: the scores are [0, log 3],
and their gradient is [-3/4, 3/4], as before. So dx is (-3/4) · 0 + (3/4) · log 3 =
0.824, and dweight is [[-3/4], [3/4]].

>>> loss, saved = linear_cross_entropy_forward(np.array([[1.0]]), np.log([[1.0], [3.0]]), np.array([0]))
>>> dx, dweight, _ = linear_cross_entropy_backward(np.array(1.0), saved)
>>> dx.round(3)
array([[0.824]])
>>> dweight.round(3)
array([[-0.75],
       [ 0.75]])
"""

import numpy as np


def linear_cross_entropy_forward(x, weight, target):
    """The loss; x, weight, the probabilities (N, V) and target for backward."""
    N = len(x)
    scores = x @ weight.T
    shifted = scores - scores.max(axis=-1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=-1, keepdims=True)
    losses = np.log(total)[:, 0] - shifted[np.arange(N), target]
    return (losses / N).sum(), (x, weight, e / total, target)


def linear_cross_entropy_backward(dy, saved):
    """dx (N, C), dweight (V, C), and None for target."""
    x, weight, p, target = saved
    N = len(x)
    # --- write from here ---
    dscores = p.copy()
    dscores[np.arange(N), target] -= 1
    dscores *= dy / N
    return dscores @ weight, dscores.T @ x, None


# --- for the checker ---

HINTS = (
    (
        "Go back one step at a time. First the gradient of the scores, as on the page cross_entropy. Then those of x "
        "and weight, as in linear."
    ),
    "dscores = (p - onehot(target)) · dy / N, of the shape (N, V). What follows is the way back through scores = x @ weight.T.",
    "dx = dscores @ weight and dweight = dscores.T @ x.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((3, 2)), rng.standard_normal((4, 2)), np.array([1, 3, 1]))]


def _with(dscores):
    def backward(dy, s):
        d = dscores(dy, s[2], np.eye(len(s[1]))[s[3]], len(s[0]))
        return d @ s[1], d.T @ s[0], None

    return backward


LIKELY = {
    "the 1 at the target left out: dscores = (p - onehot) · dy / N.": _with(lambda dy, p, hot, N: p * dy / N),
    "p left out: dscores = (p - onehot) · dy / N.": _with(lambda dy, p, hot, N: -hot * dy / N),
    "1 added at the target: it is p - onehot.": _with(lambda dy, p, hot, N: (p + hot) * dy / N),
    "a division by N · V: the loss is a mean over the N rows.": _with(lambda dy, p, hot, N: (p - hot) * dy / p.size),
    "a weight gradient of one row only: all rows share the weight.": lambda dy, s: (
        linear_cross_entropy_backward(dy, s)[0],
        np.outer(s[2][0] - np.eye(len(s[1]))[s[3][0]], s[0][0]) * dy / len(s[0]),
        None,
    ),
    "the probabilities pushed through softmax's backward once more: p - onehot has that in it already.": _with(
        lambda dy, p, hot, N: p * ((p - hot) - ((p - hot) * p).sum(axis=-1, keepdims=True)) * dy / N
    ),
}
