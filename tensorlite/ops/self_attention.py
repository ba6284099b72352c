"""Causal self-attention as a GPT uses it: one array in, split into heads, one array out.

This page has no mathematics of its own. It moves axes before and after `attention`. As one op it replaces ten small ops a layer,
and a faster pair can read the heads in place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.attention import AttentionSaved, attention_backward, attention_forward


class SelfAttentionSaved(NamedTuple):
    """What backward needs of the forward."""

    attention: AttentionSaved
    n_head: int


def causal_self_attention_forward(
    qkv: Array,
    n_head: int,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, SelfAttentionSaved]:
    """y = merge_heads(attention(q, k, v)),   q, k, v = split_heads(qkv),   token t sees tokens s ≤ t

    Every token has 3C numbers: C for its queries, C for its keys and C for its values. Each C numbers are H heads of
    D = C/H numbers, side by side. Attention runs in every head separately. The H results of a token, side by
    side, are C numbers again.

    Shapes: qkv (B, T, 3C), y (B, T, C).
    Saves: what `attention_forward` saves.
    Raises: ValueError if the last axis does not hold 3 · n_head equal heads.
    Source: Radford et al. 2019 (GPT-2's c_attn); equals torch's split, view, transpose and scaled_dot_product_attention.
    """
    q, k, v = split_heads(qkv, n_head)
    y, saved = attention_forward(q, k, v, is_causal=True, dropout_p=dropout_p, generator=generator, recompute=recompute)
    return merge_heads(y), SelfAttentionSaved(saved, n_head)


def causal_self_attention_backward(dy: Array, saved: SelfAttentionSaved) -> Array:
    """The gradient of a move is the move back: dy is split into heads as y was, and dq, dk, dv are merged into dqkv.

    Shapes: dy (B, T, C); returns dqkv (B, T, 3C).
    """
    B, T, C = dy.shape
    dy = dy.reshape(B, T, saved.n_head, C // saved.n_head).swapaxes(1, 2)  # (B, H, T, D)
    dq, dk, dv, _ = attention_backward(dy, saved.attention)
    return array_module(dy).concatenate([merge_heads(dq), merge_heads(dk), merge_heads(dv)], axis=-1)


causal_self_attention = Op(causal_self_attention_forward, causal_self_attention_backward, in_float32=True)


def split_heads(qkv: Array, n_head: int) -> tuple[Array, Array, Array]:
    """(B, T, 3C) as q, k and v, each (B, H, T, D); views where qkv is contiguous.

    Raises:
        ValueError: if the last axis cannot be split in this way.
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
