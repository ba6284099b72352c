"""Causal self-attention as a GPT uses it: one array in, cut into heads, one array out.

No new mathematics: this page moves axes around `attention`. As an op of its own it spares the tape ten small ones a
layer, and lets a faster pair read the heads where they lie.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.attention import attention_backward, attention_forward


def causal_self_attention_forward(
    qkv: Array,
    n_head: int,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, Any]:
    """y = merge_heads(attention(q, k, v)),   q, k, v = split_heads(qkv),   where token t looks at tokens s ≤ t

    Every token brings 3C numbers: C for its queries, C for its keys, C for its values, and each of these C are
    H heads of D = C/H numbers side by side. Every head attends by itself; joined, their answers are C numbers again.

    Shapes: qkv (B, T, 3C), y (B, T, C).
    Saves: what `attention_forward` saves.
    Raises: ValueError if the last axis does not hold three times n_head equal heads.
    Source: Radford et al. 2019 (GPT-2's c_attn); equals torch's split, view, transpose and scaled_dot_product_attention.
    """
    q, k, v = split_heads(qkv, n_head)
    y, saved = attention_forward(q, k, v, is_causal=True, dropout_p=dropout_p, generator=generator, recompute=recompute)
    return merge_heads(y), (saved, n_head)


def causal_self_attention_backward(dy: Array, saved: Any) -> Array:
    """Moving numbers has moving them back as its gradient: dy is cut as y was joined, dq, dk and dv are laid as q, k and v lay.

    Shapes: dy (B, T, C); returns dqkv (B, T, 3C).
    """
    attended, n_head = saved
    B, T, C = dy.shape
    dy = dy.reshape(B, T, n_head, C // n_head).swapaxes(1, 2)  # (B, H, T, D)
    dq, dk, dv, _ = attention_backward(dy, attended)
    return array_module(dy).concatenate([merge_heads(dq), merge_heads(dk), merge_heads(dv)], axis=-1)


causal_self_attention = Op(causal_self_attention_forward, causal_self_attention_backward, in_float32=True)


def split_heads(qkv: Array, n_head: int) -> tuple[Array, Array, Array]:
    """(B, T, 3C) as q, k and v, each (B, H, T, D); views where qkv is contiguous.

    Raises:
        ValueError: if the last axis cannot be cut so.
    """
    if qkv.ndim != 3 or n_head < 1 or qkv.shape[2] % (3 * n_head):
        raise ValueError(f"causal_self_attention: qkv is (B, T, 3C) with C a multiple of n_head = {n_head}, got {qkv.shape}.")
    B, T, width = qkv.shape
    q, k, v = qkv.reshape(B, T, 3, n_head, width // (3 * n_head)).transpose(2, 0, 3, 1, 4)
    return q, k, v


def merge_heads(x: Array) -> Array:
    """(B, H, T, D) as (B, T, C), the heads of a token side by side."""
    B, H, T, D = x.shape
    return x.swapaxes(1, 2).reshape(B, T, H * D)
