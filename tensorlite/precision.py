"""The precision of large matrix products on a GPU, and of the arrays between them.

    float32     everything in float32
    tf32        float32 in memory; the tensor cores round the factors of a product to 10 bits of fraction
    bfloat16    the arrays between the ops of a block are bfloat16: the range of float32, 7 bits of fraction
    float16     the same with 10 bits of fraction, from 6e-8 to 65504. Smaller gradients vanish unless the loss is scaled
                (`tensorlite.optim.scaler`). Prefer bfloat16 where the GPU has it

Sums over many numbers or many steps are float32 in every precision: the parameters and their gradients, the optimizer's
state, the residual stream, the statistics of normalisation and softmax, the loss. A product accumulates in float32, too; only its factors
and its result are short. The model contains no code for this. These kernels for the GPU ask for the precision:

    linear, matmul          round their operands to the half precision, and return it; the gradient of a parameter is float32
    layernorm, rmsnorm      take the float32 residual stream, and return the dtype that the next product reads
    all others              return the dtype of their input

Half precision halves the memory traffic, and the tensor cores perform 16 times as many operations a second as in float32
(H100: 990 against 67 TFLOP/s by its data sheet). Source: Micikevicius et al. 2018, "Mixed precision training". The choice of dtype
for each op is that of torch.autocast.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from tensorlite.context import contextmanager

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")

_current = "float32"
_rounded: tuple[tuple[Any, Any], ...] = ()


def current() -> str:
    """The precision in use: one of `PRECISIONS`."""
    return _current


def half_dtype() -> Any:
    """The dtype between the ops of a block under a half precision; None under float32 and tf32."""
    return _dtype(_current) if _current in ("bfloat16", "float16") else None


def rounded_copy(x: Any, rows: int) -> Any:
    """The first ``rows`` rows from x (n, C) on in the half precision in use, if a block of `use_rounded` has a copy of its memory.

    There may be more rows than x has: the memory after x may lie in the same array. None if there is no copy, or it is not as long.
    """
    for source, copy in _rounded:
        start, count = (x.data.ptr - source.data.ptr) // x.itemsize, rows * math.prod(x.shape[1:])
        if 0 <= start < source.size and start + count <= source.size and copy.dtype == half_dtype():
            return copy[start : start + count].reshape(rows, *x.shape[1:])
    return None


@contextmanager
def use_rounded(copies: Sequence[tuple[Any, Any]]) -> Iterator[None]:
    """Inside the ``with`` block products read parameters from copies in the half precision that are there already.

    Args:
        copies: one-dimensional CuPy arrays in float32, such as the flat buffers of an optimizer, and the same numbers rounded. Nobody
            writes to either inside the block.
    """
    global _rounded
    previous, _rounded = _rounded, tuple(copies)
    try:
        yield
    finally:
        _rounded = previous


def use_precision(name: str) -> Any:
    """``with use_precision("bfloat16"):`` sets the precision in all threads. It has an effect on CuPy arrays only. Also a decorator.

    Raises:
        ValueError: for another name than those in `PRECISIONS`.
        ImportError: for bfloat16 without ml_dtypes.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}: it is one of {', '.join(PRECISIONS)}.")
    _dtype(name)  # raise here, not in the first product
    return _using_precision(name)


@contextmanager
def _using_precision(name: str) -> Iterator[None]:
    global _current
    previous, _current = _current, name
    try:
        yield
    finally:
        _current = previous


def _dtype(name: str) -> Any:
    if name != "bfloat16":
        return np.dtype("float16" if name == "float16" else "float32")
    try:
        import ml_dtypes
    except ImportError as error:
        raise ImportError("bfloat16 needs ml_dtypes: pip install 'tensorlite[bfloat16]'.") from error
    return np.dtype(ml_dtypes.bfloat16)


__all__ = ["PRECISIONS", "current", "half_dtype", "rounded_copy", "use_precision", "use_rounded"]
