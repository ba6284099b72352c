"""The largest and the smallest element, and where it is.

These reductions select one element, so dy goes to that element. At a tie there are two conventions, and torch
has both. amax, amin, and max and min over all elements divide dy equally among the tied elements. max and min along
an axis also return an index, and give dy to the element at that index.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axes, normalize_axis
from tensorlite.ops.comparison import maximum, minimum
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import sum_of
from tensorlite.tensor import Tensor, unwrap


class ValuesAndIndices(NamedTuple):
    """What ``max(x, dim)`` and ``min(x, dim)`` return."""

    values: Tensor
    indices: Tensor


def amax_forward(x: Array, dim: Any = None, keepdim: bool = False) -> tuple[Array, Any]:
    """y = the largest x along the axes ``dim``: None for all, a number, or several

    Shapes: x any; y without the axes ``dim``, or with length 1 there if ``keepdim``.
    Saves: x, y, the axes.
    Raises: IndexError if an axis does not exist or has length 0; ValueError if one is named twice.
    Source: equals torch.amax.
    """
    over = _filled_axes("amax", x, dim)
    y = x.max(axis=over, keepdims=True)
    return y if keepdim else y.squeeze(over), (x, y, over)


def amax_backward(dy: Array, saved: Any) -> Array:
    """dx = dy / (number of equals) for each x that equals the largest, else 0.

    If k inputs are equal and all of them rise by ε, the largest rises by ε once, not k times; so the shares sum to dy.
    Where y is nan, it is nan because of inputs that are nan, and they get the gradient.
    """
    x, y, over = saved
    chosen = (x == y) | (x != x)  # x != x is true for nan only
    return apply_mask(dy.reshape(y.shape) / sum_of(chosen, over, keepdims=True).astype(dy.dtype), chosen)


amax = Op(amax_forward, amax_backward)


def amin_forward(x: Array, dim: Any = None, keepdim: bool = False) -> tuple[Array, Any]:
    """y = the smallest x along the axes ``dim``

    Shapes, Saves, Raises: as amax.
    Source: equals torch.amin.
    """
    over = _filled_axes("amin", x, dim)
    y = x.min(axis=over, keepdims=True)
    return y if keepdim else y.squeeze(over), (x, y, over)


def amin_backward(dy: Array, saved: Any) -> Array:
    """As amax."""
    return amax_backward(dy, saved)


amin = Op(amin_forward, amin_backward)


def max_along_forward(x: Array, dim: int, keepdim: bool = False) -> tuple[tuple[Array, Array], Any]:
    """values = the largest x along the axis ``dim``, indices = where: the first, if there are several

    Shapes: x any; values and indices (int64) without the axis ``dim``, or with length 1 there if ``keepdim``.
    Saves: the indices, the shape of x, the axis.
    Raises: IndexError if the axis does not exist or has length 0.
    Source: equals torch.max with dim.
    """
    return _choose("max", x, array_module(x).argmax, dim, keepdim)


def max_along_backward(dy: tuple[Array, Array], saved: Any) -> Array:
    """The value was read at the index, so its gradient goes to that position. An index has no gradient."""
    indices, shape, along = saved
    xp = array_module(indices)
    places = xp.arange(shape[along] if shape else 1).reshape([-1 if i == along else 1 for i in range(len(shape))])
    return apply_mask(dy[0].reshape(indices.shape), places == indices)


max_along = Op(max_along_forward, max_along_backward)


def min_along_forward(x: Array, dim: int, keepdim: bool = False) -> tuple[tuple[Array, Array], Any]:
    """values = the smallest x along the axis ``dim``, indices = where: the first, if there are several

    Shapes, Saves, Raises: as max_along.
    Source: equals torch.min with dim.
    """
    return _choose("min", x, array_module(x).argmin, dim, keepdim)


def min_along_backward(dy: tuple[Array, Array], saved: Any) -> Array:
    """As max_along."""
    return max_along_backward(dy, saved)


min_along = Op(min_along_forward, min_along_backward)


def max(x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """``max(x)``: the largest of all. ``max(x, dim)``: (values, indices) along an axis. ``max(x, other)``: as maximum."""
    if isinstance(dim, Tensor):
        return maximum(x, dim)
    return amax(x, keepdim=keepdim) if dim is None else ValuesAndIndices(*max_along(x, dim, keepdim))


def min(x: Tensor, dim: Any = None, keepdim: bool = False) -> Any:
    """``min(x)``: the smallest of all. ``min(x, dim)``: (values, indices) along an axis. ``min(x, other)``: as minimum."""
    if isinstance(dim, Tensor):
        return minimum(x, dim)
    return amin(x, keepdim=keepdim) if dim is None else ValuesAndIndices(*min_along(x, dim, keepdim))


def argmax(x: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the largest along an axis, or in the flattened tensor; the first of several. Off the tape."""
    x = unwrap(x)
    return Tensor(_index("argmax", x, array_module(x).argmax, dim, keepdim))


def argmin(x: Any, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """The index of the smallest along an axis, or in the flattened tensor; the first of several. Off the tape."""
    x = unwrap(x)
    return Tensor(_index("argmin", x, array_module(x).argmin, dim, keepdim))


def _filled_axes(op: str, x: Array, dim: Any) -> tuple[int, ...]:
    """The axes, after a check that none of them is empty: no element, no largest one."""
    over = normalize_axes(op, dim, x.ndim)
    for i in over:
        if x.shape[i] == 0:
            raise IndexError(f"{op}: axis {i} of a tensor of shape {x.shape} is empty, so it has no largest or smallest element.")
    return over


def _choose(op: str, x: Array, arg: Any, dim: int, keepdim: bool) -> tuple[tuple[Array, Array], Any]:
    xp = array_module(x)
    along = normalize_axis(op, dim, x.ndim)
    indices = _index(op, x, arg, along, keepdim=True)
    values = xp.take_along_axis(x, indices, along) if x.ndim else x.copy()
    y = (values, indices) if keepdim or not x.ndim else (values.squeeze(along), indices.squeeze(along))
    return y, (indices, x.shape, along)


def _index(op: str, x: Array, arg: Any, dim: int | None, keepdim: bool) -> Array:
    """``arg(x)`` along one axis, or over everything, with the axes kept at length 1 if asked."""
    over = _filled_axes(op, x, dim)
    indices = array_module(x).asarray(arg(x.reshape(-1) if len(over) != 1 else x, axis=over[0] if len(over) == 1 else 0))
    return indices.reshape([1 if i in over else n for i, n in enumerate(x.shape)]) if keepdim else indices
