"""Layer normalisation on the GPU: a row is read once, and what backward needs of it is three numbers.

The book keeps x̂; here x, which is there anyway, is kept instead, with each row's mean and 1/σ: x̂ is faster
computed again than read. See layernorm.cu for who does what.
"""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.columns import sum_rows
from tensorlite.kernels.cuda.compile import kernel, on_gpu
from tensorlite.op import Pair, register
from tensorlite.ops.layernorm import layernorm

BACKWARD_BLOCKS = 264  # twice the multiprocessors of the largest GPUs now: each block then sums many rows before it writes


def layernorm_forward(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> tuple[Array, Any]:
    """y = x̂ · weight + bias. Saves x, and of each row the mean (as a sum of two floats) and 1/σ."""
    xp, C = array_module(x), x.shape[-1]
    rows = x.size // C
    y = xp.empty_like(x)
    mean, inverse_std = xp.empty((rows, 2), "float32"), xp.empty(rows, "float32")
    run = kernel("layernorm.cu", "layernorm_forward", In=x.dtype.name, Out=y.dtype.name)
    run(rows, threads_for(C), (x, weight, bias, y, mean, inverse_std, C, eps))
    return y, (x, mean, inverse_std, weight, bias is not None)


def layernorm_backward(dy: Array, saved: Any) -> tuple[Array, Array | None, Array | None]:
    """dx row by row; dweight and dbias in one row of partial sums for each block, which `sum_rows` adds up."""
    x, mean, inverse_std, weight, has_bias = saved
    xp, C = array_module(x), x.shape[-1]
    rows = x.size // C
    dy = xp.ascontiguousarray(dy)
    dx = xp.empty_like(x)
    blocks = min(rows, BACKWARD_BLOCKS)
    partial_dweight, partial_dbias = xp.empty((2, blocks, C), "float32")
    run = kernel("layernorm.cu", "layernorm_backward", In=x.dtype.name, Out=dy.dtype.name)
    arguments = (dy, x, weight, mean, inverse_std, dx, partial_dweight, partial_dbias, rows, -(-rows // blocks), C)
    run(blocks, threads_for(C), arguments, shared_bytes=2 * C * 4)
    return dx, None if weight is None else sum_rows(partial_dweight), sum_rows(partial_dbias) if has_bias else None


def threads_for(C: int) -> int:
    """How many threads share a row of C numbers: about four numbers each."""
    return min(1024, max(32, -(-C // 128) * 32))


def supports(x: Array, weight: Array | None = None, bias: Array | None = None, eps: float = 1e-5) -> bool:
    """Contiguous rows in float32 or a half precision; parameters in float32; two rows of sums must fit in shared memory."""
    return (
        on_gpu(x)
        and on_gpu(weight, bias, types=("float32",))
        and x.ndim > 0
        and 0 < x.shape[-1] <= 8192
        and x.size > 0
        and all(p is None or p.shape == x.shape[-1:] for p in (weight, bias))
    )


register(layernorm, Pair("cuda", layernorm_forward, layernorm_backward, supports))
