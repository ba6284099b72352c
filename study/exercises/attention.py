"""Causal attention: y = A @ v, A = softmax(S), S = q @ kᵀ / √D, and row t sees only s ≤ t

Each token compares its query q with the keys k of the tokens up to itself, and takes a
weighted mean of their values v. Forward is three steps whose backward you have written:
a product, a masked softmax, a product.

Shapes: q, k and v (..., T, D), A and S (..., T, T), y (..., T, D).
By hand: T = 1: the only token looks at itself, A = [[1]], y = v. So dv is dy, and dq
and dk are 0.

>>> q, k, v = np.array([[[2.0]], [[3.0]], [[5.0]]])
>>> y, saved = attention_forward(q, k, v)
>>> attention_backward(np.array([[7.0]]), saved)
(array([[0.]]), array([[0.]]), array([[7.]]))
"""

import math

import numpy as np


def attention_forward(q, k, v):
    """y; q, k, v and A for backward."""
    T, D = q.shape[-2:]
    scores = q @ k.swapaxes(-1, -2) * (1 / math.sqrt(D))  # (..., T, T)
    scores = np.where(np.tri(T, dtype=bool), scores, -np.inf)
    e = np.exp(scores - scores.max(axis=-1, keepdims=True))
    A = e / e.sum(axis=-1, keepdims=True)
    return A @ v, (q, k, v, A)


def attention_backward(dy, saved):
    """dq, dk and dv, each (..., T, D). x.swapaxes(-1, -2) transposes the last two axes."""
    q, k, v, A = saved
    D = q.shape[-1]
    # --- write from here ---
    dv = A.swapaxes(-1, -2) @ dy
    dA = dy @ v.swapaxes(-1, -2)
    dS = A * (dA - (dA * A).sum(axis=-1, keepdims=True))
    scale = 1 / math.sqrt(D)
    return dS @ k * scale, dS.swapaxes(-1, -2) @ q * scale, dv


# --- for the checker ---

HINTS = (
    "Walk back line by line: from y = A @ v to dA and dv, from A = softmax(S) to dS, from S = q @ kᵀ / √D to dq and dk.",
    (
        "The first and the last step are matmul: da = dy @ bᵀ, db = aᵀ @ dy. The middle one is softmax: dS = A · (dA "
        "- Σ dA · A). No second mask."
    ),
    "dv = Aᵀ @ dy, dA = dy @ vᵀ, dq = dS @ k / √D, dk = dSᵀ @ q / √D.",
)


def cases(rng):
    """Inputs to check with."""
    return [tuple(rng.standard_normal((3, 2, 4, 3))), tuple(rng.standard_normal((3, 4, 4)))]


def _with(dS_of=None, dq=None, dk=None, dv=None):
    """The right backward with one part of it exchanged."""

    def backward(dy, saved):
        q, k, v, A = saved
        scale = 1 / np.sqrt(q.shape[-1])
        dA = dy @ v.swapaxes(-1, -2)
        dS = A * (dA - (dA * A).sum(axis=-1, keepdims=True)) if dS_of is None else dS_of(dA, A)
        dST = dS.swapaxes(-1, -2)
        return (
            dS @ k * scale if dq is None else dq(dS, k, scale),
            dST @ q * scale if dk is None else dk(dS, q, scale),
            A.swapaxes(-1, -2) @ dy if dv is None else dv(A, dy),
        )

    return backward


LIKELY = {
    "dv made with A instead of its transpose: y = A @ v, so dv = Aᵀ @ dy.": _with(dv=lambda A, dy: A @ dy),
    "dv = dy: the values are mixed by A on the way.": _with(dv=lambda A, dy: dy),
    "softmax's backward without its sum: dS = A · (dA - Σ dA · A).": _with(dS_of=lambda dA, A: A * dA),
    "softmax left out in backward: dS = A · (dA - Σ dA · A).": _with(dS_of=lambda dA, A: dA),
    "softmax left out in backward, and a mask in its place: dS = A · (dA - Σ dA · A).": _with(dS_of=lambda dA, A: np.where(A > 0, dA, 0)),
    "a plain sum of dA in softmax's backward: it is weighted with A, Σ dA · A.": _with(
        dS_of=lambda dA, A: A * (dA - dA.sum(axis=-1, keepdims=True))
    ),
    "a plain mean of dA in softmax's backward: it is weighted with A, Σ dA · A.": _with(
        dS_of=lambda dA, A: A * (dA - dA.mean(axis=-1, keepdims=True))
    ),
    "dA made with k: y = A @ v, so dA = dy @ vᵀ.": lambda dy, s: attention_backward(dy, (s[0], s[1], s[1], s[3])),
    "softmax's sum along the wrong axis: each row of A adds up to 1.": _with(
        dS_of=lambda dA, A: A * (dA - (dA * A).sum(axis=-2, keepdims=True))
    ),
    "a plus in softmax's backward: dS = A · (dA - Σ dA · A).": _with(dS_of=lambda dA, A: A * (dA + (dA * A).sum(axis=-1, keepdims=True))),
    "the scale 1/√D left out: it stands in S, and so in dq and in dk.": _with(
        dq=lambda dS, k, c: dS @ k, dk=lambda dS, q, c: dS.swapaxes(-1, -2) @ q
    ),
    "the scale twice: 1/√D stands once in dq and once in dk.": _with(
        dq=lambda dS, k, c: dS @ k * c * c, dk=lambda dS, q, c: dS.swapaxes(-1, -2) @ q * c * c
    ),
    "dk made with dS instead of its transpose: S = q @ kᵀ / √D, so dk = dSᵀ @ q / √D.": _with(dk=lambda dS, q, c: dS @ q * c),
    "dq made with q: S = q @ kᵀ / √D, and the other factor is k.": lambda dy, s: (
        attention_backward(dy, (s[0], s[0], s[2], s[3]))[0],
        *attention_backward(dy, s)[1:],
    ),
    "dk made with k: S = q @ kᵀ / √D, and the other factor is q.": lambda dy, s: (
        attention_backward(dy, s)[0],
        attention_backward(dy, (s[1], s[1], s[2], s[3]))[1],
        attention_backward(dy, s)[2],
    ),
    "dq made with the transpose of dS: S = q @ kᵀ / √D, so dq = dS @ k / √D.": _with(dq=lambda dS, k, c: dS.swapaxes(-1, -2) @ k * c),
}
