"""What ``x[index]`` means: torch's reading of an index, for NumPy and CuPy arrays."""

from __future__ import annotations

import operator
from typing import Any

from tensorlite.backend import Array, array_module

_ALL = slice(None)


def resolve_index(x: Array, index: tuple[Any, ...]) -> tuple[tuple[Any, ...], tuple[Any, ...] | None, bool]:
    """Split ``x[index]`` into ``x[basic][advanced]``.

    Integers, slices, None and ``...`` come first and give a view. Index arrays and masks follow and give a copy.
    NumPy does both in one step, and treats an integer beside an index array as an index array, which moves axes.

    Returns:
        ``basic``, which always yields an array and never a bare number; ``advanced``, which holds integer arrays only (a
        mask becomes the positions of its True), or None if there is nothing to index; and whether ``advanced`` may name
        one position more than once.

    Raises:
        IndexError: if an index is out of range, has the wrong type, or a mask has another shape than what it masks.
    """
    if all(item is None or item is Ellipsis or type(item) in (int, slice) for item in index):  # by far the most common
        return index if Ellipsis in index else (*index, Ellipsis), None, False

    items = [_as_item(x, item) for item in index]
    consumed = sum(_consumes(item) for item in items)
    if consumed > x.ndim:
        raise IndexError(f"too many indices: {consumed} for a tensor of shape {x.shape}.")
    if not any(item is Ellipsis for item in items):
        items.append(Ellipsis)

    basic: list[Any] = []
    advanced: list[Any] = []
    is_advanced, repeats, axis = False, False, 0
    for item in items:
        if item is None:
            basic.append(None)
            advanced.append(_ALL)
        elif item is Ellipsis:
            basic += [_ALL] * (x.ndim - consumed)
            advanced += [_ALL] * (x.ndim - consumed)
            axis += x.ndim - consumed
            continue
        elif isinstance(item, slice):
            basic.append(item)
            advanced.append(_ALL)
        elif isinstance(item, int):
            basic.append(item)
        elif item.dtype.kind == "b":
            is_advanced = True
            places, axes = _places(item, x.shape[axis : axis + item.ndim])
            basic += axes
            advanced += places
        else:
            is_advanced = repeats = True
            _check_range(item, axis, x.shape)
            basic.append(_ALL)
            advanced.append(item)
        axis += _consumes(item)
    return (*basic, Ellipsis), tuple(advanced) if is_advanced else None, repeats


def _as_item(x: Array, item: Any) -> Any:
    """An int, a slice, None, Ellipsis, or an array of integers or booleans on the device of ``x``."""
    if item is None or item is Ellipsis or isinstance(item, slice):
        return item
    xp = array_module(x)
    array = xp.asarray(item, dtype=int) if isinstance(item, list) and not item else xp.asarray(item)
    if array.dtype.kind not in "iub":
        raise IndexError(f"an index must hold integers or booleans, slices, None or ..., got {array.dtype}.")
    return operator.index(array.item()) if array.ndim == 0 and array.dtype.kind != "b" else array


def _consumes(item: Any) -> int:
    """How many axes of x the item indexes. A mask indexes as many as it has."""
    if item is None or item is Ellipsis:
        return 0
    return item.ndim if hasattr(item, "dtype") and item.dtype.kind == "b" else 1


def _places(mask: Array, shape: tuple[int, ...]) -> tuple[list[Any], list[Any]]:
    """The positions where ``mask`` is True, and the axes that it indexes. A single bool indexes a new axis of length 1."""
    if mask.ndim == 0:
        return list(array_module(mask).nonzero(mask.reshape(1))), [None]
    if mask.shape != shape:
        raise IndexError(f"a mask of shape {mask.shape} does not fit the axes it masks, {shape}.")
    return list(array_module(mask).nonzero(mask)), [_ALL] * mask.ndim


def _check_range(item: Array, axis: int, shape: tuple[int, ...]) -> None:
    n = shape[axis]
    if item.size and (item.min() < -n or item.max() >= n):
        raise IndexError(f"indices from {item.min()} to {item.max()} are out of range for axis {axis} of {shape}: {-n} to {n - 1}.")
