"""The soft gate of a GPT: y = x · Φ(x)

Φ(x) is the probability that a standard normal number is smaller than x. It is 0 far
left, 1/2 at 0 and 1 far right: where relu multiplies by 0 or 1, gelu multiplies by
something in between. Its derivative is the bell curve φ(x) = exp(-x²/2) / √(2π). NumPy
has neither; both are given.

Shapes: x and y any, the same.
By hand: at x = 0 the slope is 1/2. At x = 1, Φ is 0.8413 and φ is 0.2420, and the slope
is 1.0833: more than 1!

>>> y, saved = gelu_forward(np.array([0.0, 1.0]))
>>> y.round(4)
array([0.    , 0.8413])
>>> gelu_backward(np.array([1.0, 1.0]), saved).round(4)
array([0.5   , 1.0833])
"""

import numpy as np

from tensorlite.ops.special import gaussian_cdf, gaussian_pdf  # Φ and φ


def gelu_forward(x):
    """y; x and Φ(x) for backward."""
    cdf = gaussian_cdf(x)
    return x * cdf, (x, cdf)


def gelu_backward(dy, saved):
    """dx, of the shape of x."""
    x, cdf = saved
    # --- write from here ---
    return dy * (cdf + x * gaussian_pdf(x))


# --- for the checker ---

HINTS = (
    "gelu is a product, and both of its factors have x in them.",
    "The product rule: (u · v)' = u' · v + u · v'. Here u is x and v is Φ(x). What is the derivative of Φ?",
    "The slope is Φ(x) + x · φ(x): cdf, and x times gaussian_pdf(x).",
)


def cases(rng):
    """Inputs to check with."""
    return [(rng.standard_normal((2, 4)),)]


LIKELY = {
    "the gate taken for a constant: x moves Φ(x) as well, and the product rule has a second term.": lambda dy, s: dy * s[1],
    "the first term of the product rule left out: Φ(x) itself.": lambda dy, s: dy * s[0] * gaussian_pdf(s[0]),
    "φ(x) alone as derivative: that is the derivative of Φ(x), and y is x · Φ(x).": lambda dy, s: dy * gaussian_pdf(s[0]),
    "a second term without its factor x: the product rule gives x · φ(x).": lambda dy, s: dy * (s[1] + gaussian_pdf(s[0])),
    "a minus between the two terms of the product rule: they add up.": lambda dy, s: dy * (s[1] - s[0] * gaussian_pdf(s[0])),
    "dy in one of the two terms only: it multiplies the whole bracket.": lambda dy, s: dy * s[1] + s[0] * gaussian_pdf(s[0]),
    "relu's derivative, 0 or 1: the gate of gelu opens softly.": lambda dy, s: dy * (s[0] > 0),
    "Φ(x) in the place of φ(x) in the second term: the derivative of Φ is the bell curve.": lambda dy, s: dy * (s[1] + s[0] * s[1]),
}
