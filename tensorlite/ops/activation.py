"""Activations: one number in, one number out.

Their Jacobian is diagonal, so every backward is dx = dy · f'(x), element by element. The pages differ in what they
keep: the output where f' can be written in terms of it, and the input otherwise. sigmoid and tanh convert integers to
float32, relu returns integers, gelu and silu refuse them: all as in torch.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import require_floating, to_floating
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.special import gaussian_cdf, gaussian_pdf


def relu_forward(x: Array) -> tuple[Array, Any]:
    """y = max(x, 0)

    Saves: where x > 0, one byte an element.
    Source: Nair, Hinton 2010; equals torch.nn.functional.relu, but for the gradient where x is nan: 0 here, dy in torch.
    """
    return array_module(x).maximum(x, 0), x > 0


def relu_backward(dy: Array, saved: Any) -> Array:
    """dx = dy where x > 0, else 0. At x = 0 the function has a kink; its derivative there is taken as 0, as in torch."""
    return apply_mask(dy, saved)


relu = Op(relu_forward, relu_backward)


def sigmoid_forward(x: Array) -> tuple[Array, Any]:
    """y = 1 / (1 + exp(-x))

    Saves: y.
    Source: equals torch.sigmoid.
    """
    y = _logistic(to_floating(x))
    return y, y


def sigmoid_backward(dy: Array, saved: Any) -> Array:
    """dy/dx = exp(-x) / (1 + exp(-x))² = y · (1 - y)."""
    y = saved
    return dy * y * (1 - y)


sigmoid = Op(sigmoid_forward, sigmoid_backward, in_float32=True)


def tanh_forward(x: Array) -> tuple[Array, Any]:
    """y = tanh(x)

    Saves: y.
    Source: equals torch.tanh.
    """
    y = array_module(x).tanh(to_floating(x))
    return y, y


def tanh_backward(dy: Array, saved: Any) -> Array:
    """tanh = sinh/cosh, so its derivative is (cosh² - sinh²)/cosh² = 1 - y²."""
    y = saved
    return dy * (1 - y * y)


tanh = Op(tanh_forward, tanh_backward, in_float32=True)


def silu_forward(x: Array) -> tuple[Array, Any]:
    """y = x · σ(x),   σ(x) = 1 / (1 + exp(-x))

    Saves: x, σ(x).
    Source: Elfwing, Uchibe, Doya 2017 (also known as swish); equals torch.nn.functional.silu.
    """
    require_floating("silu", x)
    s = _logistic(x)
    return x * s, (x, s)


def silu_backward(dy: Array, saved: Any) -> Array:
    """The product rule, with σ' = σ (1 - σ):  dy/dx = σ + x σ (1 - σ)."""
    x, s = saved
    return dy * (s + x * s * (1 - s))


silu = Op(silu_forward, silu_backward, in_float32=True)


_C = math.sqrt(2 / math.pi)
_K = 0.044715


class GeluSaved(NamedTuple):
    """What backward needs of the forward."""

    x: Array
    gate: Array  # Φ(x); for tanh, tanh u
    approximate: str


def gelu_forward(x: Array, approximate: str = "none") -> tuple[Array, GeluSaved]:
    """y = x · Φ(x),   Φ(x) = P(N(0, 1) < x) = ½ (1 + erf(x/√2))

    With ``approximate="tanh"``, GPT-2's:  Φ(x) ≈ ½ (1 + tanh u),   u = √(2/π) (x + 0.044715 x³).

    relu multiplies x by a gate that is 0 or 1, according to its sign. gelu multiplies it by the probability that
    a standard normal number is smaller than x: a gate that changes smoothly from 0 to 1.

    Shapes: x, y of any shape.
    Saves: x, Φ(x) (for tanh: tanh u).
    Raises: ValueError if ``approximate`` is neither "none" nor "tanh", RuntimeError for integers.
    Source: Hendrycks, Gimpel 2016, "Gaussian Error Linear Units"; equals torch.nn.functional.gelu.
    """
    require_floating("gelu", x)
    if approximate == "none":
        cdf = gaussian_cdf(x)
        return x * cdf, GeluSaved(x, cdf, approximate)
    if approximate == "tanh":
        near = _near_0(x)
        t = array_module(x).tanh(_C * (near + _K * near * near * near))
        return 0.5 * x * (1 + t), GeluSaved(x, t, approximate)
    raise ValueError(f"gelu: approximate is 'none' or 'tanh', got {approximate!r}.")


def gelu_backward(dy: Array, saved: GeluSaved) -> Array:
    """The product rule; for tanh, the chain rule inside it.

    y = x Φ(x), and the derivative of Φ is the bell curve φ(x) = exp(-x²/2)/√(2π):
        dy/dx = Φ(x) + x φ(x)

    y = ½ x (1 + t) with t = tanh u:  dt/dx = (1 - t²) · du/dx,  du/dx = √(2/π) (1 + 3 · 0.044715 x²):
        dy/dx = ½ (1 + t) + ½ x (1 - t²) · √(2/π) (1 + 3 · 0.044715 x²)

    In words: the first term is the gate itself, as in relu. The second is there because x also changes
    the gate. It gives a slightly negative unit a gradient, so that it can still learn. For large |x| it vanishes, and the
    derivative is 0 or 1 as in relu. Its maximum is 1.13, at x = √2.

    Shapes: dy, dx as x.
    """
    x, gate = saved.x, saved.gate
    if saved.approximate == "none":
        return dy * (gate + x * gaussian_pdf(x))
    near = _near_0(x)
    du = _C * (1 + 3 * _K * near * near)
    return dy * 0.5 * (1 + gate + x * (1 - gate * gate) * du)


gelu = Op(gelu_forward, gelu_backward, in_float32=True)


def _near_0(x: Array) -> Array:
    """x limited to ±100. Beyond that the gate is exactly 0 or 1, and powers of x could overflow."""
    return array_module(x).clip(x, -100, 100)


def _logistic(x: Array) -> Array:
    """1 / (1 + exp(-x)), with exp of negative numbers only: exp(1000) would overflow."""
    xp = array_module(x)
    z = xp.exp(-abs(x))
    return xp.where(x < 0, z, 1) / (1 + z)
