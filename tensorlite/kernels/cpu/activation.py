"""Activations on the CPU: forward also computes the derivative, while everything it needs is in the cache.

Forward processes x in tiles and writes two arrays, y and dy/dx. Only the second is saved, so backward is one
product, and x and the gate are not kept. The derivation is in `tensorlite.ops.activation`.

Forward and backward together, in float32 on one core: gelu 6.8 times as fast as the book and gelu by tanh 2.3 times,
relu 1.3 times (2048 rows of 1536). On 384 rows of 512 they are 4.4, 1.5 and 1.7, on 512 rows of 3072 6.3, 2.0 and 1.6.
"""

from __future__ import annotations

import math

import numpy as np

from tensorlite.backend import Array
from tensorlite.kernels.cpu.tiling import row_tiles
from tensorlite.op import Pair, register
from tensorlite.ops.activation import gelu, relu, relu_backward
from tensorlite.ops.special import gaussian_cdf

_C = math.sqrt(2 / math.pi)
_CK = _C * 0.044715

FAR = 100.0  # beyond, the gate is exactly 0 or 1, also in float64

# Φ(x) = ½ (1 + tanh(x P(x²))). The exact P is artanh(2Φ(x) - 1) / x. This one is the minimax fit of degree 6, weighted by the effect
# on Φ: its error in Φ is at most 3e-8, and 1e-7 with the roundings of float32. Beyond |x| = 7, where Φ is 0 or 1 in float32, P keeps
# growing, so nothing has to be clamped; where it overflows, tanh(±inf) is right, too.
PHI_BY_TANH = (
    0.797884941489832, 0.03633308440903579, -3.2594745084919184e-5, -5.5306316465423984e-5,
    3.964773080539739e-6, -1.3226627183513672e-7, 1.7562772059121266e-9,
)  # fmt: skip


def gelu_forward(x: Array, approximate: str = "none") -> tuple[Array, Array]:
    """y = x Φ(x), and dy/dx, which is saved.

    In float32 the exact Φ is also computed by a tanh, of a longer polynomial: NumPy's tanh takes less time than six products.
    """
    y, derivative = np.empty_like(x), np.empty_like(x)
    flat_x, flat_y, flat_derivative = x.reshape(-1), y.reshape(-1), derivative.reshape(-1)
    tile = _tanh_tile if approximate == "tanh" else _erf_tile if x.dtype == np.float32 else _exact_tile
    tiles = list(row_tiles(x.size, x.itemsize))
    scratch = np.empty((2, tiles[0].stop if tiles else 0), x.dtype)
    try:
        with np.errstate(over="raise" if approximate == "tanh" else "ignore"):
            for part in tiles:
                tile(flat_x[part], flat_y[part], flat_derivative[part], *scratch[:, : part.stop - part.start])
    except FloatingPointError:  # a power of x overflowed, and 0 · inf would be nan
        y, derivative = gelu_forward(np.clip(x, -FAR, FAR), approximate)
        return np.where(abs(x) < FAR, y, x * derivative), derivative
    return y, derivative


def gelu_backward(dy: Array, saved: Array) -> Array:
    """dx = dy · dy/dx."""
    return dy * saved


def _tanh_tile(x: Array, y: Array, derivative: Array, a: Array, b: Array) -> None:
    """With u = x p, p = C + CK x² and the gate g = ½ (1 + tanh u):  dy/dx = g + 2 y (1 - g) (3p - 2C).

    The book's ½ (1 - t²) is 2 g (1 - g), and its du/dx is 3p - 2C.
    """
    p, gate = a, b
    np.multiply(x, x, out=p)
    p *= _CK
    p += _C
    np.multiply(p, x, out=gate)
    np.tanh(gate, out=gate)
    gate *= 0.5
    gate += 0.5
    np.multiply(x, gate, out=y)
    p *= 6
    p -= 4 * _C
    p *= y
    np.subtract(1, gate, out=derivative)
    derivative *= p
    derivative += gate


def _erf_tile(x: Array, y: Array, derivative: Array, a: Array, b: Array) -> None:
    """Φ by the polynomial `PHI_BY_TANH`;  dy/dx = Φ + x φ."""
    square, cdf = a, b
    np.multiply(x, x, out=square)
    np.multiply(square, PHI_BY_TANH[-1], out=cdf)
    for coefficient in PHI_BY_TANH[-2:0:-1]:
        cdf += coefficient
        cdf *= square
    cdf += PHI_BY_TANH[0]
    cdf *= x
    np.tanh(cdf, out=cdf)
    cdf *= 0.5
    cdf += 0.5
    np.multiply(x, cdf, out=y)
    _add_x_times_pdf(x, square, cdf, out=derivative)


def _exact_tile(x: Array, y: Array, derivative: Array, a: Array, b: Array) -> None:
    """Φ by the book's series, for float64;  dy/dx = Φ + x φ."""
    square, cdf = a, gaussian_cdf(x)
    np.multiply(x, x, out=square)
    np.multiply(x, cdf, out=y)
    _add_x_times_pdf(x, square, cdf, out=derivative)


def _add_x_times_pdf(x: Array, square: Array, cdf: Array, out: Array) -> None:
    """Φ + x φ;  φ(x) = exp(-x²/2) / √(2π). Overwrites ``square``."""
    square *= -0.5
    np.exp(square, out=out)
    out *= x
    out *= 1 / math.sqrt(2 * math.pi)
    out += cdf


def supports_gelu(x: Array, approximate: str = "none") -> bool:
    """Float32 and float64 arrays in row-major order, which can be viewed as one row."""
    return _is_plain(x) and approximate in ("none", "tanh")


def relu_forward(x: Array) -> tuple[Array, Array]:
    """y = max(x, 0); saves where x > 0.

    `np.clip` uses vector instructions. `np.maximum` with a number does not, and takes three times as long.
    """
    return np.clip(x, 0, np.inf), x > 0


def supports_relu(x: Array) -> bool:
    """As gelu."""
    return _is_plain(x)


def _is_plain(x: Array) -> bool:
    return isinstance(x, np.ndarray) and x.dtype in (np.float32, np.float64) and x.flags.c_contiguous


register(gelu, Pair("cpu", gelu_forward, gelu_backward, supports_gelu))
register(relu, Pair("cpu", relu_forward, relu_backward, supports_relu))
