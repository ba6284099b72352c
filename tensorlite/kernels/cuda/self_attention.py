"""Causal self-attention on the GPU: `kernels.cuda.attention` on the heads of one array, without a copy on either side.

q, k and v are read where they lie in qkv, the heads of a token are written side by side, and dq, dk and dv go into one dqkv.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.attention import Heads, Launch, fits
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.op import Pair, register
from tensorlite.ops.self_attention import causal_self_attention


def causal_self_attention_forward(
    qkv: Array,
    n_head: int,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, Any]:
    """y (B, T, C). Saves qkv, y, and one number for each head of each token."""
    B, T, width = qkv.shape
    y = array_module(qkv).empty((B, T, width // 3), qkv.dtype)
    launch = Launch(qkv, Heads(B, n_head, T, T, width // 3 // n_head, width, is_causal=True), dropout_p, generator)
    return y, (launch, qkv, y, launch.forward(*split_qkv(qkv), y))


def causal_self_attention_backward(dy: Array, saved: Any) -> Array:
    """dqkv (B, T, 3C), of which the three gradients are parts."""
    launch, qkv, y, lse = saved
    dqkv = array_module(qkv).empty_like(qkv)
    launch.backward(dy, *split_qkv(qkv), y, lse, *split_qkv(dqkv))
    return dqkv


def split_qkv(qkv: Array) -> tuple[Array, Array, Array]:
    """Where q, k and v begin: views of (B, T, 3C)."""
    C = qkv.shape[2] // 3
    return qkv[:, :, :C], qkv[:, :, C : 2 * C], qkv[:, :, 2 * C :]


def supports(
    qkv: Array, n_head: int, dropout_p: float = 0.0, generator: np.random.Generator | None = None, recompute: bool = False
) -> bool:
    """Contiguous, two tokens or more, heads of a multiple of 8 numbers up to 128; what cannot be cut into heads is the book's to refuse."""
    return (
        on_gpu(qkv)
        and qkv.ndim == 3
        and qkv.shape[1] > 1
        and n_head > 0
        and qkv.shape[2] % (3 * n_head) == 0
        and qkv.size < 2**31
        and fits(qkv, D=qkv.shape[2] // (3 * n_head), dropout_p=dropout_p)
    )


register(causal_self_attention, Pair("cuda", causal_self_attention_forward, causal_self_attention_backward, supports))
