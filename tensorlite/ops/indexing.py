"""Indexing: reading elements, and selecting them by a mask.

To read is to multiply by a matrix of zeros and ones: one row for each element read, with a single 1 at its
position. The gradient multiplies by the transpose. Each element of dy goes to the position from which its value
was read, and positions that were not read get 0.

A position that was read twice needs care. Its value was used twice, so its gradient is the sum of two.
``dx[index] += dy`` does *not* compute that sum. NumPy and CuPy read ``dx[index]`` once, add, and write back; for
a repeated index the last write stays and the earlier ones are lost, without an error. ``add.at`` performs one
addition for each entry of the index, repeats included. Slices and masks cannot name a position twice, so a plain
assignment is right for them, and faster.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.index import resolve_index
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axis
from tensorlite.ops.broadcasting import broadcast_shape, result_dtype, unbroadcast
from tensorlite.ops.masking import apply_mask
from tensorlite.ops.summation import accumulation_dtype, sum_of
from tensorlite.tensor import Tensor

# --- reading --------------------------------------------------------------------------------------------


def getitem_forward(x: Array, *index: Any) -> tuple[Array, Any]:
    """y = x[index], in two steps: integers, slices and None give a view; then index arrays and masks give a copy.

    The two steps give torch's result for ``x[0, :, [1, 2]]``, where the 0 removes its axis first. (NumPy treats
    the 0 as an index array, and moves the axis of the index arrays to the front.)

    Saves: the shape of x, and the index of each step.
    Raises: IndexError if an index is out of range, or a mask does not fit.
    Source: equals torch.Tensor.__getitem__; negative steps are NumPy's, torch has none.
    """
    basic, advanced, repeats = resolve_index(x, index)
    y = x[basic]
    if advanced is not None:
        y = y[advanced]
    return y, (x.shape, basic, advanced, repeats)


def getitem_backward(dy: Array, saved: Any) -> Array:
    """dy goes back to the positions that were read. The top of this page says why repeats need ``add.at``."""
    shape, basic, advanced, repeats = saved
    xp = array_module(dy)
    dx = xp.zeros(shape, accumulation_dtype(dy.dtype))
    seen = dx[basic]  # a view: what is written here is written to dx
    if advanced is None:
        seen[...] = dy
    elif not repeats:
        seen[advanced] = dy
    else:
        xp.add.at(seen, advanced, dy)
    return dx.astype(dy.dtype, copy=False)


_getitem = Op(getitem_forward, getitem_backward)


def getitem(x: Tensor, index: Any) -> Tensor:
    """``x[index]``. The parts of the index are arguments of the op, so that the tape records tensors among them."""
    return _getitem(x, *(index if isinstance(index, tuple) else (index,)))


def select(x: Tensor, dim: int, index: int) -> Tensor:
    """Position ``index`` of axis ``dim``, without that axis; a view."""
    d = normalize_axis("select", dim, x.ndim)
    return _getitem(x, *(slice(None),) * d, int(index))


def narrow(x: Tensor, dim: int, start: int, length: int) -> Tensor:
    """``length`` positions of axis ``dim`` from ``start`` on; a view.

    Raises: IndexError if that reaches outside the axis.
    """
    d = normalize_axis("narrow", dim, x.ndim)
    n = x.size(d)
    first = start + n if start < 0 else start
    if length < 0 or not 0 <= first <= n - length:
        raise IndexError(f"narrow: {length} positions from {start} do not lie within axis {d} of {x.shape}.")
    return _getitem(x, *(slice(None),) * d, slice(first, first + length))


def index_select_forward(x: Array, dim: int, index: Array) -> tuple[Array, Any]:
    """The slices ``index`` of axis ``dim``, in that order; repeats are allowed.

    Shapes: x (..., n, ...); index (k,) of integers from 0 to n - 1; y (..., k, ...). A 0-d x has one position, and y is 0-d.
    Raises: IndexError if an index is out of range; ValueError if ``index`` is not one-dimensional, or x is 0-d and k is not 1.
    Source: equals torch.index_select.
    """
    d = normalize_axis("index_select", dim, x.ndim)
    _check_dtype("index_select", "index", index, "integers", "iu")
    if index.ndim > 1:
        raise ValueError(f"index_select: index must have one axis, its shape is {index.shape}.")
    _check_range("index_select", index, d, x.shape)
    places = index.reshape(-1)
    if x.ndim == 0 and places.size != 1:
        raise ValueError(f"index_select: a 0-dimensional tensor has one position, index names {places.size}.")
    y = array_module(x).take(_line(x), places, axis=d)
    return y if x.ndim else y.reshape(()), (x.shape, d, places)


def index_select_backward(dy: Array, saved: Any) -> Array:
    """Slice k of dy is *added* to slice index[k] of dx: a slice that was selected twice has two gradients."""
    shape, d, places = saved
    xp = array_module(dy)
    dx = xp.zeros(shape, accumulation_dtype(dy.dtype))
    xp.add.at(_line(dx), (*(slice(None),) * d, places), dy)
    return dx.astype(dy.dtype, copy=False)


index_select = Op(index_select_forward, index_select_backward)


def gather_forward(x: Array, dim: int, index: Array) -> tuple[Array, Any]:
    """y has the shape of ``index``, which holds the positions to read along axis ``dim``. With dim = 1 of 3:

        y[i, j, k] = x[i, index[i, j, k], k]

    Shapes: index, y: as many axes as x, none longer than in x except ``dim``. A 0-d array is treated as having one axis. An empty
        index may have any shape.
    Raises: IndexError if an index is out of range; ValueError if the shapes do not fit.
    Source: equals torch.gather.
    """
    d = normalize_axis("gather", dim, x.ndim)
    _check_dtype("gather", "index", index, "integers", "iu")
    xp = array_module(x)
    if index.size == 0:
        return xp.zeros(index.shape, x.dtype), (x.shape, None)
    line, look = _line(x), _line(index)
    longer = [i for i in range(min(line.ndim, look.ndim)) if i != d and look.shape[i] > line.shape[i]]
    if look.ndim != line.ndim or longer:
        raise ValueError(f"gather: the index {index.shape} must have the axes of {x.shape}, none longer except dim {d}.")
    _check_range("gather", index, d, x.shape)
    # For each axis, where to read: its own position (0, 1, 2, ... along that axis, broadcast along the others).
    places = [xp.arange(n).reshape((-1,) + (1,) * (line.ndim - 1 - i)) for i, n in enumerate(look.shape)]
    places[d] = look
    return line[tuple(places)].reshape(index.shape), (x.shape, tuple(places))


def gather_backward(dy: Array, saved: Any) -> Array:
    """dx[i, index[i, j, k], k] is the sum of dy[i, j, k] over every j that read this position."""
    shape, places = saved
    xp = array_module(dy)
    dx = xp.zeros(shape, accumulation_dtype(dy.dtype))
    if places is not None:
        xp.add.at(_line(dx), places, dy)
    return dx.astype(dy.dtype, copy=False)


gather = Op(gather_forward, gather_backward)


# --- selecting by a mask --------------------------------------------------------------------------------


def tril_forward(x: Array, diagonal: int = 0) -> tuple[Array, Any]:
    """Keep what lies on or below a diagonal of the last two axes (0 the main one, positive above it), zero the rest."""
    _check_matrix("tril", x)
    return array_module(x).tril(x, diagonal), diagonal


def tril_backward(dy: Array, saved: Any) -> Array:
    """An element that was kept gets dy, one that was set to zero gets 0."""
    return array_module(dy).tril(dy, saved)


def triu_forward(x: Array, diagonal: int = 0) -> tuple[Array, Any]:
    """Keep what lies on or above a diagonal of the last two axes, zero the rest."""
    _check_matrix("triu", x)
    return array_module(x).triu(x, diagonal), diagonal


def triu_backward(dy: Array, saved: Any) -> Array:
    """As for `tril`, on the other side."""
    return array_module(dy).triu(dy, saved)


tril = Op(tril_forward, tril_backward)
triu = Op(triu_forward, triu_backward)


def masked_fill_forward(x: Array, mask: Array, value: Any) -> tuple[Array, Any]:
    """y = value where mask, else x; in the dtype of x.

    Shapes: mask broadcasts with x; value is a number or 0-d.
    Raises: ValueError if the shapes do not broadcast; TypeError if mask is not boolean or value does not fit the dtype.
    Source: equals torch.masked_fill.
    """
    _check_dtype("masked_fill", "mask", mask, "booleans", "b")
    broadcast_shape("masked_fill", x.shape, mask.shape)
    if getattr(value, "ndim", 0) != 0:
        raise ValueError(f"masked_fill: value must be a number or a 0-d tensor, its shape is {value.shape}; use where().")
    if result_dtype(x, value).kind != x.dtype.kind:
        raise TypeError(f"masked_fill: the value {value} does not fit a tensor of {x.dtype}.")
    xp = array_module(x)
    return xp.where(mask, xp.asarray(value, x.dtype), x), (mask, x.shape)


def masked_fill_backward(dy: Array, saved: Any) -> tuple[Array, None, Array]:
    """dx is 0 where x was replaced, and dy elsewhere. The value is used at all masked positions: its gradient is the sum of dy there."""
    mask, shape = saved
    return unbroadcast(apply_mask(dy, ~mask), shape), None, sum_of(apply_mask(dy, mask))


masked_fill = Op(masked_fill_forward, masked_fill_backward)


def where_forward(condition: Array, x: Any, y: Any) -> tuple[Array, Any]:
    """out = x where condition, else y.

    Shapes: all three broadcast together; x and y may be numbers, and are promoted as in arithmetic.
    Raises: ValueError if the shapes do not broadcast; TypeError if condition is not boolean.
    Source: equals torch.where.
    """
    _check_dtype("where", "condition", condition, "booleans", "b")
    xp, dtype = array_module(condition), result_dtype(x, y)
    x, y = xp.asarray(x, dtype), xp.asarray(y, dtype)
    broadcast_shape("where", condition.shape, x.shape, y.shape)
    return xp.where(condition, x, y), (condition, x.shape, y.shape)


def where_backward(dy: Array, saved: Any) -> tuple[None, Array, Array]:
    """dy goes to the operand that was selected. The condition is a bool, so it has no gradient."""
    condition, x_shape, y_shape = saved
    return None, unbroadcast(apply_mask(dy, condition), x_shape), unbroadcast(apply_mask(dy, ~condition), y_shape)


where = Op(where_forward, where_backward)


# --- helpers --------------------------------------------------------------------------------------------


def _line(x: Array) -> Array:
    """x itself, or a 0-d x as an array of shape (1,)."""
    return x if x.ndim else x.reshape(1)


def _check_range(op: str, index: Array, d: int, shape: tuple[int, ...]) -> None:
    """Refuse indices that NumPy would count from the end, and that CuPy would wrap around without an error."""
    n = shape[d] if shape else 1
    if index.size and (index.min() < 0 or index.max() >= n):
        raise IndexError(f"{op}: indices from {index.min()} to {index.max()} are out of range for axis {d} of {shape}: 0 to {n - 1}.")


def _check_matrix(op: str, x: Array) -> None:
    if x.ndim < 2:
        raise ValueError(f"{op}: a tensor of shape {x.shape} is not a matrix, nor a batch of them.")


def _check_dtype(op: str, name: str, x: Any, wanted: str, kinds: str) -> None:
    if not hasattr(x, "dtype") or x.dtype.kind not in kinds:
        raise TypeError(f"{op}: {name} must be a tensor of {wanted}, got {x.dtype if hasattr(x, 'dtype') else type(x).__name__}.")
