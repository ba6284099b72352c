"""SwiGLU on the GPU: one kernel forward and one backward, which computes the slopes again. Only x is kept."""

from __future__ import annotations

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import kernel, on_gpu
from tensorlite.kernels.cuda.elementwise import BLOCK, MOST_BLOCKS, vector_aligned
from tensorlite.op import Pair, register
from tensorlite.ops.swiglu import swiglu


def swiglu_forward(x: Array) -> tuple[Array, Array]:
    """y = silu(gate) · up. Saves x."""
    x = vector_aligned(x)
    y = array_module(x).empty((*x.shape[:-1], x.shape[-1] // 2), x.dtype)
    _launch("swiglu_forward", x, (x, y))
    return y, x


def swiglu_backward(dy: Array, saved: Array) -> Array:
    """dgate and dup side by side."""
    dy, dx = vector_aligned(dy), array_module(saved).empty(saved.shape, saved.dtype)
    _launch("swiglu_backward", saved, (dy, saved, dx))
    return dx


def supports(x: Array) -> bool:
    """Contiguous arrays of float32 and the half precisions whose last axis has two halves."""
    return on_gpu(x) and x.ndim > 0 and x.shape[-1] % 2 == 0


def _launch(name: str, x: Array, arrays: tuple[Array, ...]) -> None:
    """A thread takes four neighbours where four never cross the end of a row, and one otherwise."""
    F = x.shape[-1] // 2
    wide = 4 if F % 4 == 0 else 1
    count = x.size // 2
    blocks = min(-(-count // (wide * BLOCK)), MOST_BLOCKS)
    kernel("swiglu.cu", name, Real=x.dtype.name, Wide=wide)(blocks, BLOCK, (*arrays, F, np.int64(count)))


register(swiglu, Pair("cuda", swiglu_forward, swiglu_backward, supports))
