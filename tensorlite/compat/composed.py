"""Functions that are composed of other ops. The tape records these ops, so no function here needs its own gradient."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from tensorlite.backend import array_module
from tensorlite.ops import arithmetic, comparison, elementary, indexing, matmul, shape
from tensorlite.ops.axes import normalize_axis
from tensorlite.tensor import Tensor

# --- other names ----------------------------------------------------------------------------------------


def absolute(x: Tensor) -> Tensor:
    """The same as `abs`."""
    return elementary.abs(x)


def negative(x: Tensor) -> Tensor:
    """The same as `neg`."""
    return arithmetic.neg(x)


def clip(x: Tensor, min: Any = None, max: Any = None) -> Tensor:
    """The same as `clamp`."""
    return comparison.clamp(x, min, max)


def multiply(x: Any, other: Any) -> Tensor:
    """The same as `mul`."""
    return arithmetic.mul(x, other)


def subtract(x: Any, other: Any, *, alpha: float = 1) -> Tensor:
    """The same as `sub`: x - alpha · other."""
    return arithmetic.sub(x, other if alpha == 1 else other * alpha)


def divide(x: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """The same as `div`."""
    return arithmetic.div(x, other, rounding_mode)


def true_divide(x: Any, other: Any) -> Tensor:
    """x / other, unrounded."""
    return arithmetic.div(x, other)


def floor_divide(x: Any, other: Any) -> Tensor:
    """x / other, rounded down."""
    return arithmetic.div(x, other, rounding_mode="floor")


def concat(tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """The same as `cat`."""
    return shape.cat(tensors, dim)


def concatenate(tensors: Iterable[Tensor], dim: int = 0) -> Tensor:
    """The same as `cat`."""
    return shape.cat(tensors, dim)


def swapaxes(x: Tensor, axis0: int, axis1: int) -> Tensor:
    """The same as `transpose`."""
    return shape.transpose(x, axis0, axis1)


def swapdims(x: Tensor, dim0: int, dim1: int) -> Tensor:
    """The same as `transpose`."""
    return shape.transpose(x, dim0, dim1)


# --- products -------------------------------------------------------------------------------------------


def t(x: Tensor) -> Tensor:
    """Rows and columns of a matrix exchanged; fewer axes stay as they are."""
    if x.ndim > 2:
        raise ValueError(f"t: a tensor of shape {x.shape} is no matrix: use mT for a batch of them.")
    return shape.plain_transpose(x)


def outer(x: Tensor, vec2: Tensor) -> Tensor:
    """y[i, j] = x[i] · vec2[j], of two vectors."""
    _require_axes("outer", (x, 1), (vec2, 1))
    return x.reshape(-1, 1) * vec2


def dot(x: Tensor, tensor: Tensor) -> Tensor:
    """Σ x · tensor, of two vectors of one length."""
    _require_axes("dot", (x, 1), (tensor, 1))
    return matmul.matmul(x, tensor)


def mv(x: Tensor, vec: Tensor) -> Tensor:
    """A matrix times a vector."""
    _require_axes("mv", (x, 2), (vec, 1))
    return matmul.matmul(x, vec)


def addmm(x: Tensor, mat1: Tensor, mat2: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """beta · x + alpha · mat1 @ mat2"""
    product = matmul.mm(mat1, mat2)
    return (x if beta == 1 else x * beta) + (product if alpha == 1 else product * alpha)


def lerp(x: Tensor, end: Tensor, weight: Any) -> Tensor:
    """Linear interpolation between x and ``end``: x + weight · (end - x)."""
    return x + weight * (end - x)


def addcmul(x: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """x + value · tensor1 · tensor2"""
    return x + value * tensor1 * tensor2


def addcdiv(x: Tensor, tensor1: Tensor, tensor2: Tensor, *, value: float = 1) -> Tensor:
    """x + value · tensor1 / tensor2"""
    return x + value * tensor1 / tensor2


def cosine_similarity(x1: Tensor, x2: Tensor, dim: int = 1, eps: float = 1e-8) -> Tensor:
    """The cosine of the angle between two vectors along ``dim``; lengths below ``eps`` count as ``eps``."""
    from tensorlite.ops.norm import norm

    x1, x2 = _broadcast(x1, x2)
    lengths = (comparison.clamp(norm(x, dim=dim, keepdim=True), min=eps) for x in (x1, x2))
    return (x1 / next(lengths) * (x2 / next(lengths))).sum(dim)


# --- shapes ---------------------------------------------------------------------------------------------


def repeat_interleave(x: Tensor, repeats: Any, dim: int | None = None, *, output_size: int | None = None) -> Tensor:
    """Repeat each slice of axis ``dim``: [a, b] -> [a, a, b, b]. Without ``dim``, x is flattened first.

    Args:
        repeats: how many times; one number, or one for each slice.
    """
    if dim is None:
        x, dim = shape.flatten(x), 0
    array = array_module(x.array)
    n = x.shape[normalize_axis("repeat_interleave", dim, x.ndim)]
    counts = np.broadcast_to(np.asarray(repeats.tolist() if isinstance(repeats, Tensor) else repeats), (n,))
    return indexing.index_select(x, dim, Tensor(array.asarray(np.repeat(np.arange(n), counts))))


def masked_select(x: Tensor, mask: Tensor) -> Tensor:
    """The numbers where the mask is True, as a vector."""
    x, mask = _broadcast(x, mask)
    return x[mask]


def movedim(x: Tensor, source: int | tuple[int, ...], destination: int | tuple[int, ...]) -> Tensor:
    """Move the axes ``source`` to the positions ``destination``; the others keep their order."""
    sources, destinations = ([n] if isinstance(n, int) else list(n) for n in (source, destination))
    sources, destinations = ([normalize_axis("movedim", d, x.ndim) for d in dims] for dims in (sources, destinations))
    placed = dict(zip(destinations, sources, strict=True))
    others = iter(d for d in range(x.ndim) if d not in placed.values())
    return shape.permute(x, [placed[d] if d in placed else next(others) for d in range(x.ndim)])


def vstack(tensors: Iterable[Tensor]) -> Tensor:
    """Join along the first axis; a vector is one row."""
    return shape.cat([x.reshape(1, -1) if x.ndim < 2 else x for x in tensors])


def hstack(tensors: Iterable[Tensor]) -> Tensor:
    """Join along the first axis for vectors, and along the second for tensors with more axes."""
    listed = [x.reshape(1) if x.ndim == 0 else x for x in tensors]
    return shape.cat(listed, dim=0 if listed and listed[0].ndim == 1 else 1)


def expand_as(x: Tensor, other: Tensor) -> Tensor:
    """`expand` to the shape of ``other``."""
    return shape.expand(x, other.shape)


def view_as(x: Tensor, other: Tensor) -> Tensor:
    """`view` in the shape of ``other``."""
    return shape.view(x, other.shape)


def reshape_as(x: Tensor, other: Tensor) -> Tensor:
    """`reshape` to the shape of ``other``."""
    return shape.reshape(x, other.shape)


def type_as(x: Tensor, other: Tensor) -> Tensor:
    """In the dtype of ``other``, and on its device."""
    return shape.to(x, other)


def _broadcast(x: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    common = np.broadcast_shapes(x.shape, other.shape)
    return shape.expand(x, common), shape.expand(other, common)


def _require_axes(name: str, *expected: tuple[Tensor, int]) -> None:
    if any(x.ndim != n for x, n in expected):
        found = " and ".join(str(x.shape) for x, _ in expected)
        raise ValueError(f"{name}: it takes tensors of {' and '.join(str(n) for _, n in expected)} axes, got shapes {found}.")
