"""Cross-entropy: how surprised the model is: loss = -mean(log p[target]), p = softmax(x)

Each of N rows holds V scores, and target is the number of the token that came next. If
its probability is 1 the loss is 0; if it is 1/2 the loss is log 2 = 0.69. target has no
gradient: return None in its place.

Shapes: x (N, V), target (N,) whole numbers, loss ().
By hand: one row x = [0, log 3], so p = [1/4, 3/4], and target = [0]: the loss is log 4,
and dx is [-3/4, 3/4]. With two such rows each counts half: the loss is a mean.

>>> loss, saved = cross_entropy_forward(np.log([[1.0, 3.0]]), np.array([0]))
>>> cross_entropy_backward(np.array(1.0), saved)[0].round(6)
array([[-0.75,  0.75]])
"""

import numpy as np


def cross_entropy_forward(x, target):
    """The loss; p and target for backward."""
    N = len(x)
    shifted = x - x.max(axis=-1, keepdims=True)
    e = np.exp(shifted)
    total = e.sum(axis=-1, keepdims=True)
    losses = np.log(total)[:, 0] - shifted[np.arange(N), target]  # -log p[target], without ever taking the log of a probability
    return (losses / N).sum(), (e / total, target)


def cross_entropy_backward(dy, saved):
    """dx (N, V), and None for target."""
    p, target = saved
    N = len(p)
    # --- write from here ---
    dx = p.copy()
    dx[np.arange(N), target] -= 1
    return dx * (dy / N), None


# --- for the checker ---

HINTS = (
    "In one row the loss is log Σ exp(x) - x[target]. Take the derivative of each of the two terms.",
    "The first term gives p, the second gives 1 at the target and 0 elsewhere: what the model believed minus what was true.",
    "dx = (p - onehot(target)) · dy / N. Copy p before you subtract 1 at the targets: saved is not yours to write to.",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((4, 5)), np.array([1, 0, 4, 1])), (rng.standard_normal((1, 3)), np.array([2]))]


def _one_hot(s):
    return np.eye(s[0].shape[1])[s[1]]


LIKELY = {
    "p without the 1 at the target: what was true has to be subtracted.": lambda dy, s: (s[0] * (dy / len(s[0])), None),
    "the truth without what the model believed: -onehot lacks p.": lambda dy, s: (-_one_hot(s) * (dy / len(s[0])), None),
    "-1/p at the target: that is the gradient of p. The gradient of x is p - onehot: softmax's backward and 1/p together.": lambda dy, s: (
        -_one_hot(s) / s[0] * (dy / len(s[0])),
        None,
    ),
    "a division by N · V: the loss is a mean over the N rows.": lambda dy, s: ((s[0] - _one_hot(s)) * dy / s[0].size, None),
    "a division by V: the loss is a mean over the N rows.": lambda dy, s: ((s[0] - _one_hot(s)) * dy / s[0].shape[1], None),
    "1 subtracted from the target's column in all rows: each row has its own target, p[np.arange(N), target].": lambda dy, s: (
        (s[0] - np.isin(np.arange(s[0].shape[1]), s[1])) * (dy / len(s[0])),
        None,
    ),
    "1 added at the target: it is p - onehot.": lambda dy, s: ((s[0] + _one_hot(s)) * (dy / len(s[0])), None),
    "log p where p belongs.": lambda dy, s: ((np.log(s[0]) - _one_hot(s)) * (dy / len(s[0])), None),
}
