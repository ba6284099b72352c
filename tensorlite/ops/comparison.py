"""Comparison: maximum, minimum and clamp, which select; and comparisons, whose result is a bool.

An op that selects passes dy to what it selected, and 0 to the rest. At a tie the function has a kink, and any split
of dy is possible. Here, as in torch, maximum and minimum give half to each, and clamp gives all to x.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.broadcasting import promote_operands, shape_of, unbroadcast
from tensorlite.ops.masking import apply_mask
from tensorlite.tensor import Tensor, unwrap


def maximum_forward(x: Array, other: Any) -> tuple[Array, Any]:
    """y = the larger of x and other; nan if one is nan

    Shapes: any two that broadcast.
    Saves: both operands.
    Raises: ValueError if they do not broadcast.
    Source: equals torch.maximum, and also takes a number.
    """
    a, b = promote_operands("maximum", x, other)
    return array_module(x).maximum(a, b), (a, b, shape_of(x), shape_of(other))


def maximum_backward(dy: Array, saved: Any) -> tuple[Array | None, Array | None]:
    """The larger operand gets dy. Equal operands get half each, so that max(x, x) = x has the derivative 1."""
    a, b, x_shape, other_shape = saved
    return _shares(dy, a < b, b < a, a == b, x_shape, other_shape)


maximum = Op(maximum_forward, maximum_backward)


def minimum_forward(x: Array, other: Any) -> tuple[Array, Any]:
    """y = the smaller of x and other; nan if one is nan

    Shapes, Saves, Raises: as maximum.
    Source: equals torch.minimum, and also takes a number.
    """
    a, b = promote_operands("minimum", x, other)
    return array_module(x).minimum(a, b), (a, b, shape_of(x), shape_of(other))


def minimum_backward(dy: Array, saved: Any) -> tuple[Array | None, Array | None]:
    """As maximum, with the opposite order."""
    a, b, x_shape, other_shape = saved
    return _shares(dy, b < a, a < b, a == b, x_shape, other_shape)


minimum = Op(minimum_forward, minimum_backward)


def clamp_forward(x: Array, min: Any = None, max: Any = None) -> tuple[Array, Any]:
    """y = x where min ≤ x ≤ max, and the nearer bound elsewhere; max, where min > max

    Shapes: x, and bounds that are None, numbers, or arrays; all broadcast together.
    Saves: x and the bounds.
    Raises: ValueError if both bounds are None, or if the shapes do not broadcast.
    Source: equals torch.clamp.
    """
    if min is None and max is None:
        raise ValueError("clamp: give min, max or both.")
    xp = array_module(x)
    y = x
    if min is not None:
        y = xp.maximum(*promote_operands("clamp", y, min))
    if max is not None:
        y = xp.minimum(*promote_operands("clamp", y, max))
    return y, (x, min, max)


def clamp_backward(dy: Array, saved: Any) -> tuple[Array, Array | None, Array | None]:
    """x gets dy where it lies within the bounds, the bounds included. A bound gets dy where it replaced x.

    With min > max, y is max for every x, so max gets all of dy.
    """
    x, low, high = saved
    above_low = True if low is None else x >= low
    below_high = True if high is None else x <= high
    dx = unbroadcast(apply_mask(dy, above_low & below_high), x.shape)
    dlow = dhigh = None
    if shape_of(low) is not None:
        chosen = x < low if high is None else (x < low) & (low < high)
        dlow = unbroadcast(apply_mask(dy, chosen), low.shape)
    if shape_of(high) is not None:
        chosen = x > high if low is None else (x > high) | (high < low)
        dhigh = unbroadcast(apply_mask(dy, chosen), high.shape)
    return dx, dlow, dhigh


clamp = Op(clamp_forward, clamp_backward)


# --- Comparisons: their results are bools, which have no gradient. So these are plain functions, not ops. ---


def eq(x: Any, other: Any) -> Tensor:
    """x = other, element by element."""
    a, b = _pair("eq", x, other)
    return Tensor(a == b)


def ne(x: Any, other: Any) -> Tensor:
    """x ≠ other, element by element."""
    a, b = _pair("ne", x, other)
    return Tensor(a != b)


def lt(x: Any, other: Any) -> Tensor:
    """x < other, element by element."""
    a, b = _pair("lt", x, other)
    return Tensor(a < b)


def le(x: Any, other: Any) -> Tensor:
    """x ≤ other, element by element."""
    a, b = _pair("le", x, other)
    return Tensor(a <= b)


def gt(x: Any, other: Any) -> Tensor:
    """x > other, element by element."""
    a, b = _pair("gt", x, other)
    return Tensor(a > b)


def ge(x: Any, other: Any) -> Tensor:
    """x ≥ other, element by element."""
    a, b = _pair("ge", x, other)
    return Tensor(a >= b)


def isnan(x: Any) -> Tensor:
    """Where x is not a number."""
    x = unwrap(x)
    return Tensor(array_module(x).isnan(x))


def isinf(x: Any) -> Tensor:
    """Where x is ∞ or -∞."""
    x = unwrap(x)
    return Tensor(array_module(x).isinf(x))


def isfinite(x: Any) -> Tensor:
    """Where x is neither infinite nor nan."""
    x = unwrap(x)
    return Tensor(array_module(x).isfinite(x))


def logical_not(x: Any) -> Tensor:
    """Where x is 0 or False."""
    x = unwrap(x)
    return Tensor(array_module(x).logical_not(x))


def logical_and(x: Any, other: Any) -> Tensor:
    """Where both are True, or not 0."""
    a, b = _pair("logical_and", x, other)
    return Tensor(array_module(a).logical_and(a, b))


def logical_or(x: Any, other: Any) -> Tensor:
    """Where one or both are True, or not 0."""
    a, b = _pair("logical_or", x, other)
    return Tensor(array_module(a).logical_or(a, b))


def _shares(dy: Array, x_loses: Array, other_loses: Array, tie: Array, x_shape: Any, other_shape: Any) -> tuple[Array | None, Array | None]:
    """dy for the operand that was selected, half of it at a tie, 0 for the other. A number, whose shape is None, has no gradient."""
    share = dy / (1 + tie.astype(dy.dtype))
    dx = None if x_shape is None else unbroadcast(apply_mask(share, ~x_loses), x_shape)
    dother = None if other_shape is None else unbroadcast(apply_mask(share, ~other_loses), other_shape)
    return dx, dother


def _pair(op: str, x: Any, other: Any) -> tuple[Any, Any]:
    return promote_operands(op, unwrap(x), unwrap(other))
