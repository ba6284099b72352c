"""The product of two matrices: y = a @ b

One number of y is y[t, n] = Σₖ a[t, k] · b[k, n]. In which numbers of y does a[t, k]
occur, and with which factor?

Shapes: a (T, K), b (K, N), y (T, N). They nearly give the answer away: only one product
of dy and b has the shape (T, K).
By hand: a = [[1, 2]], b = [[3], [4]]: y = [[11]]. With dy = [[1]], da is [[3, 4]] and
db is [[1], [2]].

>>> y, saved = matmul_forward(np.array([[1.0, 2.0]]), np.array([[3.0], [4.0]]))
>>> da, db = matmul_backward(np.array([[1.0]]), saved)
>>> da
array([[3., 4.]])
>>> db
array([[1.],
       [2.]])
"""

import numpy as np


def matmul_forward(a, b):
    """y, and both factors."""
    return a @ b, (a, b)


def matmul_backward(dy, saved):
    """da (T, K) and db (K, N)."""
    a, b = saved
    # --- write from here ---
    return dy @ b.T, a.T @ dy


# --- for the checker ---

HINTS = (
    "a[t, k] goes into y[t, n] with the factor b[k, n], for every n. Write da[t, k] as a sum over n.",
    "da[t, k] = Σₙ dy[t, n] · b[k, n]. As a product of matrices the second one must be read as [n, k]: transposed.",
    "da = dy @ b.T and db = a.T @ dy. Check the shapes: (T, N) @ (N, K) and (K, T) @ (T, N).",
)


def cases(rng):
    """Inputs to check with."""
    return [
        (rng.standard_normal((4, 3)), rng.standard_normal((3, 5))),
        (rng.standard_normal((3, 3)), rng.standard_normal((3, 3))),
    ]


def _if_square(wrong):
    return lambda dy, s: wrong(dy, *s) if dy.shape == s[0].shape == s[1].shape else matmul_backward(dy, s)


LIKELY = {
    "factors without their transposes: with square matrices the shapes do not tell.": _if_square(lambda dy, a, b: (dy @ b, a @ dy)),
    "factors in the wrong order: a product of matrices does not commute.": _if_square(lambda dy, a, b: (b.T @ dy, dy @ a.T)),
    "a product number by number, dy * b: this is the product of matrices.": _if_square(lambda dy, a, b: (dy * b, dy * a)),
    "a gradient that is transposed as a whole: (dy @ b.T).T is b @ dy.T.": _if_square(lambda dy, a, b: (b @ dy.T, dy.T @ a)),
    "a product with the same input again: each gradient is made with the other factor.": _if_square(lambda dy, a, b: (dy @ a.T, b.T @ dy)),
}
