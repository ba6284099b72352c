"""In which numbers a GPU computes the large products, and what is stored between them.

    float32     everything in float32, every product exactly as it is written
    tf32        float32 in memory; the factors of a product are rounded to 10 bits of fraction on their way into the tensor cores
    bfloat16    what flows between the ops of a block is bfloat16: the range of float32, 7 bits of fraction
    float16     the same with 10 bits of fraction, up to 65504 and with a smallest number of 6e-8: gradients below that vanish, unless
                the loss is scaled (`tensorlite.optim.scaler`); take bfloat16 where the GPU has it

What is summed over many numbers or many steps stays in float32 in all of them: the parameters and their gradients, the optimizer's
memory, the residual stream, the statistics of normalisation and softmax, the loss. A product adds up in float32, too: only its factors
and its result are short. A model knows nothing of all this. The kernels for the GPU ask here, at these doors:

    linear, matmul          round their operands to the half precision, and return it; the gradient of a parameter is float32
    layernorm, rmsnorm      take the float32 residual stream and return what the next product reads
    all others              return what they were given

Half precision halves the memory that is moved, and lets the tensor cores do 16 times as many operations a second as float32 has
(H100: 990 against 67 TFLOP/s by its data sheet). Source: Micikevicius et al. 2018, "Mixed precision training"; the division of labour is
that of torch.autocast.
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
    """``with use_precision("bfloat16"):`` lets all threads compute so; only CuPy arrays take notice. It may also decorate a function.

    Raises:
        ValueError: for another name than those in `PRECISIONS`.
        ImportError: for bfloat16 without ml_dtypes.
    """
    if name not in PRECISIONS:
        raise ValueError(f"unknown precision {name!r}: it is one of {', '.join(PRECISIONS)}.")
    _dtype(name)  # said here rather than in the first product
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
