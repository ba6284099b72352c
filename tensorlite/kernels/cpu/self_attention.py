"""Causal self-attention on the CPU: `kernels.cpu.attention` on the heads of one array, without a copy.

q, k and v are views of qkv, y is written so that merging the heads needs no copy, and dq, dk and dv are written into one
dqkv.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array
from tensorlite.kernels.cpu import attention
from tensorlite.op import Pair, register
from tensorlite.ops.self_attention import causal_self_attention, merge_heads, split_heads


def causal_self_attention_forward(
    qkv: Array,
    n_head: int,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, Any]:
    """Split into heads, attention, merge. The first and the last are views."""
    q, k, v = split_heads(qkv, n_head)
    y, saved = attention.attention_forward(q, k, v, is_causal=True, dropout_p=dropout_p, generator=generator, recompute=recompute)
    return merge_heads(y), saved


def causal_self_attention_backward(dy: Array, saved: Any) -> Array:
    """dqkv (B, T, 3C). dq, dk and dv are views of it."""
    B, H, _, T, D = saved.q.shape
    dqkv = np.empty((B, T, 3 * H * D), dy.dtype)
    attention.write_gradients(*attention.five_axes(*split_heads(dqkv, H)), dy.reshape(B, T, H, 1, D).transpose(0, 2, 3, 1, 4), saved)
    return dqkv


def supports(
    qkv: Array, n_head: int, dropout_p: float = 0.0, generator: np.random.Generator | None = None, recompute: bool = False
) -> bool:
    """What `attention.takes_heads_of` takes; the book refuses other shapes."""
    return attention.takes_heads_of(qkv, dropout_p)


register(causal_self_attention, Pair("cpu", causal_self_attention_forward, causal_self_attention_backward, supports))
