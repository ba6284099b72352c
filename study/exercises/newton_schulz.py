"""Newton–Schulz: a matrix G = U S Vᵀ becomes U Vᵀ, by products of matrices alone

    X ← G / |G|,  |G| = √(sum of all squares)        no singular value is above 1 now
    X ← a X + b (X Xᵀ) X + c (X Xᵀ)² X               as often as ``steps`` says

Muon's step: every direction of the gradient becomes equally large. X Xᵀ = U S² Uᵀ. So U
and V stay as they are, and each singular value s becomes a s + b s³ + c s⁵ by itself.
With a, b, c = 15/8, -10/8, 3/8 it goes to 1. Muon takes a larger a: small values grow
faster, and do not come as near to 1.

Shapes: g and the result (n, m). A tall g is transposed first, so that X Xᵀ is small.
By hand: diag(3, 4) has the length 5. One step takes s = 0.8 to
(15 · 0.8 - 10 · 0.8³ + 3 · 0.8⁵) / 8 = 0.98288. A row vector has one singular value, its
length: it becomes a row of length 1.

>>> newton_schulz(np.array([[3.0, 0.0], [0.0, 4.0]]), steps=1).round(5)
array([[0.88416, 0.     ],
       [0.     , 0.98288]])
>>> newton_schulz(np.array([[0.0, 2.0]]), steps=5)
array([[0., 1.]])
"""

import numpy as np


def newton_schulz(g, steps=5, coefficients=(15 / 8, -10 / 8, 3 / 8)):
    """U Vᵀ, nearly. Nothing is written to g."""
    a, b, c = coefficients
    if g.shape[0] > g.shape[1]:
        return newton_schulz(g.T, steps, coefficients).T
    # --- write from here ---
    x = g / np.sqrt((g * g).sum())
    for _ in range(steps):
        s = x @ x.T  # U S² Uᵀ
        x = a * x + (b * s + c * s @ s) @ x
    return x


# --- for the checker ---

HINTS = (
    "One line for |G|, then a loop. In the loop, X Xᵀ is needed twice: give it a name.",
    "With A = X Xᵀ the three terms are a X, b A X and c A A X. All products are those of matrices, @.",
    "x = g / √(Σ g²); then steps times: A = x @ x.T, and x = a · x + (b · A + c · A @ A) @ x.",
)


def _rule(g, steps, coefficients, kind):
    """Newton–Schulz with one mistake; the names of the mistakes are in LIKELY."""
    if g.shape[0] > g.shape[1]:
        return _rule(g.T, steps, coefficients, kind).T
    a, b, c = coefficients
    if kind == "exchanged":
        b, c = c, b
    length = np.sqrt((g * g).sum())
    lengths = {"no length": 1.0, "no root": length**2, "largest": np.abs(g).max(), "spectral": np.linalg.norm(g, 2)}
    x = g / (np.sqrt((g * g).sum(axis=1, keepdims=True)) if kind == "rows" else lengths.get(kind, length))
    first = x @ x.T
    for _ in range(steps + {"one more": 1, "one less": -1}.get(kind, 0)):
        s = first if kind == "first" else x @ x.T
        square = s * s if kind == "s * s" else s if kind == "no square" else s @ s
        x = (kind != "no a") * a * x + ((kind != "no b") * b * s + (kind != "no c") * c * square) @ x
        if kind == "again":
            x = x / np.sqrt((x * x).sum())
    return x


LIKELY = {
    "G that is not divided by its length: singular values above 1 grow without bound.": "no length",
    "the root left out: |G| is the root of the sum of all squares.": "no root",
    "a division by the largest number: it bounds no singular value.": "largest",
    "a division by the largest singular value: that would be as good, but it is not known; |G| is.": "spectral",
    "every row divided by its own length: one length for the whole matrix.": "rows",
    "a division by the length in every step: only once, before the first.": "again",
    "X Xᵀ from before the loop: X changes, and X Xᵀ with it.": "first",
    "numbers squared one by one: (X Xᵀ)² is a product of matrices, @.": "s * s",
    "the square left out: the last term is c (X Xᵀ)² X.": "no square",
    "b and c exchanged.": "exchanged",
    "the term a X left out.": "no a",
    "the term b (X Xᵀ) X left out.": "no b",
    "the term c (X Xᵀ)² X left out.": "no c",
    "one step too many.": "one more",
    "one step too few.": "one less",
}


def check(page):
    """(what is wrong, what that looks like), or None."""
    rng = np.random.default_rng(0)
    calls = [
        (rng.standard_normal(shape), steps, abc)
        for shape in ((3, 5), (4, 2))
        for steps, abc in ((3, (1.875, -1.25, 0.375)), (2, (3.4, -4.8, 2.0)))
    ]
    with np.errstate(all="ignore"):
        for g, steps, coefficients in calls:
            given = g.copy()
            result = page.newton_schulz(given, steps, coefficients)
            if (given != g).any():
                return "newton_schulz writes to g.", "g /= …, which changes the caller's array: g / … is a new one."
            if not isinstance(result, np.ndarray):
                return f"newton_schulz returns a {type(result).__name__}, and should return an array: return x.", None
            if result.shape != g.shape:
                return f"a matrix of the shape {g.shape} becomes one of the shape {result.shape}.", None
            right = newton_schulz(g, steps, coefficients)
            if not np.allclose(result, right, rtol=1e-9, atol=1e-12, equal_nan=False):
                index = np.unravel_index(np.nan_to_num(np.abs(result - right), nan=np.inf).argmax(), g.shape)
                likely = [
                    says
                    for says, kind in LIKELY.items()
                    if np.allclose(result, _rule(g, steps, coefficients, kind), rtol=1e-7, atol=1e-12, equal_nan=True)
                ]
                place = list(map(int, index))
                says = f"after {steps} steps of a matrix of the shape {g.shape} the number at {place} is {result[index]:.6g}"
                return f"{says}, and should be {right[index]:.6g}.", likely[0] if likely else None
    return None
