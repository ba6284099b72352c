"""Axes by number, counted from the front or, negative, from the back, as in torch's ``dim``."""

from __future__ import annotations

from typing import Any


def normalize_axis(op: str, dim: int, ndim: int) -> int:
    """``dim`` as a number from 0 to ndim - 1. A 0-d array is treated as having one axis, as in torch.

    Raises:
        IndexError: if there is no such axis.
    """
    n = max(ndim, 1)
    if not -n <= dim < n:
        raise IndexError(f"{op}: dim {dim} does not exist in a tensor with {ndim} axes: it is from {-n} to {n - 1}.")
    return dim % n


def normalize_axes(op: str, dim: Any, ndim: int) -> tuple[int, ...]:
    """``dim`` (None for all, a number, or several) as sorted numbers from 0 to ndim - 1.

    Raises:
        IndexError: if one does not exist.
        ValueError: if one is named twice.
    """
    if dim is None or (isinstance(dim, tuple | list) and not dim):
        return tuple(range(ndim))
    if isinstance(dim, int):
        dim = (dim,)
    if ndim == 0:
        for d in dim:
            normalize_axis(op, d, 0)
        return ()
    result = sorted(normalize_axis(op, d, ndim) for d in dim)
    if len(set(result)) != len(result):
        raise ValueError(f"{op}: dim {tuple(dim)} names an axis twice.")
    return tuple(result)
