"""AdamW: a step size for every number, from the size of its own gradients

    p ← p · (1 - lr · decay)                      every parameter shrinks a little
    m ← β₁ m + (1 - β₁) g                         a running mean of the gradient
    v ← β₂ v + (1 - β₂) g²                        a running mean of its square
    m̂ = m / (1 - β₁ᵗ),  v̂ = v / (1 - β₂ᵗ)         m and v begin at 0: too small at first
    p ← p - lr · m̂ / (√v̂ + eps)

Shapes: p, g, m and v all alike; t counts the steps from 1. p, m and v are changed in
place, with m *= …, p -= … or p[...] = …, and nothing is returned.
By hand: in the first step m̂ is g and v̂ is g², whatever β is. So p moves by lr against
the sign of g, whether g is large or small.

>>> p, m, v = np.array([1.0, 1.0]), np.zeros(2), np.zeros(2)
>>> adamw(p, np.array([100.0, -0.01]), m, v, t=1, lr=0.1, betas=(0.9, 0.99), eps=0.0, decay=0.0)
>>> p.round(6)
array([0.9, 1.1])
"""

import math

import numpy as np


def adamw(p, g, m, v, t, lr, betas, eps, decay):
    """Change p, m and v in place."""
    beta1, beta2 = betas
    # --- write from here ---
    p *= 1 - lr * decay
    m += (1 - beta1) * (g - m)
    v *= beta2
    v += (1 - beta2) * g * g
    size = np.sqrt(v)
    size /= math.sqrt(1 - beta2**t)
    size += eps
    p -= (lr / (1 - beta1**t)) * m / size


# --- for the checker ---

HINTS = (
    "Translate the five lines one by one. m = … makes a new array and leaves the caller's as it was; m *= … or m[...] = … changes it.",
    "The decay uses lr, too, and acts on p itself, not on g. eps stands outside of the root.",
    "m[...] = β₁ m + (1 - β₁) g, v in the same way with g², then p -= lr · (m / (1 - β₁ᵗ)) / (√(v / (1 - β₂ᵗ)) + eps).",
)


def _rule(p, g, m, v, t, lr, betas, eps, decay, *, kind=""):
    """AdamW with one mistake; the names of the mistakes are in LIKELY."""
    beta1, beta2 = (betas[1], betas[0]) if kind == "betas" else betas
    g = g + decay * p if kind == "coupled" else g
    if kind not in ("coupled", "no decay", "decay late"):
        p *= 1 - (decay if kind == "decay without lr" else lr * decay)
    m *= beta1
    m += g if kind in ("m sum", "sums") else (1 - beta1) * g
    v *= beta2
    v += g * g if kind in ("v sum", "sums") else (1 - beta2) * (np.abs(g) if kind == "v of |g|" else g if kind == "v of g" else g * g)
    t = t - 1 if kind == "t from 0" else t
    first = 1 if kind in ("m not corrected", "not corrected") else 1 - beta1**t if kind != "β·t" else 1 - beta1 * t
    second = 1 if kind in ("v not corrected", "not corrected") else 1 - beta2**t if kind != "β·t" else 1 - beta2 * t
    with np.errstate(all="ignore"):
        m_hat, v_hat = m / first, v / second
        root = v_hat if kind == "no root" else np.sqrt(v_hat + eps) if kind == "eps inside" else np.sqrt(v_hat)
        p += {"uphill": 1, "lost": 0}.get(kind, -1) * lr * m_hat / (root + (0 if kind in ("eps inside", "no eps") else eps))
    if kind == "decay late":
        p *= 1 - lr * decay


LIKELY = {
    "m not corrected: m begins at 0 and is too small at first. Divide by 1 - β₁ᵗ.": "m not corrected",
    "v not corrected: v begins at 0 and is too small at first. Divide by 1 - β₂ᵗ.": "v not corrected",
    "neither m nor v corrected: both begin at 0 and are too small at first. Divide by 1 - βᵗ.": "not corrected",
    "eps inside the root: it stands outside, √v̂ + eps.": "eps inside",
    "eps left out.": "no eps",
    "a decay that is added to the gradient: that is Adam with L2. In AdamW it acts on p itself.": "coupled",
    "the decay left out: p ← p · (1 - lr · decay).": "no decay",
    "a decay without the learning rate: p ← p · (1 - lr · decay).": "decay without lr",
    "the decay after the step: it comes first.": "decay late",
    "a step uphill: p moves against the gradient, with a minus.": "uphill",
    "the root left out: v̂ is a mean of squares.": "no root",
    "a step that is lost: p = p - … makes a new array. Write p -= … or p[...] = …": "lost",
    "β₁ and β₂ exchanged.": "betas",
    "m as a sum and no mean: the new gradient is multiplied with 1 - β₁.": "m sum",
    "v as a sum and no mean: the new square is multiplied with 1 - β₂.": "v sum",
    "m and v as sums and no means: what is new is multiplied with 1 - β₁ and 1 - β₂.": "sums",
    "|g| in the place of g² in v.": "v of |g|",
    "g in the place of g² in v.": "v of g",
    "steps that are counted from 0: t is given, and begins at 1.": "t from 0",
    "β · t in the place of βᵗ.": "β·t",
}


def _steps(rule, count=3, **options):
    """p, m and v after some steps with gradients of very different sizes."""
    rng = np.random.default_rng(0)
    p, m, v = rng.standard_normal(4), np.zeros(4), np.zeros(4)
    for t in range(1, count + 1):
        g = rng.standard_normal(4) * np.array([1.0, 1e-3, 10.0, 1e-7])
        given = g.copy()
        result = rule(p, g, m, v, t, 0.1, (0.9, 0.99), 1e-8, 0.2, **options)
        if result is not None:
            return result
        if (g != given).any():
            return "written"
    return p, m, v


def check(page):
    """(what is wrong, what that looks like), or None."""
    with np.errstate(all="ignore"):
        result = _steps(page.adamw)
        if isinstance(result, str):
            return (
                "adamw writes to the gradient g.",
                "g *= … or g += …, which changes the caller's array: only p, m and v are yours to change.",
            )
        right, before = _steps(adamw), _steps(adamw, 0)
        if not (isinstance(result, tuple) and [getattr(a, "shape", None) for a in result] == [(4,)] * 3):
            return f"adamw returns a {type(result).__name__}, and should return nothing: it changes p, m and v in place.", None
        stayed = [name for name, now, then in zip("pmv", result, before, strict=True) if (now == then).all()]
        if stayed:
            looks_like = f"{stayed[0]} = …, which makes a new array: write {stayed[0]}[...] = …, or {stayed[0]} -= … and the like."
            return f"after three steps {' and '.join(stayed)} is still what it was.", looks_like
        for name, yours, wanted in zip("pmv", result, right, strict=True):
            if not np.allclose(yours, wanted, rtol=1e-9, atol=1e-14, equal_nan=False):
                i = int(np.nan_to_num(np.abs(yours - wanted) / np.abs(wanted), nan=np.inf).argmax())
                likely = [
                    says
                    for says, kind in LIKELY.items()
                    if all(
                        np.allclose(a, b, rtol=1e-7, atol=1e-14, equal_nan=True)
                        for a, b in zip(result, _steps(_rule, kind=kind), strict=True)
                    )
                ]
                return f"after three steps {name}[{i}] is {yours[i]:.6g}, and should be {wanted[i]:.6g}.", likely[0] if likely else None
    return None
