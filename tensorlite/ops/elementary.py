"""Elementary functions: one number in, one number out.

Every output depends on one input only, so backward is dx = dy · f'(x), element by element. Forward keeps the
output where f' is a simple expression in it (exp, sqrt), and the input otherwise. Integers are converted to
float32 first, except in abs and square, whose results are integers.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import to_floating


def abs_forward(x: Array) -> tuple[Array, Any]:
    """y = |x|

    Saves: x.
    Source: equals torch.abs, but for the gradient where x is nan: nan here, 0 in torch.
    """
    return array_module(x).abs(x), x


def abs_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · sign(x). At the kink, x = 0, sign is 0: the mean of the slopes -1 and 1."""
    x = saved
    return dy * array_module(x).sign(x)


abs = Op(abs_forward, abs_backward)


def exp_forward(x: Array) -> tuple[Array, Any]:
    """y = eˣ

    Saves: y.
    """
    y = array_module(x).exp(to_floating(x))
    return y, y


def exp_backward(dy: Array, saved: Any) -> Array:
    """exp is its own derivative: dx = dy · y."""
    y = saved
    return dy * y


exp = Op(exp_forward, exp_backward)


def log_forward(x: Array) -> tuple[Array, Any]:
    """y = ln x

    Saves: x.
    """
    x = to_floating(x)
    return array_module(x).log(x), x


def log_backward(dy: Array, saved: Any) -> Array:
    """dx = dy / x"""
    x = saved
    return dy / x


log = Op(log_forward, log_backward)


def sqrt_forward(x: Array) -> tuple[Array, Any]:
    """y = √x

    Saves: y.
    """
    y = array_module(x).sqrt(to_floating(x))
    return y, y


def sqrt_backward(dy: Array, saved: Any) -> Array:
    """y² = x, so 2y ∂y/∂x = 1 and dx = dy / 2y. At x = 0 the slope is infinite, and so is the gradient."""
    y = saved
    return dy / (2 * y)


sqrt = Op(sqrt_forward, sqrt_backward)


def rsqrt_forward(x: Array) -> tuple[Array, Any]:
    """y = 1/√x

    Saves: y.
    """
    y = 1 / array_module(x).sqrt(to_floating(x))
    return y, y


def rsqrt_backward(dy: Array, saved: Any) -> Array:
    """dy/dx = -½ x^(-3/2) = -½ y³"""
    y = saved
    return dy * (-0.5 * y * y * y)


rsqrt = Op(rsqrt_forward, rsqrt_backward)


def square_forward(x: Array) -> tuple[Array, Any]:
    """y = x². Bools become int64, as in torch."""
    x = x.astype("int64") if x.dtype.kind == "b" else x
    return x * x, x


def square_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · 2x"""
    x = saved
    return dy * (2 * x)


square = Op(square_forward, square_backward)


def reciprocal_forward(x: Array) -> tuple[Array, Any]:
    """y = 1/x

    Saves: y.
    """
    y = 1 / to_floating(x)
    return y, y


def reciprocal_backward(dy: Array, saved: Any) -> Array:
    """dy/dx = -1/x² = -y²"""
    y = saved
    return -dy * (y * y)


reciprocal = Op(reciprocal_forward, reciprocal_backward)


def sin_forward(x: Array) -> tuple[Array, Any]:
    """y = sin x"""
    x = to_floating(x)
    return array_module(x).sin(x), x


def sin_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · cos x"""
    x = saved
    return dy * array_module(x).cos(x)


sin = Op(sin_forward, sin_backward)


def cos_forward(x: Array) -> tuple[Array, Any]:
    """y = cos x"""
    x = to_floating(x)
    return array_module(x).cos(x), x


def cos_backward(dy: Array, saved: Any) -> Array:
    """dx = -dy · sin x"""
    x = saved
    return -dy * array_module(x).sin(x)


cos = Op(cos_forward, cos_backward)
