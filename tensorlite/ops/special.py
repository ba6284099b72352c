"""The Gaussian's cumulative distribution, which neither NumPy nor (without SciPy) CuPy has.

    Φ(x) = P(N(0, 1) < x) = ½ erfc(-x/√2)

For z ≥ 0, log erfc(z) is -z² plus a function that is nearly linear. With t = 1/(1 + z/2), which goes from 1 down to 0,

    erfc(z) = t · exp(-z² + P(2t - 1))

with one polynomial P for all z. It needs no case distinction, only products and sums, which suit array code.
The form is that of Press et al., "Numerical Recipes", section 6.2.2. The coefficients below were computed anew, with
60 digits in mpmath: the Chebyshev series in 2t - 1 of log(erfc(z)/t) + z². They decrease so fast that twenty-seven of
them leave an error below 1e-15 in Φ, and ten an error of 1e-7, which is the precision of float32.
"""

from __future__ import annotations

from tensorlite.backend import Array, array_module

_CHEBYSHEV = (
    -0.651326859890854717, 0.641969792356490260, 0.0194764732041858363,
    -0.00956151478680863164, -0.000946595344482036866, 0.000366839497852761452,
    0.0000425233248069077716, -0.0000202785781125342432, -1.62429000464702551e-6,
    1.30365583558052320e-6, 1.56264417220661432e-8, -8.52380959149265425e-8,
    6.52905443909885150e-9, 5.05934349555146894e-9, -9.91364156493033087e-10,
    -2.27365122293183586e-10, 9.64679110201552680e-11, 2.39403808303911474e-12,
    -6.88602752649755340e-12, 8.94487927309072572e-13, 3.13092139934295808e-13,
    -1.12708223613672524e-13, 3.81090525518923206e-16, 7.10609761360923699e-15,
    -1.52302820145710430e-15, -9.45749457129123400e-17, 1.21023718922427899e-16,
)  # fmt: skip
_FLOAT32_TERMS = 10


def gaussian_cdf(x: Array) -> Array:
    """Φ(x), in the dtype of ``x``."""
    xp = array_module(x)
    x = xp.clip(x, -100, 100)  # beyond, Φ is exactly 0 or 1, and the square of x may overflow
    t = 1 / (1 + abs(x) * 0.5**1.5)  # z/2 = |x| / (2√2)
    coefficients = _CHEBYSHEV if x.dtype == "float64" else _CHEBYSHEV[:_FLOAT32_TERMS]
    polynomial = _chebyshev_series(2 * t - 1, coefficients)
    tail = 0.5 * t * xp.exp(polynomial - 0.5 * x * x)  # Φ(-|x|), computed directly, because 1 - Φ(|x|) would lose its digits far from 0
    return xp.where(x < 0, tail, 1 - tail)


def gaussian_pdf(x: Array) -> Array:
    """φ(x) = exp(-x²/2) / √(2π), the derivative of Φ."""
    near = array_module(x).clip(x, -100, 100)  # as above
    return array_module(x).exp(-0.5 * near * near) * 0.3989422804014327


def _chebyshev_series(u: Array, coefficients: tuple[float, ...]) -> Array:
    """Σ cₖ Tₖ(u) for u in [-1, 1], by Clenshaw's recurrence: bₖ = cₖ + 2u bₖ₊₁ - bₖ₊₂."""
    b1, b2 = 0 * u, 0 * u
    for c in reversed(coefficients[1:]):
        b1, b2 = c + 2 * u * b1 - b2, b1
    return coefficients[0] + u * b1 - b2
