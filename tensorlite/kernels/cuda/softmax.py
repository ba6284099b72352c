"""Softmax along the last axis on the GPU: one block for each row, one kernel for forward and one for backward."""

from __future__ import annotations

from typing import Any

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.compile import TYPES, is_cupy, kernel
from tensorlite.op import Pair, register
from tensorlite.ops.softmax import softmax


def softmax_forward(x: Array, dim: int = -1) -> tuple[Array, Any]:
    """yᵢ = exp(xᵢ) / Σⱼ exp(xⱼ). Saves y."""
    xp, C = array_module(x), x.shape[-1]
    x = xp.ascontiguousarray(x)
    y = xp.empty_like(x)
    kernel("softmax.cu", "softmax_forward", Real=x.dtype.name)(x.size // C, threads_for(C), (x, y, C))
    return y, y


def softmax_backward(dy: Array, saved: Any) -> Array:
    """dx = y · (dy - Σⱼ dyⱼ yⱼ)."""
    y, xp = saved, array_module(saved)
    dx, C = xp.empty_like(y), y.shape[-1]
    arguments = (xp.ascontiguousarray(dy), y, dx, C)
    kernel("softmax.cu", "softmax_backward", Real=y.dtype.name)(y.size // C, threads_for(C), arguments)
    return dx


def threads_for(C: int) -> int:
    """How many threads share a row of C numbers: whole warps, about four numbers each."""
    return min(1024, max(32, -(-C // 128) * 32))


def supports(x: Array, dim: int = -1) -> bool:
    """Float32 or a half precision, and the last axis. Rows that are padded, as logits may be, are copied."""
    return is_cupy(x) and x.dtype.name in TYPES and x.ndim > 0 and x.size > 0 and dim in (-1, x.ndim - 1)


register(softmax, Pair("cuda", softmax_forward, softmax_backward, supports))
