"""Cross-entropy on the GPU: the V probabilities of a row are not kept. Backward computes them again as part of the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import TYPES, is_cupy, kernel, on_gpu
from tensorlite.kernels.cuda.padding import padded_width
from tensorlite.op import Pair, register
from tensorlite.ops.cross_entropy import cross_entropy

FILE = "cross_entropy.cu"


class LogSumSaved(NamedTuple):
    """What backward needs of the forward."""

    x: Array  # (rows, V)
    target: Array
    log_sum: Array  # log Σ exp(x) of each row
    divisor: Array | None  # the number of rows that are not ignored, for the mean
    ignored: Any  # ignore_index as int64
    smoothing: float


def cross_entropy_forward(
    x: Array, target: Array, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0
) -> tuple[Array, LogSumSaved]:
    """loss = log Σ exp(x) - x_target, in float32. Saves x, target, log Σ exp(x) of each row, and the number of rows that are kept."""
    xp, V = array_module(x), x.shape[-1]
    rows, target = x.size // V, target.astype(np.int64, copy=False)
    log_sum, loss = xp.empty(rows, "float32"), xp.empty(target.shape, "float32")
    ignored, smoothing = np.int64(ignore_index), float(label_smoothing)
    run = kernel(FILE, "cross_entropy_rows", Real=x.dtype.name)
    run(rows, threads_for(V), (x, target, log_sum, loss, V, row_stride(x), ignored, smoothing))
    count = None
    if reduction != "none":
        each, loss, count = loss, xp.empty((), "float32"), xp.empty((), "float32")
        arguments = (each, target, loss, count, int(reduction == "mean"), rows, ignored)
        kernel(FILE, "cross_entropy_total", Real=x.dtype.name)(1, 1024, arguments)
    return loss, LogSumSaved(x, target, log_sum, count if reduction == "mean" else None, ignored, smoothing)


def cross_entropy_backward(dy: Array, saved: LogSumSaved) -> tuple[Array, None]:
    """dx = (p - q) · dy / rows, in the type of the logits. Its rows are padded where those of the logits are."""
    x, log_sum = saved.x, saved.log_sum
    xp, V = array_module(x), x.shape[-1]
    wide = padded_width(V, x.dtype)
    dx = xp.empty((len(log_sum), wide if row_stride(x) == wide else V), x.dtype)[:, :V].reshape(x.shape)
    strides = row_stride(x), row_stride(dx)
    dy, per_row = xp.ascontiguousarray(dy, "float32"), int(dy.ndim > 0)
    arguments = (dy, per_row, x, saved.target, log_sum, saved.divisor, dx, V, *strides, saved.ignored, saved.smoothing)
    kernel(FILE, "cross_entropy_backward", Real=x.dtype.name)(len(log_sum), threads_for(V), arguments)
    return dx, None


def row_stride(x: Array) -> int:
    """The distance from one row of logits to the next, in elements."""
    return int(x.strides[0] // x.itemsize) if x.ndim > 1 and len(x) > 1 else int(x.shape[-1])


def threads_for(V: int) -> int:
    """How many threads share a row of V numbers: whole warps, each thread with four reads of 16 bytes in flight."""
    return min(256, max(32, -(-V // 1024) * 32))


def supports(x: Array, target: Array, ignore_index: int = -100, reduction: str = "mean", label_smoothing: float = 0.0) -> bool:
    """Rows of logits, (N, V) or (V,), padded or not, and a target for each. The book refuses wrong arguments."""
    return (
        is_cupy(x)
        and x.dtype.name in TYPES
        and on_gpu(target, types=("int64", "int32", "uint16", "uint8"))
        and x.ndim in (1, 2)
        and x.size > 0
        and (x.shape[-1] == 1 or x.strides[-1] == x.itemsize)
        and x.shape[-1] <= row_stride(x) < 2**31
        and target.shape == x.shape[:-1]
        and reduction in ("mean", "sum", "none")
        and 0 <= label_smoothing <= 1
    )


register(cross_entropy, Pair("cuda", cross_entropy_forward, cross_entropy_backward, supports))
