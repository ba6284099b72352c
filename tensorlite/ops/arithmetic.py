"""Arithmetic: + - · / and powers, and what broadcasting does to a gradient.

Each of these acts on single numbers, so a derivative is taken as at school. What is new is that operands
may differ in shape: an operand that was repeated to fit is used many times, and its gradient is the sum
over the places where it was used (`unbroadcast`). An operand may also be a Python number. It is a
constant, gets no gradient, and whatever only its gradient would read is not kept.
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
    """∂y/∂x = ∂y/∂other = 1: a sum hands its gradient on, unchanged, to both."""
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
    """∂y/∂x = 1, ∂y/∂other = -1. The sum over repeats comes before the sign: there is less left to negate."""
    x_shape, other_shape = saved
    dx = None if x_shape is None else unbroadcast(dy, x_shape)
    dother = None if other_shape is None else -unbroadcast(dy, other_shape)
    return dx, dother


sub = Op(sub_forward, sub_backward)


def mul_forward(x: Array, other: Any) -> tuple[Array, Any]:
    """y = x · other

    Shapes, Raises: as add.
    Saves: each operand if the other one is an array, for it is the other's derivative; the two shapes.
    Source: equals torch.mul.
    """
    a, b = promote_operands("mul", x, other)
    x_shape, other_shape = shape_of(x), shape_of(other)
    return a * b, (None if other_shape is None else a, None if x_shape is None else b, x_shape, other_shape)


def mul_backward(dy: Array, saved: Any, needs_grad: tuple[bool, ...] = (True, True)) -> tuple[Array | None, Array | None]:
    """∂y/∂x = other, ∂y/∂other = x.

    In words: a factor is felt in proportion to the other one. With two arrays of the same size each
    product costs as much as the forward, so one that nobody asked for is left out.
    """
    a, b, x_shape, other_shape = saved
    dx = unbroadcast(dy * b, x_shape) if needs_grad[0] and x_shape is not None else None
    dother = unbroadcast(dy * a, other_shape) if needs_grad[1] and other_shape is not None else None
    return dx, dother


mul = Op(mul_forward, mul_backward)


def div_forward(x: Array, other: Any, rounding_mode: str | None = None) -> tuple[Array, Any]:
    """y = x / other, rounded towards 0 (``rounding_mode="trunc"``), down (``"floor"``), or not at all (None)

    Unrounded, the quotient of integers is float32; rounded, it is an integer.

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

    The second in the form -y/other needs no square, which could overflow where y itself does not.
    A rounded quotient is a staircase: flat wherever it has a derivative at all, so both gradients are 0.
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
    """y = x ** exponent; either may be a number. A negative x has a power only for whole exponents, else y is nan.

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

    Two places want care, and there the gradient is 0 whatever dy is.
    x⁰ is the constant 1, so its derivative is 0 also where x = 0 and x^(-1) is infinite (which is why x⁰ is written in its place).
    As a function of the exponent, 0^e is 0 for every e > 0: flat, though log 0 is -∞. At e = 0 it jumps
    to 1, and we take 0 there too, as torch does.
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
    """a / b rounded towards 0. Integers never pass through floating point, which has no room for all of them."""
    xp = array_module(a if hasattr(a, "dtype") else b)
    if is_floating(xp.result_type(a, b)):
        return xp.trunc(a / b)
    return xp.sign(a) * xp.sign(b) * (abs(a) // abs(b))


def _power(x: Any, exponent: Any) -> Array:
    """x ** exponent. The square is a product to NumPy, but the cube a call of pow() an element: many times slower."""
    return x * x * x if shape_of(exponent) is None and exponent == 3 else x**exponent
