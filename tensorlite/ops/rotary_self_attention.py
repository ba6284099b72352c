"""Causal self-attention as a Llama uses it: rotary positions, and keys and values that groups of heads share; one array in, one out.

This page has no mathematics of its own. It moves axes between `rotary` and `attention`, as `self_attention` does for a GPT. As one op it
replaces a dozen small ops a layer, and a faster pair can read the heads in place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.op import Op
from tensorlite.ops.attention import AttentionSaved, attention_backward, attention_forward
from tensorlite.ops.rotary import RotarySaved, rotary_embedding_backward, rotary_embedding_forward
from tensorlite.ops.self_attention import merge_heads


class RotarySelfAttentionSaved(NamedTuple):
    """What backward needs of the forward."""

    rotary: RotarySaved
    attention: AttentionSaved


def rotary_self_attention_forward(
    qkv: Array,
    n_head: int,
    n_kv_head: int,
    base: float = 10000.0,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, RotarySelfAttentionSaved]:
    """y = merge_heads(attention(rotate(q), rotate(k), v)),   q, k, v = the heads of qkv,   token t sees tokens s ≤ t

    Every token has n_head heads of queries, then n_kv_head of keys and as many of values, all of D numbers, side by side. Queries and
    keys are rotated by the token's position. Then the first n_head / n_kv_head heads of queries search the first head of keys, the
    next ones the second, and so on: along the axis of a group, g, the keys and values are broadcast.

    Shapes: qkv (B, T, (n_head + 2 n_kv_head) D), y (B, T, n_head D).
    Saves: what `rotary_embedding_forward` and `attention_forward` save.
    Raises: ValueError if the last axis does not hold that many equal heads, or n_head is no multiple of n_kv_head.
    Source: Touvron et al. 2023, "LLaMA"; equals torch's split, the rotate_half of transformers, and scaled_dot_product_attention with
        enable_gqa.
    """
    heads = split_heads(qkv, n_head, n_kv_head)  # (B, H + 2 KV, T, D)
    qk, rotary = rotary_embedding_forward(heads[:, : n_head + n_kv_head], base)
    q, k, v = group_heads(qk[:, :n_head], qk[:, n_head:], heads[:, n_head + n_kv_head :])
    y, saved = attention_forward(q, k, v, is_causal=True, dropout_p=dropout_p, generator=generator, recompute=recompute)
    B, T, D = len(qkv), qkv.shape[1], q.shape[-1]
    return merge_heads(y.reshape(B, n_head, T, D)), RotarySelfAttentionSaved(rotary, saved)


def rotary_self_attention_backward(dy: Array, saved: RotarySelfAttentionSaved) -> Array:
    """The gradient of a move is the move back, and the gradients of the rotated queries and keys are rotated back.

    A head of keys gets the sum of the gradients of its group: that is how `attention_backward` treats an axis that was broadcast.

    Shapes: dy (B, T, n_head D); returns dqkv (B, T, (n_head + 2 n_kv_head) D).
    """
    xp, (B, KV, g, T, D) = array_module(dy), saved.attention.q.shape
    dy = dy.reshape(B, T, KV, g, D).transpose(0, 2, 3, 1, 4)  # (B, KV, g, T, D), as y was before the merge
    dq, dk, dv, _ = attention_backward(dy, saved.attention)
    dqk = xp.concatenate([dq.reshape(B, KV * g, T, D), dk.reshape(B, KV, T, D)], axis=1)
    dheads = xp.concatenate([rotary_embedding_backward(dqk, saved.rotary), dv.reshape(B, KV, T, D)], axis=1)
    return merge_heads(dheads)


rotary_self_attention = Op(rotary_self_attention_forward, rotary_self_attention_backward, in_float32=True)


def split_heads(qkv: Array, n_head: int, n_kv_head: int) -> Array:
    """(B, T, (H + 2 KV) D) as (B, H + 2 KV, T, D); a view where qkv is contiguous.

    Raises:
        ValueError: if the last axis cannot be split in this way.
    """
    heads = n_head + 2 * n_kv_head
    if qkv.ndim != 3 or min(n_head, n_kv_head) < 1 or n_head % n_kv_head or qkv.shape[2] % heads:
        raise ValueError(
            f"rotary_self_attention: qkv is (B, T, (n_head + 2 n_kv_head) D) and n_head a multiple of n_kv_head, got {qkv.shape} "
            f"with n_head = {n_head} and n_kv_head = {n_kv_head}."
        )
    return qkv.reshape(*qkv.shape[:2], heads, qkv.shape[2] // heads).swapaxes(1, 2)


def group_heads(q: Array, k: Array, v: Array) -> tuple[Array, Array, Array]:
    """q (B, H, T, D) as (B, KV, g, T, D); k and v (B, KV, T, D) with an axis of length 1 for the group."""
    (B, H, T, D), KV = q.shape, k.shape[1]
    return q.reshape(B, KV, H // KV, T, D), k[:, :, None], v[:, :, None]
