"""Broadcasting, and its transpose.

Broadcasting repeats an array along axes that it does not have, or has with length 1. A value that is used
n times receives n gradients, and the chain rule adds them. So the backward of "repeat along an axis" is
"sum over that axis". `unbroadcast` is that sum. The backward of every op with two operands ends with it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.ops.summation import sum_of
from tensorlite.tensor import is_floating

_NUMBERS = (int, float)


def unbroadcast(dy: Array, shape: tuple[int, ...]) -> Array:
    """Sum ``dy`` over the axes along which an array of ``shape`` was repeated.

    Shapes: dy: a shape that ``shape`` broadcasts to. Returns an array of ``shape``.
    """
    if dy.shape == shape:
        return dy
    new_axes = dy.ndim - len(shape)
    stretched = tuple(new_axes + i for i, n in enumerate(shape) if n == 1 and dy.shape[new_axes + i] != 1)
    return sum_of(dy, (*range(new_axes), *stretched)).reshape(shape)


def broadcast_shape(op: str, *shapes: tuple[int, ...]) -> tuple[int, ...]:
    """The common shape.

    Raises:
        ValueError: if there is none, naming the op and the shapes.
    """
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        listed = " and ".join(str(shape) for shape in shapes)
        raise ValueError(f"{op}: the shapes {listed} do not broadcast: counted from the right, lengths must be equal or 1.") from None


def shape_of(x: Any) -> tuple[int, ...] | None:
    """The shape of an array; None for a Python number, which has no gradient and needs no `unbroadcast`."""
    return getattr(x, "shape", None)


def promote_operands(op: str, a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands, each an array or a Python number, promoted to one dtype, after a check that their shapes broadcast.

    Raises:
        ValueError: if their shapes do not, naming the op and the shapes.
        TypeError: for an operand that is neither an array nor a number.
    """
    a_shape, b_shape = shape_of(a), shape_of(b)
    if a_shape is None or b_shape is None:
        number = a if a_shape is None else b
        if not isinstance(number, _NUMBERS):
            raise TypeError(f"{op}: an operand is a tensor, an array or a number, got {type(number).__name__}.")
    elif a_shape != b_shape:
        broadcast_shape(op, a_shape, b_shape)
    return promote(a, b)


def promote(a: Any, b: Any) -> tuple[Any, Any]:
    """Two operands, each an array or a Python number, in the dtype torch computes with.

    torch's rule: floating point wins over integers, and integers over bools, whatever their sizes. Within one kind, an
    array with axes wins over a 0-d array, and that over a Python number. Only between two equal ones the larger type
    wins. (NumPy alone would make float64 of int64 · float32, and of a float32 array times a 0-d float64 array.)
    """
    # The two common cases first: two arrays of one dtype, and a floating point array with a number, which keeps its dtype.
    a_dtype, b_dtype = getattr(a, "dtype", None), getattr(b, "dtype", None)
    if a_dtype is None or b_dtype is None:
        dtype = b_dtype if a_dtype is None else a_dtype
        if dtype is not None and dtype.kind == "f":
            return a, b
    elif a_dtype == b_dtype:
        return a, b
    dtype = result_dtype(a, b)
    return _as(a, dtype), _as(b, dtype)


def result_dtype(*operands: Any) -> Any:
    """The dtype of an operation between arrays and Python numbers by the rule in `promote`."""

    def kind(x: Any) -> int:
        dtype = getattr(x, "dtype", None)
        if dtype is None:
            return 0 if isinstance(x, bool) else 1 if isinstance(x, int) else 2
        return 2 if is_floating(dtype) else 0 if dtype.kind == "b" else 1

    def priority(x: Any) -> int:
        return 0 if not hasattr(x, "dtype") else 1 if x.ndim == 0 else 2

    highest = max(kind(x) for x in operands)
    deciding = [x for x in operands if kind(x) == highest]
    strongest = max(priority(x) for x in deciding)
    if strongest == 0:  # only Python numbers are of this kind: torch's default types
        return np.dtype(("bool", "int64", "float32")[highest])
    return np.result_type(*(x.dtype for x in deciding if priority(x) == strongest))


def to_floating(x: Any) -> Any:
    """``x`` itself if it is floating point, or a number; integers and bools become float32, as in torch."""
    dtype = getattr(x, "dtype", None)
    return x if dtype is None or is_floating(dtype) else x.astype(np.float32)


def require_floating(op: str, *arrays: Array | None) -> None:
    """Refuse integers and bools where torch does. NumPy would compute uint8 in float16, and int64 in float64.

    Raises:
        RuntimeError: naming the op and the dtype.
    """
    for x in arrays:
        if x is not None and not is_floating(x.dtype):
            raise RuntimeError(f"{op}: the input must be floating point, got {x.dtype}; convert it with .to(float32).")


def _as(x: Any, dtype: Any) -> Any:
    if hasattr(x, "dtype"):
        return x.astype(dtype, copy=False)
    return x if is_floating(dtype) or isinstance(x, int) else array_module(x).asarray(x, dtype)
