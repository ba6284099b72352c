"""Arithmetic: + - · / and powers, and what broadcasting does to a gradient.

Each of these acts on single numbers, so the derivatives are those of school. Only the shapes are new. An operand that
broadcasting repeats is used many times, and its gradient is the sum over all these uses (`unbroadcast`). An operand may
also be a Python number. It is a constant without a gradient, and what only its gradient would need is not kept.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import promote_operands, shape_of, to_floating, unbroadcast
from tensorlite.ops.masking import apply_mask
from tensorlite.tensor import is_floating


def add_forward(x: Array, other: Any) -> tuple[Array, Any]:
    """y = x + other

    Shapes: any two that broadcast; y has the common shape.
    Saves: the two shapes.
    Raises: ValueError if they do not broadcast.
    Source: equals torch.add.
    """
    a, b = promote_operands("add", x, other)
    return a + b, (shape_of(x), shape_of(other))


def add_backward(dy: Array, saved: Any) -> tuple[Array | None, Array | None]:
    """∂y/∂x = ∂y/∂other = 1: both operands get dy unchanged."""
    x_shape, other_shape = saved
    dx = None if x_shape is None else unbroadcast(dy, x_shape)
    dother = None if other_shape is None else unbroadcast(dy, other_shape)
    return dx, dother


add = Op(add_forward, add_backward)


def sub_forward(x: Array, other: Any) -> tuple[Array, Any]:
    """y = x - other

    Shapes, Saves, Raises: as add.
    Source: equals torch.sub.
    """
    a, b = promote_operands("sub", x, other)
    return a - b, (shape_of(x), shape_of(other))


def sub_backward(dy: Array, saved: Any) -> tuple[Array | None, Array | None]:
    """∂y/∂x = 1, ∂y/∂other = -1. The sum over repeats comes first, so that fewer numbers are negated."""
    x_shape, other_shape = saved
    dx = None if x_shape is None else unbroadcast(dy, x_shape)
    dother = None if other_shape is None else -unbroadcast(dy, other_shape)
    return dx, dother


sub = Op(sub_forward, sub_backward)


def mul_forward(x: Array, other: Any) -> tuple[Array, Any]:
    """y = x · other

    Shapes, Raises: as add.
    Saves: each operand if the other one is an array, because it is the derivative with respect to the other; the two shapes.
    Source: equals torch.mul.
    """
    a, b = promote_operands("mul", x, other)
    x_shape, other_shape = shape_of(x), shape_of(other)
    return a * b, (None if other_shape is None else a, None if x_shape is None else b, x_shape, other_shape)


def mul_backward(dy: Array, saved: Any, needs_grad: tuple[bool, ...] = (True, True)) -> tuple[Array | None, Array | None]:
    """∂y/∂x = other, ∂y/∂other = x.

    In words: the effect of a factor is proportional to the other factor. Each of the two products costs as much as the forward,
    so one that is not needed is not computed.
    """
    a, b, x_shape, other_shape = saved
    dx = unbroadcast(dy * b, x_shape) if needs_grad[0] and x_shape is not None else None
    dother = unbroadcast(dy * a, other_shape) if needs_grad[1] and other_shape is not None else None
    return dx, dother


mul = Op(mul_forward, mul_backward)


def div_forward(x: Array, other: Any, rounding_mode: str | None = None) -> tuple[Array, Any]:
    """y = x / other, rounded towards 0 (``rounding_mode="trunc"``), down (``"floor"``), or not rounded (None)

    The quotient of integers is float32; if it is rounded, it is an integer.

    Shapes: as add.
    Saves: other; y if other is an array; the two shapes.
    Raises: ValueError if the shapes do not broadcast, or for another rounding_mode.
    Source: equals torch.div.
    """
    a, b = promote_operands("div", x, other)
    x_shape, other_shape = shape_of(x), shape_of(other)
    if rounding_mode is None:
        a, b = to_floating(a), to_floating(b)
        y = a / b
        return y, (b, None if other_shape is None else y, x_shape, other_shape)
    if rounding_mode == "floor":
        return a // b, (None, None, x_shape, other_shape)
    if rounding_mode == "trunc":
        return _truncated(a, b), (None, None, x_shape, other_shape)
    raise ValueError(f"div: rounding_mode is None, 'trunc' or 'floor', got {rounding_mode!r}.")


def div_backward(dy: Array, saved: Any, needs_grad: tuple[bool, ...] = (True, True)) -> tuple[Array | None, Array | None]:
    """∂y/∂x = 1/other,   ∂y/∂other = -x/other² = -y/other.

    The form -y/other of the second needs no square, which could overflow where y itself does not.
    A rounded quotient is a step function. Its derivative is 0 wherever it exists, so both gradients are 0.
    """
    b, y, x_shape, other_shape = saved
    if b is None:
        dx, dother = (None if shape is None else array_module(dy).zeros(shape, dy.dtype) for shape in (x_shape, other_shape))
        return dx, dother
    quotient = dy / b
    dx = unbroadcast(quotient, x_shape) if needs_grad[0] and x_shape is not None else None
    dother = unbroadcast(-quotient * y, other_shape) if needs_grad[1] and other_shape is not None else None
    return dx, dother


div = Op(div_forward, div_backward)


def neg_forward(x: Array) -> tuple[Array, Any]:
    """y = -x"""
    return -x, None


def neg_backward(dy: Array, saved: Any) -> Array:
    """dx = -dy"""
    return -dy


neg = Op(neg_forward, neg_backward)


def pow_forward(x: Any, exponent: Any) -> tuple[Array, Any]:
    """y = x ** exponent; either may be a number. For a negative x and an exponent that is not an integer, y is nan.

    Shapes: as add. 0 ** 0 is 1.
    Saves: x, exponent; y if the exponent is an array; the two shapes.
    Raises: ValueError if the shapes do not broadcast, or for a negative power of an integer array.
    Source: equals torch.pow.
    """
    a, b = promote_operands("pow", x, exponent)
    x_shape, exponent_shape = shape_of(x), shape_of(exponent)
    y = _power(a, b)
    return y, (a, b, None if exponent_shape is None else y, x_shape, exponent_shape)


def pow_backward(dy: Array, saved: Any, needs_grad: tuple[bool, ...] = (True, True)) -> tuple[Array | None, Array | None]:
    """∂y/∂x = exponent · x^(exponent - 1),   ∂y/∂exponent = log(x) · y   (from y = exp(exponent · log x))

    Two cases need care. In both the gradient is 0, whatever dy is.
    - x⁰ is the constant 1. Its derivative is 0 also at x = 0, where x^(-1) is infinite; so x⁰ is used there instead.
    - As a function of the exponent, 0^e is 0 for every e > 0. It is constant, although log 0 is -∞. At e = 0 it jumps
      to 1; the gradient there is taken as 0, too, as in torch.
    """
    x, exponent, y, x_shape, exponent_shape = saved
    xp = array_module(dy)
    dx = dexponent = None
    if needs_grad[0] and x_shape is not None:
        if exponent_shape is not None:
            varies = exponent != 0
            dx = apply_mask(dy, varies) * (exponent * _power(x, exponent - varies))
        elif exponent == 0:
            dx = xp.zeros_like(dy)
        else:
            dx = dy * (exponent * _power(x, exponent - 1))
        dx = unbroadcast(dx, x_shape)
    if needs_grad[1] and exponent_shape is not None:
        x = xp.asarray(x, dtype=y.dtype)  # a number as base, say 2 ** x
        bends = (x != 0) | (exponent < 0)
        dexponent = unbroadcast(apply_mask(dy * y, bends) * xp.log(xp.where(bends, x, 1)), exponent_shape)
    return dx, dexponent


pow = Op(pow_forward, pow_backward)


def _truncated(a: Any, b: Any) -> Array:
    """a / b rounded towards 0. Integers stay integers, because floating point cannot represent all of them."""
    xp = array_module(a if hasattr(a, "dtype") else b)
    if is_floating(xp.result_type(a, b)):
        return xp.trunc(a / b)
    return xp.sign(a) * xp.sign(b) * (abs(a) // abs(b))


def _power(x: Any, exponent: Any) -> Array:
    """x ** exponent. NumPy computes a square as a product, but a cube by pow() for each element, which is many times slower."""
    return x * x * x if shape_of(exponent) is None and exponent == 3 else x**exponent
