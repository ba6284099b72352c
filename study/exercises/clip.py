"""Clipping: g ← g · min(1, max_norm / (|g| + 10⁻⁶))

|g| is the length of all gradients of the model, as if they were one long vector: the
root of the sum of all squares. If it is longer than max_norm, everything is scaled down
by the same factor, so the direction stays.

By hand: gradients [3, 0] and [4], so |g| = 5. With max_norm = 1 they become [0.6, 0]
and [0.8]. With max_norm = 10 they stay.

>>> clip([np.array([3.0, 0.0]), np.array([4.0])], 1.0)[1][0].round(6)
array([0.6, 0. ])
"""

import math

import numpy as np


def clip(gradients, max_norm):
    """The length |g| before clipping, and a list of the clipped gradients. Nothing is written to what was given."""
    # --- write from here ---
    lengths = [math.sqrt(np.vdot(g, g)) for g in gradients]
    norm = math.sqrt(np.vdot(lengths, lengths))  # the length of all is the length of the lengths
    factor = min(1.0, max_norm / (norm + 1e-6))
    return norm, [g * factor for g in gradients]


# --- for the checker ---

HINTS = (
    "One length for all gradients together, then one factor for all. How long are [3, 0] and [4] together?",
    "The length: add up all squares of all arrays, then take the root once. A factor above 1 would make short gradients longer.",
    "norm = √(Σ (g · g).sum()), factor = min(1, max_norm / (norm + 1e-6)), and g * factor for each.",
)


def _norm(gradients, power=2.0):
    return sum((np.abs(g) ** power).sum() for g in gradients) ** (1 / power)


LIKELY = {
    "each array clipped by itself: the direction of the whole changes. One factor for all.": lambda gs, most: (
        [g * min(1.0, most / (np.sqrt((g * g).sum()) + 1e-6)) for g in gs]
    ),
    "every number cut off at max_norm: that changes the direction. Scale all by one factor.": lambda gs, most: (
        [np.clip(g, -most, most) for g in gs]
    ),
    "gradients that are always scaled to the length max_norm: short ones stay as they are, min(1, …).": lambda gs, most: (
        [g * (most / (_norm(gs) + 1e-6)) for g in gs]
    ),
    "the root left out: that is the square of the length.": lambda gs, most: [g * min(1.0, most / (_norm(gs) ** 2 + 1e-6)) for g in gs],
    "the sum of the magnitudes in the place of the length: squares, then a root.": lambda gs, most: (
        [g * min(1.0, most / (_norm(gs, 1.0) + 1e-6)) for g in gs]
    ),
    "the sum of the arrays' lengths: add up the squares of all arrays, then take one root.": lambda gs, most: (
        [g * min(1.0, most / (sum(np.sqrt((h * h).sum()) for h in gs) + 1e-6)) for g in gs]
    ),
    "the largest magnitude in the place of the length.": lambda gs, most: [
        g * min(1.0, most / (max(np.abs(h).max() for h in gs) + 1e-6)) for g in gs
    ],
    "gradients that are not changed at all: where is the factor used?": lambda gs, most: list(gs),
    "gradients multiplied by max_norm itself: the factor is max_norm / |g|.": lambda gs, most: [g * most for g in gs],
    "the factor upside down: |g| / max_norm makes a long gradient longer.": lambda gs, most: [
        g * min(1.0, (_norm(gs) + 1e-6) / most) for g in gs
    ],
    "gradients that are never changed where they are long, and scaled where they are short: it is min(1, …).": lambda gs, most: (
        [g * max(1.0, most / (_norm(gs) + 1e-6)) for g in gs]
    ),
}


def check(page):
    """(what is wrong, what that looks like), or None."""
    rng = np.random.default_rng(0)
    gradients = [rng.standard_normal((2, 3)), rng.standard_normal(4)]
    for most in (0.5, 100.0):
        given = [g.copy() for g in gradients]
        result = page.clip(given, most)
        if any((a != b).any() for a, b in zip(given, gradients, strict=True)):
            return "clip writes to the gradients that it was given.", "g *= factor, which changes g itself: g * factor is a new array."
        if not isinstance(result, tuple) or len(result) != 2 or not isinstance(result[1], list | tuple):
            return "clip returns something else than two things: the length, and a list of the clipped gradients.", None
        norm, clipped = result
        if [getattr(g, "shape", None) for g in clipped] != [g.shape for g in gradients]:
            return "the clipped gradients have other shapes than the gradients.", None
        right_norm, right = clip(gradients, most)
        wrong = [i for i in range(2) if not np.allclose(clipped[i], right[i], rtol=1e-5, atol=0)]  # 10⁻⁶ is only there against |g| = 0
        if wrong:
            i = wrong[0]
            index = np.unravel_index(np.abs(clipped[i] - right[i]).argmax(), right[i].shape)
            likely = [
                s for s, f in LIKELY.items() if all(np.allclose(a, b, rtol=1e-5) for a, b in zip(clipped, f(gradients, most), strict=True))
            ]
            says = f"max_norm = {most:g}, |g| = {right_norm:.4f}: a gradient of {gradients[i][index]:.4f} becomes {clipped[i][index]:.4f}"
            return f"{says}, and should become {right[i][index]:.4f}.", likely[0] if likely else None
        if not np.allclose(norm, right_norm, rtol=1e-5):
            looks_like = (
                "the length after clipping: return the one before." if np.allclose(norm, min(most, right_norm), rtol=1e-5) else None
            )
            return f"the length should be {right_norm:.4f}, and yours is {float(norm):.4f}.", looks_like
    return None
