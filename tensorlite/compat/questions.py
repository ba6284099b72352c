"""Comparisons, counts and logical operations: their results have no gradient, so these are plain functions, not ops."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tensorlite.backend import array_module
from tensorlite.ops.axes import normalize_axes, normalize_axis
from tensorlite.ops.broadcasting import promote_operands
from tensorlite.tensor import Tensor, is_floating, unwrap


def is_tensor(x: Any) -> bool:
    """Whether x is a Tensor."""
    return isinstance(x, Tensor)


def is_floating_point(x: Tensor) -> bool:
    """Whether x holds floating point numbers."""
    return is_floating(x.dtype)


def numel(x: Tensor) -> int:
    """How many numbers there are."""
    return x.array.size


# --- alike? ---------------------------------------------------------------------------------------------


def isclose(x: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Tensor:
    """Where |x - other| ≤ atol + rtol · |other|."""
    a, b = promote_operands("isclose", unwrap(x), unwrap(other))
    return Tensor(array_module(a).isclose(a, b, rtol, atol, equal_nan))


def allclose(x: Tensor, other: Tensor, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    """Whether `isclose` holds everywhere."""
    return bool(isclose(x, other, rtol, atol, equal_nan).array.all())


def equal(x: Tensor, other: Tensor) -> bool:
    """Whether shape and numbers are the same."""
    return x.shape == other.shape and bool((unwrap(x) == unwrap(other)).all())


# --- which, and how many? -------------------------------------------------------------------------------


def nonzero(x: Any, *, as_tuple: bool = False) -> Any:
    """The indices where x is not 0: one row for each such number, or with ``as_tuple`` one tensor for each axis."""
    array = unwrap(x)
    xp = array_module(array)
    places = xp.nonzero(array if array.ndim else array.reshape(1))
    if as_tuple:
        return tuple(Tensor(place) for place in places)
    return Tensor(xp.stack(places, axis=1) if array.ndim else xp.zeros((places[0].size, 0), "int64"))


def count_nonzero(x: Any, dim: Any = None) -> Tensor:
    """How many numbers are not 0, along the axes ``dim``."""
    array = unwrap(x)
    return Tensor((array != 0).sum(axis=normalize_axes("count_nonzero", dim, array.ndim), dtype="int64"))


def unique(x: Any, sorted: bool = True, return_inverse: bool = False, return_counts: bool = False, dim: int | None = None) -> Any:
    """The different numbers, in order; on request also the index of each number of x among them, and how often each occurs."""
    array = unwrap(x)
    along = None if dim is None else normalize_axis("unique", dim, array.ndim)
    found = array_module(array).unique(array, return_inverse=return_inverse, return_counts=return_counts, axis=along)
    if not (return_inverse or return_counts):
        return Tensor(found)
    values, *others = found
    if return_inverse:
        others[0] = others[0].reshape(array.shape if dim is None else -1)
    return (Tensor(values), *map(Tensor, others))


def bincount(x: Any, weights: Any = None, minlength: int = 0) -> Tensor:
    """How often each of 0, 1, 2, … occurs, or the sum of the ``weights`` of its occurrences."""
    array = unwrap(x)
    if array.dtype.kind not in "iu" or array.ndim != 1 or (array.size and array.min() < 0):
        raise ValueError(f"bincount: it counts integers of at least 0 in one row, got {array.dtype} {array.shape}.")
    counts = array_module(array).bincount(array, unwrap(weights), minlength)
    return Tensor(counts if weights is None or unwrap(weights).dtype != "float32" else counts.astype("float32"))


# --- truth values, joined; and the bits of integers ---------------------------------------------------------


def logical_xor(x: Any, other: Any) -> Tensor:
    """True where exactly one of the two is True, or not 0."""
    a, b = promote_operands("logical_xor", unwrap(x), unwrap(other))
    return Tensor(array_module(a).logical_xor(a, b))


def bitwise_not(x: Any) -> Tensor:
    """Each bit inverted; for truth values "not"; also ``~x``."""
    array = unwrap(x)
    _require_bits("~", array)
    return Tensor(~array)


def _bitwise(name: str, sign: str, words: str, function: str) -> Callable[[Any, Any], Tensor]:
    def join(x: Any, other: Any) -> Tensor:
        a, b = promote_operands(name, unwrap(x), unwrap(other))
        _require_bits(sign, a, b)
        return Tensor(getattr(array_module(a if hasattr(a, "dtype") else b), function)(a, b))

    join.__name__ = join.__qualname__ = name
    join.__doc__ = f"Bit for bit, {words}; also ``x {sign} y``."
    return join


bitwise_and = _bitwise("bitwise_and", "&", "both: for truth values “and”", "bitwise_and")
bitwise_or = _bitwise("bitwise_or", "|", "one or both: for truth values “or”", "bitwise_or")
bitwise_xor = _bitwise("bitwise_xor", "^", "one but not both", "bitwise_xor")


def _operator(function: Callable[[Any, Any], Tensor]) -> Callable[[Any, Any], Any]:
    return lambda x, y: function(x, y) if isinstance(y, Tensor | int) or hasattr(y, "dtype") else NotImplemented


and_operator = _operator(bitwise_and)
or_operator = _operator(bitwise_or)
xor_operator = _operator(bitwise_xor)


def _require_bits(sign: str, *arrays: Any) -> None:
    for x in arrays:
        kind = np.asarray(x).dtype.kind if not hasattr(x, "dtype") else x.dtype.kind
        if kind not in "biu":
            raise RuntimeError(f"{sign} joins truth values, as of x > 0, or integers; got {getattr(x, 'dtype', type(x).__name__)}.")
