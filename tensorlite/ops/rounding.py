"""Rounding, the sign and the remainder: staircases, and the saw that is left over.

A staircase is flat wherever it has a derivative, so the gradient of all of these is 0, but for the remainder: that is what a staircase
leaves.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import promote_operands, shape_of, unbroadcast
from tensorlite.tensor import is_floating


def floor_forward(x: Array) -> tuple[Array, Any]:
    """y = the largest integer that is not above x; an integer is its own.

    Source: equals torch.floor.
    """
    return _rounded(x, "floor"), None


def floor_backward(dy: Array, saved: Any) -> Array:
    """dx = 0: between two steps y does not move."""
    return array_module(dy).zeros_like(dy)


floor = Op(floor_forward, floor_backward)


def ceil_forward(x: Array) -> tuple[Array, Any]:
    """y = the smallest integer that is not below x

    Source: equals torch.ceil.
    """
    return _rounded(x, "ceil"), None


def ceil_backward(dy: Array, saved: Any) -> Array:
    """dx = 0, as of floor."""
    return floor_backward(dy, saved)


ceil = Op(ceil_forward, ceil_backward)


def trunc_forward(x: Array) -> tuple[Array, Any]:
    """y = x without its fraction: rounded towards 0

    Source: equals torch.trunc.
    """
    return _rounded(x, "trunc"), None


def trunc_backward(dy: Array, saved: Any) -> Array:
    """dx = 0, as of floor."""
    return floor_backward(dy, saved)


trunc = Op(trunc_forward, trunc_backward)


def round_forward(x: Array, decimals: int = 0) -> tuple[Array, Any]:
    """y = the multiple of 10^-decimals that is nearest to x; half way between two, the even one

    Source: equals torch.round.
    """
    if not decimals:
        return _rounded(x, "rint"), None
    xp, scale = array_module(x), 10.0 ** abs(decimals)
    if not is_floating(x.dtype):
        raise RuntimeError(f"round: decimals={decimals} needs a floating point tensor, got {x.dtype}.")
    return xp.rint(x * scale) / scale if decimals > 0 else xp.rint(x / scale) * scale, None


def round_backward(dy: Array, saved: Any) -> Array:
    """dx = 0, as of floor."""
    return floor_backward(dy, saved)


round = Op(round_forward, round_backward)


def sign_forward(x: Array) -> tuple[Array, Any]:
    """y = 1, 0 or -1 as x is above 0, 0, or below; 0 of nan, and of a bool the bool

    Source: equals torch.sign.
    """
    return (x > 0).astype(x.dtype) - (x < 0).astype(x.dtype) if x.dtype.kind != "b" else x.copy(), None


def sign_backward(dy: Array, saved: Any) -> Array:
    """dx = 0, as of floor: sign is a staircase of two steps."""
    return floor_backward(dy, saved)


sign = Op(sign_forward, sign_backward)


def remainder_forward(x: Any, other: Any) -> tuple[Array, Any]:
    """y = x - other · ⌊x / other⌋, which has the sign of other; also ``x % other``

    Shapes: any two that broadcast; one of them may be a number.
    Saves: other and the quotient ⌊x / other⌋ if other is an array; the two shapes.
    Raises: ValueError if they do not broadcast; ZeroDivisionError for an integer by 0.
    Source: equals torch.remainder.
    """
    a, b = promote_operands("remainder", x, other)
    xp = array_module(a if hasattr(a, "dtype") else b)
    if not is_floating(xp.result_type(a, b)) and xp.any(xp.asarray(b) == 0):
        raise ZeroDivisionError("remainder: an integer has no remainder by 0.")
    other_shape = shape_of(other)
    return xp.remainder(a, b), (None if other_shape is None else xp.floor_divide(a, b), shape_of(x), other_shape)


def remainder_backward(dy: Array, saved: Any) -> tuple[Array | None, Array | None]:
    """∂y/∂x = 1,   ∂y/∂other = -⌊x / other⌋

    The quotient is a staircase, a constant to both. What is left of x - other · constant is a straight line.
    """
    quotient, x_shape, other_shape = saved
    dx = None if x_shape is None else unbroadcast(dy, x_shape)
    dother = None if other_shape is None else unbroadcast(-dy * quotient, other_shape)
    return dx, dother


remainder = Op(remainder_forward, remainder_backward)


def _rounded(x: Array, name: str) -> Array:
    return getattr(array_module(x), name)(x) if is_floating(x.dtype) else x.copy()
