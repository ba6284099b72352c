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

from collections.abc import Iterator
from typing import Any

import numpy as np

from tensorlite.context import contextmanager

PRECISIONS = ("float32", "tf32", "bfloat16", "float16")

_current = "float32"


def current() -> str:
    """The precision in use: one of `PRECISIONS`."""
    return _current


def half_dtype() -> Any:
    """The dtype between the ops of a block under a half precision; None under float32 and tf32."""
    return _dtype(_current) if _current in ("bfloat16", "float16") else None


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


__all__ = ["PRECISIONS", "current", "half_dtype", "use_precision"]
