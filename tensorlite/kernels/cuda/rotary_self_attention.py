"""Self-attention with rotary positions on the GPU: the kernels of rotary.cu and attention.cu on the heads of one array.

One launch rotates the queries and keys, and copies the values beside them; then attention reads all three from their places, as in
`self_attention`. In backward it writes dq, dk and dv into one dqkv, in which the first two are rotated back in place.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from tensorlite.backend import Array, array_module
from tensorlite.kernels.cuda import rotary
from tensorlite.kernels.cuda.attention import Heads, Launch, fits
from tensorlite.kernels.cuda.compile import on_gpu
from tensorlite.op import Pair, register
from tensorlite.ops.rotary_self_attention import rotary_self_attention


class FlashSaved(NamedTuple):
    """What backward needs of the forward."""

    launch: Launch
    tables: tuple[Array, Array]  # cosines and sines, (T, D/2)
    rotated: Array  # (B, T, (H + 2 KV) D): qkv after the rotation
    y: Array  # (B, T, H D)
    log_sum: Array  # log₂ Σ exp of each row of scores


def rotary_self_attention_forward(
    qkv: Array,
    n_head: int,
    n_kv_head: int,
    base: float = 10000.0,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> tuple[Array, FlashSaved]:
    """y (B, T, H D). Saves the rotated qkv, y, and one number for each head of each token; not qkv."""
    xp, (B, T, width), heads = array_module(qkv), qkv.shape, n_head + 2 * n_kv_head
    D = width // heads
    tables = rotary.cosines_and_sines(qkv, T, D, float(base), 0)
    rotated = rotary.rotate(qkv, xp.empty_like(qkv), tables, 1.0, heads, taken=heads, rotated=n_head + n_kv_head)
    y = xp.empty((B, T, n_head * D), qkv.dtype)
    launch = Launch(qkv, Heads(B, n_head, T, T, D, width, is_causal=True, group=n_head // n_kv_head), dropout_p, generator)
    return y, FlashSaved(launch, tables, rotated, y, launch.forward(*_split(rotated, launch.heads), y))


def rotary_self_attention_backward(dy: Array, saved: FlashSaved) -> Array:
    """dqkv (B, T, (H + 2 KV) D). dq, dk and dv are views of it."""
    heads, dqkv = saved.launch.heads, array_module(saved.rotated).empty_like(saved.rotated)
    parts = _split(saved.rotated, heads), _split(dqkv, heads)
    saved.launch.backward(dy, *parts[0], saved.y, saved.log_sum, *parts[1])
    turned = heads.H + heads.H // heads.group
    return rotary.rotate(dqkv, dqkv, saved.tables, -1.0, heads.row // heads.D, taken=turned, rotated=turned)


def _split(qkv: Array, heads: Heads) -> tuple[Array, Array, Array]:
    """q, k and v as views of (B, T, (H + 2 KV) D)."""
    keys, values = heads.H * heads.D, (heads.H + heads.H // heads.group) * heads.D  # where they begin
    return qkv[:, :, :keys], qkv[:, :, keys:values], qkv[:, :, values:]


def supports(
    qkv: Array,
    n_head: int,
    n_kv_head: int,
    base: float = 10000.0,
    dropout_p: float = 0.0,
    generator: np.random.Generator | None = None,
    recompute: bool = False,
) -> bool:
    """Contiguous, two tokens or more, heads of a multiple of 8 numbers up to 128; the book refuses other shapes."""
    heads = n_head + 2 * n_kv_head
    return (
        on_gpu(qkv)
        and qkv.ndim == 3
        and qkv.shape[1] > 1
        and min(n_head, n_kv_head) > 0
        and n_head % n_kv_head == 0
        and qkv.shape[2] % heads == 0
        and base > 0
        and qkv.size < 2**31
        and fits(qkv, D=qkv.shape[2] // heads, dropout_p=dropout_p)
    )


register(rotary_self_attention, Pair("cuda", rotary_self_attention_forward, rotary_self_attention_backward, supports))
