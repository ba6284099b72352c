"""Diagonals: out of a matrix, and into one."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops import reduction
from tensorlite.ops.axes import normalize_axis
from tensorlite.tensor import Tensor


def diagonal_forward(x: Array, offset: int = 0, dim1: int = 0, dim2: int = 1) -> tuple[Array, Any]:
    """y = x at the places (i, i + offset) of the axes ``dim1`` and ``dim2``, which become one, the last; a view

    Shapes: x (…, n, m) and y (…, k), for the axes at the end.
    Saves: the shape of x and the places.
    Raises: IndexError if an axis does not exist; ValueError if both are one.
    Source: equals torch.diagonal.
    """
    a, b = normalize_axis("diagonal", dim1, x.ndim), normalize_axis("diagonal", dim2, x.ndim)
    if a == b:
        raise ValueError(f"diagonal: dim1 {dim1} and dim2 {dim2} are the same axis of {x.shape}.")
    return x.diagonal(offset, a, b), (x.shape, offset, a, b)


def diagonal_backward(dy: Array, saved: Any) -> Array:
    """What was read is put back on the diagonal; what is beside it was not read: 0."""
    shape, offset, a, b = saved
    dx = array_module(dy).zeros(shape, dy.dtype)
    _on_diagonal(dx, dy, offset, a, b)
    return dx


diagonal = Op(diagonal_forward, diagonal_backward)


def diag_embed_forward(x: Array, offset: int = 0, dim1: int = -2, dim2: int = -1) -> tuple[Array, Any]:
    """y = 0 but at the places (i, i + offset) of the axes ``dim1`` and ``dim2``, where the last axis of x stands

    Shapes: x (…, k); y (…, n, n) with n = k + |offset|.
    Saves: where the diagonal is.
    Raises: as diagonal.
    Source: equals torch.diag_embed.
    """
    a, b = normalize_axis("diag_embed", dim1, x.ndim + 1), normalize_axis("diag_embed", dim2, x.ndim + 1)
    if a == b:
        raise ValueError(f"diag_embed: dim1 {dim1} and dim2 {dim2} are the same axis.")
    n = x.shape[-1] + abs(offset)
    others = iter(x.shape[:-1])
    y = array_module(x).zeros([n if i in (a, b) else next(others) for i in range(x.ndim + 1)], x.dtype)
    _on_diagonal(y, x, offset, a, b)
    return y, (offset, a, b)


def diag_embed_backward(dy: Array, saved: Any) -> Array:
    """The diagonal of dy: where each number was put."""
    return dy.diagonal(*saved)


diag_embed = Op(diag_embed_forward, diag_embed_backward)


def diag(x: Tensor, diagonal: int = 0) -> Tensor:
    """The matrix with x on its diagonal, for one axis; the diagonal of the matrix x, for two."""
    if x.ndim not in (1, 2):
        raise ValueError(f"diag: a tensor of shape {x.shape} has not one or two axes; diagonal() and diag_embed() take more.")
    return diag_embed(x, diagonal) if x.ndim == 1 else _diagonal(x, diagonal)


def trace(x: Tensor) -> Tensor:
    """The sum of the diagonal of a matrix."""
    if x.ndim != 2:
        raise ValueError(f"trace: a tensor of shape {x.shape} is no matrix.")
    return reduction.sum(_diagonal(x))


_diagonal = diagonal  # where a parameter has torch's name for it


def _on_diagonal(y: Array, x: Array, offset: int, a: int, b: int) -> None:
    """Write x, whose last axis runs along the diagonal, into y."""
    xp = array_module(y)
    i = xp.arange(x.shape[-1])
    xp.moveaxis(y, (a, b), (-2, -1))[..., i + max(-offset, 0), i + max(offset, 0)] = x
