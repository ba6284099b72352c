"""Sorting: the same numbers in another order, which depends on the numbers.

A small change of x leaves the order as it is. So to the gradient sorting is a fixed permutation, and topk the first few numbers of one:
each number's gradient goes back to the place that the number came from.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.axes import normalize_axis
from tensorlite.ops.extremum import ValuesAndIndices
from tensorlite.ops.places import places_along
from tensorlite.tensor import Tensor, unwrap


def sorted_forward(x: Array, dim: int = -1, descending: bool = False) -> tuple[tuple[Array, Array], Any]:
    """values = x in order along the axis ``dim``, indices = where each was; equals keep their order, and nan counts as the largest

    Shapes: x, values, indices (int64) alike.
    Saves: the indices, the shape of x, the axis.
    Raises: IndexError if the axis does not exist.
    Source: equals torch.sort, stable.
    """
    return _first("sort", x, None, dim, descending)


def sorted_backward(dy: tuple[Array, Array], saved: Any) -> Array:
    """values[i] = x[indices[i]], so dx[indices[i]] = dy[i]. An index names no place twice, so nothing is to be added."""
    indices, shape, along = saved
    xp = array_module(dy[0])
    dx = xp.zeros(shape or (1,), dy[0].dtype)
    dx[places_along(indices, along)] = dy[0].reshape(indices.shape)
    return dx.reshape(shape)


sort_op = Op(sorted_forward, sorted_backward, "sort")


def topk_forward(x: Array, k: int, dim: int = -1, largest: bool = True) -> tuple[tuple[Array, Array], Any]:
    """values = the k largest (or smallest) x along the axis ``dim``, the largest (smallest) first, indices = where they are

    Shapes: values and indices (int64) as x, but of length k along ``dim``.
    Saves: the indices, the shape of x, the axis.
    Raises: IndexError if the axis does not exist; ValueError if it is shorter than k.
    Source: equals torch.topk.
    """
    return _first("topk", x, k, dim, largest)


def topk_backward(dy: tuple[Array, Array], saved: Any) -> Array:
    """As sorted: what was not among the k has no influence, and gets 0."""
    return sorted_backward(dy, saved)


topk_op = Op(topk_forward, topk_backward, "topk")


def sort(x: Tensor, dim: int = -1, descending: bool = False, stable: bool = False) -> ValuesAndIndices:
    """(values, indices); see `sorted_forward`. It is always stable."""
    return ValuesAndIndices(*sort_op(x, dim, descending))


def topk(x: Tensor, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> ValuesAndIndices:
    """(values, indices); see `topk_forward`. They are always sorted."""
    return ValuesAndIndices(*topk_op(x, k, dim, largest))


def argsort(x: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The indices alone. Off the tape."""
    return Tensor(_first("argsort", unwrap(x), None, dim, descending)[0][1])


def _first(op: str, x: Array, k: int | None, dim: int, descending: bool) -> tuple[tuple[Array, Array], Any]:
    """The first k (None: all) along the axis, in order."""
    along = normalize_axis(op, dim, x.ndim)
    xp = array_module(x)
    line = x if x.ndim else x.reshape(1)
    n = line.shape[along]
    if k is not None and not 0 <= k <= n:
        raise ValueError(f"{op}: k={k} is not between 0 and {n}, the length of axis {along} of {x.shape}.")
    if descending:  # in the order of the numbers read backwards, equals stand backwards, too
        indices = n - 1 - xp.flip(xp.argsort(xp.flip(line, along), axis=along, kind="stable"), along)
    else:
        indices = xp.argsort(line, axis=along, kind="stable")
    indices = indices[(*(slice(None),) * along, slice(k))].astype("int64", copy=False)
    values = line[places_along(indices, along)]
    shape = values.shape if x.ndim else ()
    return (values.reshape(shape), indices.reshape(shape)), (indices, x.shape, along)
