"""Self-attention with rotary positions on the CPU: `kernels.cpu.rotary` and `kernels.cpu.attention` on the heads of one array.

v is a view of qkv, y is written so that merging the heads needs no copy, and dq, dk and dv are written into one dqkv, in which the
first two are rotated back in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from tensorlite.backend import Array
from tensorlite.kernels.cpu import attention, rotary
from tensorlite.op import Pair, register
from tensorlite.ops.rotary_self_attention import group_heads, rotary_self_attention, split_heads


def rotary_self_attention_forward(
    qkv: Array,
    n_head: int,
    n_kv_head: int,
    base: float = 10000.0,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, Any]:
    """Rotate the queries and keys, attention, merge. Saves the tables of the rotation, and what attention saves."""
    heads = split_heads(qkv, n_head, n_kv_head)
    qk, tables = rotary.rotary_embedding_forward(heads[:, : n_head + n_kv_head], base)
    q, k, v = qk[:, :n_head], qk[:, n_head:], heads[:, n_head + n_kv_head :]
    if n_kv_head < n_head:
        q, k, v = group_heads(q, k, v)
    y, saved = attention.attention_forward(q, k, v, is_causal=True, dropout_p=dropout_p, generator=generator, recompute=recompute)
    y = y.reshape(len(qkv), n_head, *y.shape[-2:]).swapaxes(1, 2)  # (B, T, H, D), as it lies in memory
    return y.reshape(*y.shape[:2], -1), (tables, saved)


def rotary_self_attention_backward(dy: Array, saved: Any) -> Array:
    """dqkv. dq, dk and dv are views of it."""
    tables, saved = saved
    B, KV, g, T, D = saved.q.shape
    dqkv, heads = np.empty((B, T, (g + 2) * KV * D), dy.dtype), KV * g
    dheads = split_heads(dqkv, heads, KV)
    dqk = dheads[:, : heads + KV]
    gradients = group_heads(dqk[:, :heads], dqk[:, heads:], dheads[:, heads + KV :])
    attention.write_gradients(*gradients, dy.reshape(B, T, KV, g, D).transpose(0, 2, 3, 1, 4), saved)
    rotary.rotate(dqk, tables, np.subtract, out=dqk)
    return dqkv


def supports(
    qkv: Array,
    n_head: int,
    n_kv_head: int,
    base: float = 10000.0,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> bool:
    """What `attention.takes_heads_of` takes, in equal heads of an even length; the book refuses other shapes."""
    return (
        attention.takes_heads_of(qkv, dropout_p)
        and min(n_head, n_kv_head) > 0
        and n_head % n_kv_head == 0
        and qkv.shape[2] % (2 * (n_head + 2 * n_kv_head)) == 0
        and base > 0
    )


register(rotary_self_attention, Pair("cpu", rotary_self_attention_forward, rotary_self_attention_backward, supports))
