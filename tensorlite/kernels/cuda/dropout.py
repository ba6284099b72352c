"""Dropout on the GPU: random bits are computed where they are needed, from a counter, and in backward once more.

The masks are others than the CPU's, which come from a stream; see `tensorlite.random.next_dropout_key` for where the key comes from.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite import random
from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.elementwise import launch_elementwise, vector_aligned
from tensorlite.op import Pair, register
from tensorlite.ops.dropout import dropout


def dropout_forward(x: Array, p: float = 0.5, generator: np.random.Generator | None = None) -> tuple[Array, Any]:
    """y = x · keep / (1 - p). Saves what the mask follows from, a key and a number: no array of the size of x."""
    key, call = random.next_dropout_key(array_module(x), generator)
    threshold, scale = random.dropout_threshold(p)
    saved = (key, call, threshold, scale)
    return _masked(x, *saved), saved


def dropout_backward(dy: Array, saved: Any) -> Array:
    """dx = dy · keep / (1 - p), with the same mask."""
    return _masked(dy, *saved)


def _masked(x: Array, key: Array, call: int, threshold: int, scale: float) -> Array:
    x = vector_aligned(x)
    y = array_module(x).empty_like(x)
    launch_elementwise("dropout.cu", "dropout", x.size, x, y, key, call, threshold, scale, Real=x.dtype.name)
    return y


def supports(x: Array, p: float = 0.5, generator: np.random.Generator | None = None) -> bool:
    """Contiguous numbers in float32 or a half precision; an impossible p is the book's to refuse."""
    return on_gpu(x) and 0 <= p <= 1


register(dropout, Pair("cuda", dropout_forward, dropout_backward, supports))
