"""Causal self-attention on the GPU: the kernels of `kernels.cuda.attention` on the heads of one array, without a copy.

They read q, k and v from their places in qkv, write the heads of a token side by side, and write dq, dk and dv into one dqkv.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda.attention import Heads, Launch, fits
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.op import Pair, register
from tensorlite.ops.self_attention import causal_self_attention


class FlashSaved(NamedTuple):
    """What backward needs of the forward."""

    launch: Launch
    qkv: Array  # (B, T, 3C)
    y: Array  # (B, T, C)
    log_sum: Array  # log₂ Σ exp of each row of scores


def causal_self_attention_forward(
    qkv: Array,
    n_head: int,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, FlashSaved]:
    """y (B, T, C). Saves qkv, y, and one number for each head of each token."""
    B, T, width = qkv.shape
    y = array_module(qkv).empty((B, T, width // 3), qkv.dtype)
    launch = Launch(qkv, Heads(B, n_head, T, T, width // 3 // n_head, width, is_causal=True), dropout_p, generator)
    return y, FlashSaved(launch, qkv, y, launch.forward(*split_qkv(qkv), y))


def causal_self_attention_backward(dy: Array, saved: FlashSaved) -> Array:
    """dqkv (B, T, 3C). dq, dk and dv are views of it."""
    dqkv = array_module(saved.qkv).empty_like(saved.qkv)
    saved.launch.backward(dy, *split_qkv(saved.qkv), saved.y, saved.log_sum, *split_qkv(dqkv))
    return dqkv


def split_qkv(qkv: Array) -> tuple[Array, Array, Array]:
    """q, k and v as views of (B, T, 3C)."""
    C = qkv.shape[2] // 3
    return qkv[:, :, :C], qkv[:, :, C : 2 * C], qkv[:, :, 2 * C :]


def supports(
    qkv: Array, n_head: int, dropout_p: float = 0.0, generator: np.random.Generator | None = None, recompute: bool = False
) -> bool:
    """Contiguous, two tokens or more, heads of a multiple of 8 numbers up to 128; the book refuses other shapes."""
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
