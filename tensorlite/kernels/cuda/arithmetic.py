"""x + other where one is float32 and the other in half precision: a residual connection under `tensorlite.precision`."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.cast import HALVES, cast
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.elementwise import launch_elementwise, vector_aligned
from tensorlite.op import Pair, register
from tensorlite.ops.arithmetic import add


def add_forward(x: Array, other: Array) -> tuple[Array, Any]:
    """y = x + other in float32, in one pass over the memory."""
    stream, half = (x, other) if x.dtype.name == "float32" else (other, x)
    y = array_module(x).empty_like(stream)
    launch_elementwise("arithmetic.cu", "add_to_stream", y.size, vector_aligned(stream), vector_aligned(half), y, Half=half.dtype.name)
    return y, (x.dtype, other.dtype)


def add_backward(dy: Array, saved: Any) -> tuple[Array, Array]:
    """dx = dother = dy, each in the dtype of its operand."""
    x_dtype, other_dtype = saved
    return cast(dy, x_dtype), cast(dy, other_dtype)


def supports(x: Array, other: Any) -> bool:
    """Two contiguous arrays of one shape, one in float32 and the other in a half precision; the book takes the rest."""
    if not (on_gpu(x) and on_gpu(other) and hasattr(other, "shape") and x.shape == other.shape):
        return False
    return {x.dtype.name, other.dtype.name} in ({"float32", half} for half in HALVES)


register(add, Pair("cuda", add_forward, add_backward, supports))
