"""Dropout on the GPU: the kernel computes the random bits from a counter, in forward and again in backward.

The masks differ from those on the CPU, which come from a generator. `tensorlite.random.next_dropout_key` says where the key comes from.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorlite import random
from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.kernels.cuda.elementwise import launch_elementwise, vector_aligned
from tensorlite.op import Pair, register
from tensorlite.ops.dropout import dropout


class CounterSaved(NamedTuple):
    """What the mask is computed from."""

    key: Array
    call: int
    threshold: int
    scale: float


def dropout_forward(x: Array, p: float = 0.5, generator: np.random.Generator | None = None) -> tuple[Array, CounterSaved]:
    """y = x · keep / (1 - p). Saves a key and a counter, and no array of the size of x."""
    key, call = random.next_dropout_key(array_module(x), generator)
    saved = CounterSaved(key, call, *random.dropout_threshold(p))
    return _masked(x, *saved), saved


def dropout_backward(dy: Array, saved: CounterSaved) -> Array:
    """dx = dy · keep / (1 - p), with the same mask."""
    return _masked(dy, *saved)


def _masked(x: Array, key: Array, call: int, threshold: int, scale: float) -> Array:
    x = vector_aligned(x)
    y = array_module(x).empty_like(x)
    launch_elementwise("dropout.cu", "dropout", x.size, x, y, key, call, threshold, scale, Real=x.dtype.name)
    return y


def supports(x: Array, p: float = 0.5, generator: np.random.Generator | None = None) -> bool:
    """Contiguous numbers in float32 or a half precision; the book refuses an impossible p."""
    return on_gpu(x) and 0 <= p <= 1


register(dropout, Pair("cuda", dropout_forward, dropout_backward, supports))
